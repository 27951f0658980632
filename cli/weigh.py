"""Measure a candidate against the input; what does not pay on the target is taken back."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opgraft.cli.prove import original_model, prove, verifier_of
from opgraft.cli.report import LatencyReport
from opgraft.ir.errors import ExecutionError
from opgraft.passes._registry import builtin_modules

if TYPE_CHECKING:
    from opgraft.backends.onnxruntime.timing import LatencyComparison
    from opgraft.cli.driver import Attempt, Driver
    from opgraft.ir.inputs import InputCase

Model = Path | bytes
Inputs = Mapping[str, Any]

_PAIRS = 25
# Before anything is taken back the verdict must hold in a second, longer measurement: at 95 % one in forty harmless
# rewrites would be lost to chance, and two runs would decide differently.
_CONFIRMING_PAIRS = 75


def weigh(driver: Driver, attempt: Attempt, candidate: Path, name: str) -> tuple[Attempt, Path]:
    """Return the attempt to keep, saved."""
    report = driver.report
    if driver.is_foreign:
        from opgraft.cli.estimate import estimate

        report.estimate = estimate(driver.original, attempt.program, driver.target)
        report.decision = f"estimated: {driver.options.target} is another machine, nothing was measured"
        return attempt, candidate
    if not attempt.context.rewrites:
        report.decision = "nothing to measure: no rewrite applied"
        return attempt, candidate
    case = _case_to_measure(driver)
    if case is None:
        report.decision = "not measured: no inputs that the model runs on"
        return attempt, candidate
    start = time.perf_counter()
    baseline = original_model(driver)
    with driver.progress("measure"):
        try:
            attempt, candidate = _decide(driver, attempt, candidate, baseline, case.arrays, name)
            _measure_footprints(driver, baseline, candidate, case.arrays)
        except ExecutionError as error:
            report.decision = report.decision or f"not measured: {error}"
    report.seconds["measure"] = time.perf_counter() - start
    return attempt, candidate


def _case_to_measure(driver: Driver) -> InputCase | None:
    """The user's first inputs, or the largest that were made up."""
    if driver.given:
        return driver.given[0]
    return verifier_of(driver).ordinary_case()


def _measure_footprints(driver: Driver, baseline: Model, candidate: Path, inputs: Inputs) -> None:
    from opgraft.backends.onnxruntime.timing import measure_footprint

    options = driver.options
    for side, model in (("before", baseline), ("after", candidate)):
        found = measure_footprint(
            model, inputs, memory_limit_bytes=options.memory_limit_bytes, time_limit_s=options.time_limit_s
        )
        driver.report.footprint[side] = asdict(found)


def _compare(
    driver: Driver, baseline: Model, candidate: Path, inputs: Inputs, threads: int, pairs: int
) -> LatencyComparison:
    from opgraft.backends.onnxruntime.timing import compare_latency

    return compare_latency(driver.executor, baseline, candidate, inputs, pairs=pairs, threads=threads)


def _is_slower(driver: Driver, baseline: Model, candidate: Path, inputs: Inputs) -> tuple[bool, LatencyComparison]:
    """One thread decides, in CPU time: wall time of several depends on what else the machine does."""
    found = _compare(driver, baseline, candidate, inputs, 1, _PAIRS)
    if not found.is_slower:
        return False, found
    found = _compare(driver, baseline, candidate, inputs, 1, _CONFIRMING_PAIRS)
    # Two sessions of the same model may differ; the candidate must lose by more than they do.
    return found.ratio.low > max(1.0, found.self_ratio.high) and not found.noisy, found


def _decide(
    driver: Driver, attempt: Attempt, candidate: Path, baseline: Model, inputs: Inputs, name: str
) -> tuple[Attempt, Path]:
    report = driver.report
    slower, found = _is_slower(driver, baseline, candidate, inputs)
    if slower:
        attempt, candidate, found = _take_back_slow(driver, baseline, inputs, name, found)
    else:
        report.decision = "kept: faster" if found.is_faster and not found.noisy else "kept: not slower"
    report.latency = [latency_report(found)]
    if attempt.context.rewrites:
        for threads in driver.options.threads:
            if threads != 1:
                report.latency.append(latency_report(_compare(driver, baseline, candidate, inputs, threads, _PAIRS)))
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
    driver: Driver, baseline: Model, inputs: Inputs, name: str, found: LatencyComparison
) -> tuple[Attempt, Path, LatencyComparison]:
    """Take back one family after the other until what is left is not slower; what is left is verified anew."""
    report = driver.report
    attempt = driver.attempt()
    while attempt.context.rewrites:
        # Passes that found their work done by those now taken back may fire instead: look again each time.
        family, members = _families(attempt)[0]
        for member in members:
            driver.taken_back[member] = f"slower: with family {family} the ratio was {found.ratio}"
        attempt, candidate = prove(driver, driver.attempt(record=True), name)
        if not attempt.context.rewrites:
            break
        slower, found = _is_slower(driver, baseline, candidate, inputs)
        if not slower:
            report.decision = "kept in part: the rest was slower"
            return attempt, candidate, found
    candidate = driver.write(attempt, name)
    report.decision = "input kept: every rewrite was slower"
    return attempt, candidate, found


def latency_report(found: LatencyComparison) -> LatencyReport:
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
