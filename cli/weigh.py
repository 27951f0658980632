"""Measure a candidate against the input; what does not pay on the target is taken back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.cli.report import LatencyReport
from opgraft.ir.errors import ExecutionError
from opgraft.passes._registry import builtin_modules

if TYPE_CHECKING:
    from opgraft.backends.onnxruntime.timing import LatencyComparison
    from opgraft.cli.driver import Attempt, Driver

_PAIRS = 25
# Before anything is taken back the verdict must hold in a second, longer measurement: at 95 % one in forty harmless
# rewrites would be lost to chance, and two runs would decide differently.
_CONFIRMING_PAIRS = 75


def weigh(driver: Driver, attempt: Attempt, candidate: Path, name: str) -> tuple[Attempt, Path]:
    """Return the attempt to keep, saved."""
    report = driver.report
    if not driver.target.is_host:
        report.decision = "estimated: the target is not this machine, nothing was measured"
        return attempt, candidate
    if not attempt.context.rewrites:
        report.decision = "nothing to measure: no rewrite applied"
        return attempt, candidate
    case = driver.verifier.ordinary_case() if driver.verifier is not None else None
    if case is None:
        report.decision = "not measured: no inputs that the model runs on"
        return attempt, candidate
    start = time.perf_counter()
    baseline = driver.original.path or _write_original(driver)
    with driver.progress("measure"):
        try:
            attempt, candidate = _decide(driver, attempt, candidate, baseline, case.arrays, name)
        except ExecutionError as error:
            report.decision = f"not measured: {error}"
    report.seconds["measure"] = time.perf_counter() - start
    return attempt, candidate


def _write_original(driver: Driver) -> Path:
    from opgraft.ir.save import save

    path = driver.folder() / "original.onnx"
    if not path.exists():
        save(driver.original, path, force=True)
    return path


def _compare(
    driver: Driver, baseline: Path, candidate: Path, inputs: object, threads: int, pairs: int
) -> LatencyComparison:
    from opgraft.backends.onnxruntime.timing import compare_latency

    return compare_latency(
        driver.executor,
        baseline,
        candidate,
        inputs,
        pairs=pairs,
        threads=threads,  # type: ignore[arg-type]
    )


def _is_slower(driver: Driver, baseline: Path, candidate: Path, inputs: object) -> tuple[bool, LatencyComparison]:
    """One thread decides, in CPU time: wall time of several depends on what else the machine does."""
    found = _compare(driver, baseline, candidate, inputs, 1, _PAIRS)
    if not found.is_slower:
        return False, found
    found = _compare(driver, baseline, candidate, inputs, 1, _CONFIRMING_PAIRS)
    # Two sessions of the same model may differ; the candidate must lose by more than they do.
    return found.ratio.low > max(1.0, found.self_ratio.high) and not found.noisy, found


def _decide(
    driver: Driver, attempt: Attempt, candidate: Path, baseline: Path, inputs: object, name: str
) -> tuple[Attempt, Path]:
    report = driver.report
    slower, found = _is_slower(driver, baseline, candidate, inputs)
    if slower:
        attempt, candidate, found = _take_back_slow(driver, baseline, inputs, name, found)
    else:
        report.decision = "kept: faster" if found.is_faster else "kept: not slower"
    report.latency = [_latency(found)]
    if attempt.context.rewrites:
        for threads in driver.options.threads:
            if threads != 1:
                report.latency.append(_latency(_compare(driver, baseline, candidate, inputs, threads, _PAIRS)))
    return attempt, candidate


def _families(attempt: Attempt) -> list[tuple[str, list[str]]]:
    """The passes that fired, by folder; the family that is most likely to cost speed first."""
    modules = builtin_modules()
    families: dict[str, list[str]] = {}
    for rewrite in attempt.context.rewrites:
        family = modules.get(rewrite.pass_name, "outside.outside").split(".")[-2]
        members = families.setdefault(family, [])
        if rewrite.pass_name not in members:
            members.append(rewrite.pass_name)
    return sorted(families.items(), key=lambda item: item[0] == "simplify")


def _take_back_slow(
    driver: Driver, baseline: Path, inputs: object, name: str, found: LatencyComparison
) -> tuple[Attempt, Path, LatencyComparison]:
    """Take back one family after the other until what is left is not slower."""
    attempt = driver.attempt()
    for family, members in _families(attempt):
        for member in members:
            driver.taken_back[member] = f"slower: family {family} ran at {found.ratio}"
        attempt = driver.attempt(record=False)
        candidate = driver.write(attempt, name)
        if not attempt.context.rewrites:
            break
        slower, found = _is_slower(driver, baseline, candidate, inputs)
        if not slower:
            driver.report.decision = "kept in part: the rest was slower"
            return attempt, candidate, found
    candidate = driver.write(attempt, name)
    driver.report.decision = "input kept: every rewrite was slower"
    return attempt, candidate, found


def _latency(found: LatencyComparison) -> LatencyReport:
    return LatencyReport(
        found.threads,
        found.clock,
        found.baseline_ms,
        found.candidate_ms,
        found.ratio.ratio,
        found.ratio.low,
        found.ratio.high,
        found.self_ratio.ratio,
        found.noisy,
    )
