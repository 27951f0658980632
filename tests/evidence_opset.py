"""Every recorded ONNX backend test, converted to another opset, against its recorded outputs.

Upgrades to the newest opset: the tests of the installed onnx package and those inside the wheels of older
releases, which hold what the operators of their day gave. Downgrades: the newest tests to older opsets.

    python tests/evidence_opset.py [--output evidence/opset.jsonl] [--wheels DIR] [--installed-only]

One JSON row per case; rows that exist for the same versions are kept, so an interrupted run continues. The
wheels are downloaded with pip into `--wheels` (a temporary folder unless given).
"""

from __future__ import annotations

import argparse
import collections
import importlib.metadata
import json
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from opgraft.passes.opset.convert import convert_opset
from opgraft.passes.opset.schemas import NEWEST_OPSET, next_change

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend

DOWNGRADES = (21, 18, 17, 15, 13, 11, 9, 7)
RANDOM = frozenset({"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform"})
RANDOM_LIKE = RANDOM | {"RandomUniformLike"}
FAILURES = ("differs", "only the converted model fails", "error")


def versions() -> str:
    names = ("onnx", "onnx_ir", "onnxruntime", "opgraft")
    return " ".join(f"{name}-{importlib.metadata.version(name)}" for name in names)


def examine(case: backend.Case, target: int) -> dict[str, Any]:
    """One row: what became of the case at opset `target`."""
    row: dict[str, Any] = {"source": case.source, "case": case.name, "opset": case.opset, "target": target}
    if case.skipped:
        return row | {"outcome": "no data", "detail": case.skipped}
    if case.opset is None:
        return row | {"outcome": "no default domain"}
    row["changes"] = _changes(case, target)
    model = backend.to_ir(case.model)
    refusals = convert_opset(model, target).refusals
    if refusals:
        return row | {"outcome": "refused", "detail": str(refusals[0])[:200]}
    converted = onnx_ir.to_proto(model)
    runs = backend.run_model(converted, case.data_sets)
    row["executor"] = runs.executor
    found = runs.problem or backend.difference(case, runs)
    if not found:
        if runs.executor != "onnxruntime":
            before = backend.run_onnxruntime(case.model, case.data_sets)
            row["runtime_ran_original"] = not before.problem and not backend.difference(case, before)
        return row | {"outcome": "recorded"}
    return row | _beside_original(case, runs, found)


def _beside_original(case: backend.Case, runs: backend.Runs, found: str) -> dict[str, Any]:
    """The recorded outputs were not reproduced: does the original reproduce them here?"""
    original = backend.run_model(case.model, case.data_sets)
    if runs.problem:
        outcome = "no executor" if original.problem else "only the converted model fails"
        return {"outcome": outcome, "detail": found[:200]}
    if not original.problem and not backend.difference(case, original):
        return {"outcome": "differs", "detail": found}
    if _is_random(case):
        return {"outcome": "random", "detail": found}
    if original.problem:
        return {"outcome": "original does not run", "detail": f"{found}; original: {original.problem}"[:200]}
    same = all(
        not backend.compare(want, got, 0, 0)
        for wants, gots in zip(original.outputs, runs.outputs, strict=True)
        for want, got in zip(wants, gots, strict=True)
    )
    return {
        "outcome": "as the original, bit for bit" if same else "as the original, roughly",
        "detail": found,
    }


def _is_random(case: backend.Case) -> bool:
    operators = {n.op_type for n in case.model.graph.node}
    training = "Dropout" in operators and any(len(n.input) > 2 for n in case.model.graph.node)
    return bool(operators & RANDOM_LIKE) or training


def _changes(case: backend.Case, target: int) -> int:
    """How many changes of an operator lie between the case's version and the target, over its nodes."""
    count = 0
    for node in case.model.graph.node:
        low, high = sorted((case.opset or 0, target))
        change = next_change(node.op_type, low) if node.domain in ("", "ai.onnx") else None
        while change is not None and change <= high:
            count, change = count + 1, next_change(node.op_type, change)
    return count


def _cases(wheels: Path | None) -> Iterator[tuple[backend.Case, int]]:
    """Each distinct model once, upwards; the generated tests downwards besides."""
    seen: set[tuple[str, str]] = set()

    def distinct(cases: Iterable[backend.Case]) -> Iterator[backend.Case]:
        for case in cases:
            key = (case.key, case.name.rsplit("/", 1)[-1])
            if key not in seen:
                seen.add(key)
                yield case

    generated = list(distinct(backend.installed_node_cases()))
    files = list(distinct(backend.installed_file_cases()))
    yield from ((c, NEWEST_OPSET) for c in (*generated, *files) if c.opset != NEWEST_OPSET)
    for release in backend.RELEASES if wheels is not None else ():
        wheel = backend.fetch_wheel(release, wheels) if wheels is not None else None
        if wheel is None:
            print(f"onnx {release}: no wheel found", file=sys.stderr)
            continue
        yield from ((c, NEWEST_OPSET) for c in distinct(backend.release_cases(wheel)) if c.opset != NEWEST_OPSET)
    for target in DOWNGRADES:
        yield from ((c, target) for c in generated if c.opset is not None and c.opset > target)


def run(output: Path, wheels: Path | None) -> list[dict[str, Any]]:
    """Examine every case whose row is missing; return all rows of these versions."""
    current = versions()
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    if output.exists():
        for line in output.read_text().splitlines():
            row = json.loads(line)
            if row["versions"] == current:
                rows[row["source"], row["case"], row["target"]] = row
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a") as sink:
        for case, target in _cases(wheels):
            if (case.source, case.name, target) in rows:
                continue
            try:
                row = examine(case, target)
            except Exception as problem:  # noqa: BLE001 - a row must say so, and the run must go on
                row = {"source": case.source, "case": case.name, "opset": case.opset, "target": target}
                row |= {"outcome": "error", "detail": repr(problem)[:200]}
            row["versions"] = current
            rows[case.source, case.name, target] = row
            print(json.dumps(row), file=sink, flush=True)
    return list(rows.values())


def summarize(rows: list[dict[str, Any]]) -> None:
    """Counts per direction and outcome, and the failures."""
    for target in sorted({r["target"] for r in rows}, reverse=True):
        for name, chosen in (
            ("up", [r for r in rows if r["target"] == target and (r["opset"] or 0) < target]),
            ("down", [r for r in rows if r["target"] == target and (r["opset"] or 0) > target]),
        ):
            if not chosen:
                continue
            counts = collections.Counter(r["outcome"] for r in chosen)
            changed = sum(bool(r.get("changes")) for r in chosen)
            executors = collections.Counter(r["executor"] for r in chosen if r["outcome"] == "recorded")
            print(f"{name} to opset {target}: {len(chosen)} cases, {changed} with changed operators")
            print("   ", "; ".join(f"{k}: {v}" for k, v in counts.most_common()))
            lost = sum(bool(r.get("runtime_ran_original")) for r in chosen)
            print(f"    recorded outputs given by {dict(executors)}; {lost} ran in the runtime before")
    for row in rows:
        if row["outcome"] in FAILURES:
            print("FAILED", row["source"], row["case"], row["opset"], "->", row["target"], row.get("detail"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=root / "evidence" / "opset.jsonl")
    parser.add_argument("--wheels", type=Path, help="folder of downloaded onnx wheels, filled as needed")
    parser.add_argument("--installed-only", action="store_true", help="without the wheels of older releases")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    with tempfile.TemporaryDirectory() as scratch:
        wheels = None if arguments.installed_only else arguments.wheels or Path(scratch)
        rows = run(arguments.output, wheels)
    summarize(rows)
    return 1 if any(r["outcome"] in FAILURES for r in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
