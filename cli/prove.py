"""Verify a candidate; what fails is bisected to one rewrite, taken back, and named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.ir.errors import ExecutionError, OutputError
from opgraft.ir.save import model_bytes, save
from opgraft.ir.verify import Outcome, Verification, Verifier, verify_region

if TYPE_CHECKING:
    from opgraft.cli.driver import Attempt, Driver
    from opgraft.ir.regions import Region

# More guilty passes than this in one model, and nothing of the pipeline is believed.
_MAX_ROUNDS = 24


def prove(driver: Driver, attempt: Attempt, name: str) -> tuple[Attempt, Path]:
    """Return the attempt that stands up to the evidence, saved; the report says what was taken back and why."""
    start = time.perf_counter()
    candidate = driver.write(attempt, name)
    if driver.options.verify == "off":
        driver.report.outcome, driver.report.outcome_reason = "unverified", "verification is off"
        return attempt, candidate
    with driver.progress("verify"):
        verifier = Verifier(driver.original, _original_model(driver), driver.executor, seed=driver.options.seed)
        driver.verifier = verifier
        for _ in range(_MAX_ROUNDS):
            guilty = _check_regions(driver, attempt)
            verification = None
            if guilty is None:
                verification = verifier.verify(candidate, attempt.contract.value)
                if verification.outcome is not Outcome.REFUTED:
                    break
                guilty = _bisect(driver, attempt, verifier, verification)
            _take_back(driver, *guilty)
            attempt = driver.attempt(record=True)
            candidate = driver.write(attempt, name)
        else:
            verification = Verification(Outcome.REFUTED, attempt.contract.value, reason="too many passes failed")
    if verification is None or verification.outcome is Outcome.REFUTED:
        attempt, candidate = _give_up(driver, name)
        verification = verification or Verification(Outcome.REFUTED, "exact", reason="too many passes failed")
    attempt, candidate = _settle(driver, attempt, candidate, verification, name)
    driver.report.seconds["verify"] = time.perf_counter() - start
    return attempt, candidate


def _original_model(driver: Driver) -> Path | bytes:
    original = driver.original
    if original.path is not None:
        return original.path
    path = driver.folder() / "original.onnx"
    try:
        return model_bytes(original)
    except OutputError:
        save(original, path, force=True)
        return path


def _check_regions(driver: Driver, attempt: Attempt) -> tuple[str, str, Region | None] | None:
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
            return region.pass_name, f"rewrite {region.number} at {region.site!r}: {found.reason}", region
        if found.outcome is Outcome.VERIFIED:
            checked[region.pass_name] = checked.get(region.pass_name, 0) + 1
    driver.report.evidence["regions"] = checked
    return None


def _bisect(
    driver: Driver, attempt: Attempt, verifier: Verifier, failure: Verification
) -> tuple[str, str, Region | None]:
    """The first rewrite after which the program is wrong."""
    rewrites = attempt.context.rewrites
    if not rewrites:
        return "", f"the unchanged program differs: {failure.reason}", None
    low, high = 0, len(rewrites)
    reason = failure.reason
    while high - low > 1:
        middle = (low + high) // 2
        trial = driver.attempt(max_rewrites=middle)
        found = verifier.verify(driver.write(trial, "bisect.onnx"), trial.contract.value)
        if found.outcome is Outcome.REFUTED:
            high, reason = middle, found.reason
        else:
            low = middle
    guilty = rewrites[high - 1]
    where = "with the runtime's optimizations only, " if failure.failed_only_optimized else ""
    recorded = driver.attempt(max_rewrites=high, record=True, only=high - 1)
    regions = recorded.recorder.regions
    return (
        guilty.pass_name,
        f"rewrite {guilty.number} at {guilty.site!r}: {where}{reason}",
        regions[0] if regions else None,
    )


def _take_back(driver: Driver, pass_name: str, reason: str, region: Region | None) -> None:
    driver.taken_back[pass_name] = reason
    entry = {"pass": pass_name, "reason": reason}
    if region is not None:
        entry["reproducer"] = _write_reproducer(driver, region)
    driver.report.refuted.append(entry)


def _write_reproducer(driver: Driver, region: Region) -> str:
    """The replaced region as a model of its own, kept beside the output."""
    if driver.options.dry_run or driver.reproducer_folder is None:
        return ""
    path = driver.reproducer_folder / f"refuted-{region.pass_name}.onnx"
    try:
        path.write_bytes(model_bytes(region.before))
    except (OSError, OutputError):
        return ""
    return str(path)


def _give_up(driver: Driver, name: str) -> tuple[Attempt, Path]:
    for pass_ in driver.pipeline.passes:
        driver.taken_back.setdefault(pass_.name, "not trusted: too many rewrites failed")
    attempt = driver.attempt()
    return attempt, driver.write(attempt, name)


def _settle(driver: Driver, attempt: Attempt, candidate: Path, found: Verification, name: str) -> tuple[Attempt, Path]:
    """Fill the report; rewrites without any evidence are not kept unless the user allows them."""
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
    report.notes += found.notes
    report.outcome, report.outcome_reason = found.outcome.value, found.reason
    if found.outcome is not Outcome.UNVERIFIED:
        return attempt, candidate
    checked = report.evidence.get("regions", {})
    fired = {r.pass_name for r in attempt.context.rewrites}
    unproven = sorted(fired - set(checked))
    if not fired:
        report.outcome_reason = f"passed through unchanged: {found.reason}"
        return attempt, candidate
    if not unproven:
        report.outcome, report.outcome_reason = "verified locally", found.reason
        return attempt, candidate
    if driver.options.allow_unverified:
        return attempt, candidate
    for pass_name in unproven:
        driver.taken_back[pass_name] = f"no evidence: {found.reason}"
    attempt = driver.attempt()
    if attempt.context.rewrites:
        report.outcome = "verified locally"
    else:
        report.outcome_reason = f"passed through unchanged: {found.reason}"
    return attempt, driver.write(attempt, name)
