"""Which stage, and in it which rewrite, made a program wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from opgraft.ir.destination import data_path
from opgraft.ir.errors import ExecutionError, OutputError
from opgraft.ir.inputs import InputCase, UnsupportedInput, input_cases
from opgraft.ir.program import Program
from opgraft.ir.verify import Outcome, Verification, Verifier, verify_region
from opgraft.passes._instruments import bisect_rewrites
from opgraft.passes._pass import Contract, PassContext, Rewrite
from opgraft.passes._pipeline import Instrument, Stage, StageResult

if TYPE_CHECKING:
    from opgraft.cli.driver import Attempt, Driver

_MAX_STAGE_NAME = 40


@dataclass(frozen=True)
class Failure:
    """A rewrite that was refuted, and two programs with inputs on which they differ, where they could be had."""

    pass_name: str
    reason: str
    before: Program | None = None
    after: Program | None = None
    case: InputCase | None = None
    stage: str = ""


@dataclass
class _BrokenStage:
    """The first stage after which the program is not what it was before it."""

    name: str
    first: int
    """Rewrites done before the stage."""
    verifier: Verifier
    """Compares with the program before the stage."""
    found: Verification


@dataclass
class VerifyStages(Instrument):
    """Compares the program before and after every stage that rewrote something; ends the run at a broken one.

    An EXACT stage must give the same bits as the one before it.
    """

    driver: Driver
    cases: list[InputCase]
    broken: _BrokenStage | None = None
    evidence: list[dict[str, object]] = field(default_factory=list)
    _previous: tuple[Program, Path] | None = None
    _first: int = 0
    _n_kept: int = 0

    def before_stage(self, stage: Stage, program: Program, context: PassContext) -> None:
        if self._previous is None:
            self._previous = self._keep(program)

    def after_stage(self, stage: Stage, program: Program, context: PassContext, result: StageResult) -> bool:
        rewrites = context.rewrites[self._first :]
        if not rewrites or self._previous is None:
            return False
        before, path = self._previous
        verifier = Verifier(before, path, self.driver.executor, cases=self.cases)
        name = stage.name if len(stage.name) <= _MAX_STAGE_NAME else f"{stage.name[:_MAX_STAGE_NAME]}...)"
        current = self._keep(program)
        found = verifier.verify(current[1], _contract_of(rewrites))
        self.evidence.append(
            {"stage": name, "rewrites": len(rewrites), "contract": found.contract, "outcome": found.outcome.value}
        )
        if found.outcome is Outcome.REFUTED:
            self.broken = _BrokenStage(name, self._first, verifier, found)
            return True
        for file in (path, data_path(path)):
            file.unlink(missing_ok=True)
        self._previous, self._first = current, len(context.rewrites)
        return False

    def _keep(self, program: Program) -> tuple[Program, Path]:
        # A copy: the run goes on rewriting this one.
        copy = program.clone()
        self._n_kept += 1
        return copy, self.driver.write_program(copy, f"stage-{self._n_kept}.onnx")


def _contract_of(rewrites: Sequence[Rewrite]) -> str:
    is_exact = all(r.contract is Contract.EXACT for r in rewrites)
    contract = Contract.EXACT if is_exact else Contract.NUMERIC
    return str(contract.value)


def find_broken_stage(driver: Driver, *, keep_evidence: bool = False) -> Failure | None:
    """Verify after each stage; the rewrite that broke the first broken one."""
    try:
        cases = [*driver.given, *input_cases(driver.original, seed=driver.options.seed)]
    except UnsupportedInput:
        cases = list(driver.given)
    if not cases:
        return None
    watch = VerifyStages(driver, cases)
    attempt = driver.attempt(instruments=[watch])
    if keep_evidence:
        driver.report.evidence["stages"] = watch.evidence
    if watch.broken is None:
        return None
    return _narrow_down(driver, attempt, watch.broken.verifier, watch.broken.found, watch.broken)


def find_guilty(driver: Driver, attempt: Attempt, verifier: Verifier, found: Verification) -> Failure:
    """The rewrite to blame for a program that differs end to end: by stages first, then one by one."""
    return find_broken_stage(driver) or _narrow_down(driver, attempt, verifier, found, None)


def original_is_deterministic(driver: Driver, verifier: Verifier) -> bool:
    """Whether two runs of the original agree."""
    if driver.is_deterministic is None:
        from opgraft.cli.prove import original_model

        again = verifier.verify(original_model(driver), "exact")
        driver.is_deterministic = again.outcome is not Outcome.REFUTED
    return driver.is_deterministic


def _narrow_down(
    driver: Driver, attempt: Attempt, verifier: Verifier, found: Verification, stage: _BrokenStage | None
) -> Failure:
    first = stage.first if stage is not None else 0
    rewrites = attempt.context.rewrites[first:]
    reasons = {len(rewrites): found}

    def is_right(n_rewrites: int) -> bool:
        if n_rewrites in (0, len(rewrites)):
            return n_rewrites == 0
        trial = driver.attempt(max_rewrites=first + n_rewrites)
        contract = _contract_of(trial.context.rewrites[first:])
        reasons[n_rewrites] = verifier.verify(driver.write(trial, "bisect.onnx"), contract)
        return reasons[n_rewrites].outcome is not Outcome.REFUTED

    wrong = bisect_rewrites(is_right, len(rewrites))
    guilty, found = rewrites[wrong - 1], reasons[wrong]
    where = "with the runtime's optimizations only, " if found.failed_only_optimized else ""
    reason = f"rewrite {guilty.number} at {guilty.site!r}: {where}{found.reason}"
    before, after, case = _smallest_example(driver, guilty.number, found)
    return Failure(guilty.pass_name, reason, before, after, case, stage.name if stage is not None else "")


def _smallest_example(
    driver: Driver, number: int, found: Verification
) -> tuple[Program | None, Program | None, InputCase | None]:
    """The replaced region where that shows the difference, else the programs before and after the rewrite."""
    recorded = driver.attempt(max_rewrites=number + 1, record=True, only=number)
    for region in recorded.recorder.regions if recorded.recorder is not None else ():
        if region.number != number:
            continue
        try:
            local = verify_region(region.before, region.after, region.contract, driver.executor)
        except (ExecutionError, OutputError, ValueError):
            continue
        if local.outcome is Outcome.REFUTED:
            return region.before, region.after, local.failing_case
    before = driver.attempt(max_rewrites=number).program
    return before, recorded.program, found.failing_case
