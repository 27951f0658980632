"""Verify a candidate; what fails is narrowed down to one rewrite, taken back, and named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.cli.find_guilty import Failure, find_broken_stage, find_guilty, original_is_deterministic
from opgraft.cli.sensitivity import find_unobservable
from opgraft.cli.write_reproducer import write_reproducer
from opgraft.ir.errors import ContractError, ExecutionError, OutputError
from opgraft.ir.inputs import UnsupportedInput, input_cases
from opgraft.ir.save import model_bytes, save
from opgraft.ir.verify import Outcome, Verification, Verifier, verify_region
from opgraft.passes._pass import Contract

if TYPE_CHECKING:
    from opgraft.cli.driver import Attempt, Driver

# More guilty passes than this in one model, and nothing of the pipeline is believed.
_MAX_ROUNDS = 24


def prove(driver: Driver, attempt: Attempt, name: str) -> tuple[Attempt, Path]:
    """Return the attempt that stands up to the evidence, saved; the report says what was taken back and why.

    Raises ContractError when the model, written again without any rewrite, computes something else.
    """
    start = time.perf_counter()
    candidate = driver.write(attempt, name)
    if driver.options.verify == "off":
        driver.report.outcome, driver.report.outcome_reason = "unverified", driver.blocked or "verification is off"
        return attempt, candidate
    with driver.progress("verify"):
        verifier = verifier_of(driver)
        for _ in range(_MAX_ROUNDS):
            failure, found = _examine(driver, attempt, candidate, verifier)
            if failure is None:
                break
            _take_back(driver, failure)
            attempt = driver.attempt(record=True)
            candidate = driver.write(attempt, name)
        else:
            for pass_ in driver.pipeline.passes:
                driver.taken_back.setdefault(pass_.name, "not trusted: too many rewrites failed")
            attempt = driver.attempt(record=True)
            candidate = driver.write(attempt, name)
            found = verifier.verify(candidate, "exact")
        _report_evidence(driver, found)
        if found.outcome is not Outcome.VERIFIED:
            attempt, candidate = _settle(driver, attempt, candidate, found, name)
        elif attempt.contract is not Contract.EXACT:
            driver.report.evidence["not_observable"] = find_unobservable(driver, verifier)
    driver.report.seconds["verify"] = driver.report.seconds.get("verify", 0.0) + time.perf_counter() - start
    return attempt, candidate


def verifier_of(driver: Driver) -> Verifier:
    """The comparison with the original; its outputs are computed once per run."""
    if driver.verifier is None:
        cases = None
        if driver.given:
            try:
                cases = [*driver.given, *input_cases(driver.original, seed=driver.options.seed)]
            except UnsupportedInput:
                cases = list(driver.given)
        driver.verifier = Verifier(
            driver.original, original_model(driver), driver.executor, seed=driver.options.seed, cases=cases
        )
    return driver.verifier


def original_model(driver: Driver) -> Path | bytes:
    """The input as the runtime loads it."""
    original = driver.original
    if original.path is not None:
        return original.path
    try:
        return model_bytes(original)
    except OutputError:
        path = driver.folder() / "original.onnx"
        if not path.exists():
            save(original, path, force=True)
        return path


def _examine(
    driver: Driver, attempt: Attempt, candidate: Path, verifier: Verifier
) -> tuple[Failure | None, Verification]:
    """Local evidence, evidence per stage where asked for, and end to end; the first failure."""
    nothing = Verification(Outcome.UNVERIFIED, attempt.contract.value)
    failure = _check_regions(driver, attempt)
    if failure is None and driver.options.verify == "each":
        failure = find_broken_stage(driver, keep_evidence=True)
    if failure is not None:
        return failure, nothing
    found = verifier.verify(candidate, attempt.contract.value)
    if found.outcome is not Outcome.REFUTED:
        return None, found
    if not original_is_deterministic(driver, verifier):
        reason = "two runs of the original differ: no comparison says anything"
        return None, Verification(Outcome.UNVERIFIED, found.contract, reason=reason)
    if not attempt.context.rewrites:
        raise ContractError(
            f"written again without any rewrite, the model differs: {found.reason}",
            where=driver.report.source,
            remedy="nothing was written; please report this",
        )
    return find_guilty(driver, attempt, verifier, found), found


def _check_regions(driver: Driver, attempt: Attempt) -> Failure | None:
    """Local evidence for each kind of rewrite; the first pass that fails it."""
    checked: dict[str, int] = {}
    for region in attempt.recorder.regions if attempt.recorder is not None else ():
        try:
            found = verify_region(
                region.before, region.after, region.contract, driver.executor, seed=driver.options.seed
            )
        except (ExecutionError, OutputError, ValueError):
            continue
        if found.outcome is Outcome.REFUTED and not found.failed_only_optimized:
            reason = f"rewrite {region.number} at {region.site!r}: {found.reason}"
            return Failure(region.pass_name, reason, region.before, region.after, found.failing_case)
        if found.outcome is Outcome.VERIFIED:
            checked[region.pass_name] = checked.get(region.pass_name, 0) + 1
    driver.report.evidence["regions"] = checked
    return None


def _take_back(driver: Driver, failure: Failure) -> None:
    driver.taken_back[failure.pass_name] = failure.reason
    entry: dict[str, object] = {"pass": failure.pass_name, "reason": failure.reason}
    if failure.stage:
        entry["stage"] = failure.stage
    files = write_reproducer(driver, failure)
    if files:
        entry["reproducer"] = files
    driver.report.refuted.append(entry)


def _report_evidence(driver: Driver, found: Verification) -> None:
    report = driver.report
    report.evidence.update(
        {
            "cases": found.cases,
            "max_abs_error": found.max_abs_error,
            "tolerance": found.tolerance,
            "float32_error": found.float32_error,
            "float64_source": found.float64_source,
            "contract": found.contract,
        }
    )
    report.notes += [note for note in found.notes if note not in report.notes]
    report.outcome, report.outcome_reason = found.outcome.value, found.reason


def _settle(driver: Driver, attempt: Attempt, candidate: Path, found: Verification, name: str) -> tuple[Attempt, Path]:
    """Nothing was seen end to end: rewrites without local evidence are not kept unless the user allows them."""
    report = driver.report
    report.outcome = Outcome.UNVERIFIED.value
    why = driver.blocked or found.reason
    for _ in range(_MAX_ROUNDS):
        unproven = attempt.fired - set(report.evidence.get("regions", {}))
        if not attempt.fired:
            report.outcome_reason = f"passed through unchanged: {why}"
            return attempt, candidate
        if not unproven:
            report.outcome_reason = f"rewritten on local evidence only: {why}"
            return attempt, candidate
        if driver.options.allow_unverified:
            report.outcome_reason = f"kept without evidence, as asked: {', '.join(sorted(unproven))}: {why}"
            return attempt, candidate
        for pass_name in unproven:
            driver.taken_back[pass_name] = f"no evidence: {why}"
        attempt = driver.attempt(record=True)
        candidate = driver.write(attempt, name)
        failure = _check_regions(driver, attempt)
        if failure is not None:
            _take_back(driver, failure)
            attempt = driver.attempt(record=True)
            candidate = driver.write(attempt, name)
            report.evidence["regions"] = {}
    return attempt, candidate
