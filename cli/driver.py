"""The whole path of one model: capture, rewrite, verify, take back what fails, measure, emit.

This is what the command `optimize` and `opgraft.optimize()` run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opgraft.cli.choose_pipeline import pipeline_of
from opgraft.cli.options import DEFAULT_PIPELINE, Options
from opgraft.cli.report import Report, count_nodes
from opgraft.ir.capture import capture
from opgraft.ir.kernel_table import Kernel, KernelTable
from opgraft.ir.program import Program
from opgraft.ir.save import check_output, check_sources, save
from opgraft.ir.target import HOST, Target
from opgraft.passes._pass import Contract, PassContext, Recorder
from opgraft.passes._pipeline import Pipeline, StageResult

if TYPE_CHECKING:
    import torch
    from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.cli.decisions import Decisions
    from opgraft.ir.inputs import InputCase
    from opgraft.ir.regions import RegionRecorder
    from opgraft.ir.verify import Verifier
    from opgraft.passes._pipeline import Instrument

__all__ = ["DEFAULT_PIPELINE", "Attempt", "Driver", "Options", "Result", "optimize"]

Progress = Callable[[str], AbstractContextManager[Any]]


@dataclass
class Attempt:
    """One run of the pipeline on a fresh copy of the input."""

    program: Program
    context: PassContext
    stages: list[StageResult]
    recorder: RegionRecorder | None = None

    @property
    def contract(self) -> Contract:
        kinds = {r.contract for r in self.context.rewrites}
        return Contract.EXACT if kinds <= {Contract.EXACT} else Contract.NUMERIC

    @property
    def fired(self) -> set[str]:
        """Names of the passes that rewrote something."""
        return {r.pass_name for r in self.context.rewrites}


class Driver:
    """Holds what one run shares: the input, the child processes, the report."""

    def __init__(self, source: Any, options: Options, progress: Progress | None = None) -> None:
        """`source` is a path or whatever `capture` takes without example inputs."""
        self.options = options
        self.progress: Progress = progress or (lambda _: nullcontext())
        self.pipeline = pipeline_of(options)
        if options.target != HOST:
            Target.load(options.target)
        start = time.perf_counter()
        with self.progress("capture"):
            self.original = capture(source)
        self.report = Report(str(self.original.path or "program"), target=options.target, pipeline=str(self.pipeline))
        self.report.notes += self.original.notes
        self.report.seconds["capture"] = time.perf_counter() - start
        self.report.nodes_before = count_nodes(self.original)
        self.taken_back: dict[str, str] = {}
        if options.decisions is not None:
            options.decisions.check(self.fingerprint, options.target)
            self.taken_back.update(options.decisions.taken_back)
        self.blocked = self._newer_than_known()
        """Why no pass may run on this model; empty when they may."""
        self.given = self._given_inputs()
        self.verifier: Verifier | None = None
        self.is_deterministic: bool | None = None
        """Whether two runs of the input agree; None while nobody asked."""
        self.reproducer_folder: Path | None = None
        """The folder for models that reproduce refuted rewrites; None where nothing is written."""
        self._folder: Path | None = None
        self._executor: Executor | None = None
        self._evaluator: ConstantEvaluator | None = None
        self._n_stages: int | None = None

    # -- resources ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self._evaluator is not None:
            self._evaluator.close()
        if self._executor is not None:
            self._executor.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def executor(self) -> Executor:
        if self._executor is None:
            from opgraft.backends.onnxruntime.executor import Executor

            self._executor = Executor(
                memory_limit_bytes=self.options.memory_limit_bytes, time_limit_s=self.options.time_limit_s
            )
        return self._executor

    def folder(self, beside: Path | None = None) -> Path:
        """A temporary folder, on the output's file system so that the result can be moved into place."""
        if self._folder is None:
            parent = beside.parent if beside is not None else None
            self._folder = Path(tempfile.mkdtemp(prefix=".opgraft-", dir=parent))
        return self._folder

    def _evaluate(self, model: bytes) -> Any:
        # Most models have nothing to fold on the executor: its modules are imported with the first constant.
        if self._evaluator is None:
            from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator

            self._evaluator = ConstantEvaluator()
        return self._evaluator(model)

    # -- facts -------------------------------------------------------------------------------------------------

    @cached_property
    def fingerprint(self) -> str:
        from opgraft.cli.decisions import fingerprint

        return fingerprint(self.original)

    @cached_property
    def target(self) -> Target:
        return Target.load(self.options.target)

    @property
    def is_foreign(self) -> bool:
        """The target is another machine."""
        return self.options.target != HOST

    def _newest_opset(self) -> int:
        # Asking the runtime costs its import; one pass wants to know.
        wanted = self.is_foreign or any(p.name == "upgrade-opset" for p in self.pipeline.passes)
        return (self.target.newest_opset or 0) if wanted else 0

    @cached_property
    def _kernels(self) -> KernelTable | None:
        """The kernels of this machine's runtime; None when it does not tell."""
        rows = self.executor.kernels()
        return KernelTable(Kernel(*row) for row in rows) if rows else None

    def _newer_than_known(self) -> str:
        import onnx

        newest = onnx.defs.onnx_opset_version()
        if self.original.opset <= newest or self.options.allow_unverified:
            return ""
        return f"operator set {self.original.opset} is newer than the newest known ({newest})"

    def _given_inputs(self) -> list[InputCase]:
        if not self.options.inputs:
            return []
        from opgraft.cli.given_inputs import check_inputs

        return [check_inputs(self.original, arrays, str(i + 1)) for i, arrays in enumerate(self.options.inputs)]

    # -- rewriting ---------------------------------------------------------------------------------------------

    def attempt(
        self,
        *,
        max_rewrites: int | None = None,
        record: bool = False,
        only: int | None = None,
        in_place: bool = False,
        instruments: list[Instrument] | None = None,
        recorder: Recorder | None = None,
    ) -> Attempt:
        """Run the pipeline on a fresh copy, without the passes that were taken back.

        `record` keeps the regions that rewrites replace, or only that of number `only`; else `recorder` sees rewrites.
        `in_place` rewrites the captured program itself: no further attempt is then possible.
        """
        program = self.original if in_place else self.original.clone()
        disabled = {p.name for p in self.pipeline.passes} if self.blocked else set(self.taken_back)
        context = PassContext(
            program,
            evaluate=self._evaluate,
            disabled=frozenset(disabled),
            max_rewrites=max_rewrites,
            newest_opset=self._newest_opset(),
            kernels=None if self.is_foreign else lambda: self._kernels,
            keep_near_misses=self.options.explain,
        )
        regions = None
        context.recorder = recorder
        if record:
            from opgraft.ir.regions import RegionRecorder

            context.recorder = regions = RegionRecorder(program, only=only)
        is_first = self._n_stages is None
        shown = [*self.pipeline.instruments, *self.options.instruments] if is_first else []
        watching = [*shown, *(instruments or [])]
        stages = Pipeline(self.pipeline.stages[: self._n_stages], watching).run(program, context)
        if is_first:
            # An instrument may have ended the run: all others end there as well.
            self._n_stages = len(stages)
        return Attempt(program, context, stages, regions)

    def write(self, attempt: Attempt, name: str) -> Path:
        """Save a candidate into the temporary folder."""
        return self.write_program(attempt.program, name)

    def write_program(self, program: Program, name: str) -> Path:
        path = self.folder() / name
        save(program, path, force=True)
        return path


@dataclass
class Result:
    """A finished run: the optimized program, the report, and where it was written."""

    program: Program
    report: Report
    decisions: Decisions | None = None
    """What replays this run; None when nothing was verified or measured."""
    output: Path | None = None

    def save(self, output: str | Path, *, force: bool = False) -> None:
        save(self.program, output, force=force)

    def session(self, **options: Any) -> Any:
        """An ONNX Runtime session on the result."""
        from opgraft.backends.onnxruntime.session import Session

        if self.output is not None:
            return Session(self.output, **options)
        from opgraft.ir.save import model_bytes

        return Session(model_bytes(self.program), **options)

    def to_torch(self) -> torch.fx.GraphModule:
        """The result as a torch module; parameters that did not change keep their names in the state dict."""
        from opgraft.ir.emit_fx import emit_fx

        return emit_fx(self.program)


def optimize(
    source: Any,
    output: str | Path | None = None,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Result:
    """Optimize `source` and write it to `output` when given.

    Raises an OpgraftError on bad input, unknown options, and outputs that cannot be written. A rewrite that fails
    verification is taken back and named in the report; that is no error.
    """
    from opgraft.cli.emit import emit, fill_report

    options = options or Options()
    destination = Path(output) if output is not None and not options.dry_run else None
    if destination is not None:
        origin = source.path if isinstance(source, Program) else source
        known = Path(origin) if isinstance(origin, (str, Path)) else None
        # A missing input is the capture's to report.
        if known is None or os.path.exists(known):
            check_output(destination, known, force=options.force)
    with Driver(source, options, progress) as driver:
        if destination is not None:
            check_sources(driver.original, destination)
            if not options.is_rewrite_only:
                driver.folder(beside=destination)
            driver.reproducer_folder = destination.with_suffix(".refuted")
        start = time.perf_counter()
        with driver.progress("rewrite"):
            attempt = driver.attempt(
                record=options.verify != "off",
                in_place=options.is_rewrite_only and not isinstance(source, Program),
            )
        driver.report.seconds["rewrite"] = time.perf_counter() - start
        attempt, candidate = _judge(driver, attempt, Path(output).name if output is not None else "candidate.onnx")
        if destination is not None:
            emit(attempt.program, candidate, destination, options)
        fill_report(driver, attempt, destination)
        return Result(attempt.program, driver.report, _decisions(driver), destination)


def _judge(driver: Driver, attempt: Attempt, name: str) -> tuple[Attempt, Path | None]:
    """What is left of the attempt after verification and measurement, and where it was saved for them."""
    options = driver.options
    if options.is_rewrite_only:
        driver.report.outcome_reason = driver.blocked or "verification is off"
        return attempt, None
    from opgraft.cli.prove import prove
    from opgraft.cli.weigh import weigh

    attempt, candidate = prove(driver, attempt, name)
    if options.decisions is not None:
        driver.report.decision = "replayed"
    elif options.measure:
        attempt, candidate = weigh(driver, attempt, candidate, name)
    return attempt, candidate


def _decisions(driver: Driver) -> Decisions | None:
    if driver.options.is_rewrite_only:
        return None
    from opgraft.cli.decisions import Decisions

    return Decisions(driver.fingerprint, str(driver.pipeline), driver.options.target, dict(driver.taken_back))
