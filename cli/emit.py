"""The last steps of a run: the result moved into place, the report filled."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.cli.report import PassReport, count_nodes
from opgraft.ir.destination import data_path, publish, write_error
from opgraft.ir.external import external_tensors
from opgraft.ir.program import Program
from opgraft.ir.save import save
from opgraft.passes._pass import Contract

if TYPE_CHECKING:
    from opgraft.cli.driver import Attempt, Driver
    from opgraft.cli.options import Options


def emit(program: Program, candidate: Path | None, destination: Path, options: Options) -> None:
    """Save `program`, or move the file of it that was verified into place. Raises OutputError."""
    if candidate is None:
        save(program, destination, force=options.force)
        return
    data = data_path(candidate)
    try:
        publish(candidate, data if data.exists() else None, destination)
    except OSError as error:
        raise write_error(error, destination) from None


def fill_report(driver: Driver, attempt: Attempt, destination: Path | None) -> None:
    """What the last attempt did, and sizes; called after `emit`."""
    report = driver.report
    report.nodes_after = count_nodes(attempt.program)
    report.contract = attempt.contract.value
    counts: dict[str, int] = {}
    contracts = {p.name: p.contract.value for p in driver.pipeline.passes}
    for rewrite in attempt.context.rewrites:
        counts[rewrite.pass_name] = counts.get(rewrite.pass_name, 0) + 1
    # A pass may have kept more than it promises.
    loose = {r.pass_name for r in attempt.context.rewrites if r.contract is not Contract.EXACT}
    contracts.update((name, Contract.EXACT.value) for name in counts if name not in loose)
    seconds = attempt.context.facts.get("seconds", {})
    checked = report.evidence.get("regions", {})
    report.passes = [
        PassReport(
            name,
            contracts[name],
            counts.get(name, 0),
            seconds.get(name, 0.0),
            driver.taken_back.get(name, ""),
            checked.get(name, 0),
        )
        for name in dict.fromkeys(p.name for p in driver.pipeline.passes)
    ]
    wanted = driver.options.opset
    if wanted is not None and attempt.program.opset != wanted:
        why = f"`optimize explain MODEL 'upgrade-opset{{version={wanted}}}'` says which nodes stand against it"
        report.notes.append(f"the result is at opset {attempt.program.opset}, not {wanted}: {why}")
    report.near_misses = {
        name: sorted({str(m) for m in misses}) for name, misses in attempt.context.near_misses.items()
    }
    if driver.original.path is not None:
        report.bytes_before = _file_bytes(driver.original.path, driver.original)
    if destination is not None:
        report.output = str(destination)
        report.bytes_after = _file_bytes(destination, attempt.program)


def _file_bytes(path: Path, program: Program) -> int:
    """The model's file and its external data: of a file just written these are `<file>.data`."""
    files = {path, data_path(path)} if program.path != path else {path, *_data_files(program)}
    total = 0
    for file in {file.resolve() for file in files}:
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def _data_files(program: Program) -> set[Path]:
    return {Path(tensor.path) for tensor, _ in external_tensors(program.model)}
