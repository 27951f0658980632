"""The whole path of one model: capture, rewrite, verify, take back what fails, measure, emit.

This is what the command `optimize` and `opgraft.optimize()` run.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from opgraft.cli.decisions import Decisions, fingerprint
from opgraft.cli.report import PassReport, Report, count_nodes
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import OutputError, UsageError
from opgraft.ir.program import Program
from opgraft.ir.save import check_output, data_path, save
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._pipeline import Instrument, Pipeline, StageResult

if TYPE_CHECKING:
    import numpy as np
    from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.ir.verify import Verifier

DEFAULT_PIPELINE = "optimize"
Verify = Literal["off", "final", "each"]
Progress = Callable[[str], AbstractContextManager[Any]]


@dataclass
class Options:
    """How to run; the command line's options have the same names."""

    passes: str | Pipeline = DEFAULT_PIPELINE
    """Pipeline text or an object."""
    target: str = "cpu"
    verify: Verify = "final"
    measure: bool = True
    threads: tuple[int, ...] = (1, 2)
    force: bool = False
    dry_run: bool = False
    allow_unverified: bool = False
    decisions: Decisions | None = None
    use_cache: bool = True
    explain: bool = False
    instruments: list[Instrument] = field(default_factory=list)
    calibration: Mapping[str, np.ndarray] | None = None
    seed: int = 0
    memory_limit_bytes: int | None = None
    time_limit_s: float = 300.0


@dataclass
class Attempt:
    """One run of the pipeline on a fresh copy of the input."""

    program: Program
    context: PassContext
    stages: list[StageResult]
    recorder: Any = None

    @property
    def contract(self) -> Contract:
        kinds = {r.contract for r in self.context.rewrites}
        return Contract.EXACT if kinds <= {Contract.EXACT} else Contract.NUMERIC


class Driver:
    """Holds what one run shares: the input, the child processes, the report."""

    def __init__(self, source: str | Path | Program, options: Options, progress: Progress | None = None) -> None:
        self.options = options
        self.progress: Progress = progress or (lambda _: nullcontext())
        wanted = options.decisions.pipeline if options.decisions else options.passes
        self.pipeline = wanted if isinstance(wanted, Pipeline) else Pipeline.parse(wanted)
        self.pipeline.instruments = [*self.pipeline.instruments, *options.instruments]
        from opgraft.ir.target import Target

        self.target = Target.load(options.target)
        start = time.perf_counter()
        with self.progress("capture"):
            self._source = source
            self.original = source if isinstance(source, Program) else capture_onnx(source)
        self.report = Report(
            source=str(self.original.path or "program"), target=options.target, pipeline=str(self.pipeline)
        )
        self.report.notes += self.original.notes
        self.report.seconds["capture"] = time.perf_counter() - start
        self.report.nodes_before = count_nodes(self.original)
        self.fingerprint = fingerprint(self.original) if options.measure or options.decisions else ""
        self.taken_back: dict[str, str] = {}
        if options.decisions is not None:
            if options.decisions.fingerprint != self.fingerprint:
                raise UsageError("the decisions file belongs to another model", remedy="make a new one without it")
            self.taken_back.update(options.decisions.taken_back)
        self.verifier: Verifier | None = None
        self.reproducer_folder: Path | None = None
        """Where models that reproduce a refuted rewrite are written."""
        self._folder: Path | None = None
        self._executor: Executor | None = None
        self._evaluator: ConstantEvaluator | None = None

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

    def _evaluate(self) -> ConstantEvaluator:
        if self._evaluator is None:
            from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator

            self._evaluator = ConstantEvaluator()
        return self._evaluator

    # -- rewriting ---------------------------------------------------------------------------------------------

    def fresh(self) -> Program:
        """The input again, free to be changed."""
        return self.original.clone()

    def attempt(self, *, max_rewrites: int | None = None, record: bool = False, only: int | None = None) -> Attempt:
        """Run the pipeline on a fresh copy, without the passes that were taken back."""
        program = self.fresh()
        context = PassContext(
            program,
            evaluate=self._evaluate(),
            disabled=frozenset(self.taken_back),
            max_rewrites=max_rewrites,
            newest_opset=self.target.newest_opset or 0,
            keep_near_misses=self.options.explain,
        )
        recorder = None
        if record:
            from opgraft.ir.regions import RegionRecorder

            recorder = RegionRecorder(program, only=only)
            context.recorder = recorder
        stages = self.pipeline.run(program, context)
        return Attempt(program, context, stages, recorder)

    def write(self, attempt: Attempt, name: str) -> Path:
        """Save a candidate into the temporary folder."""
        path = self.folder() / name
        save(attempt.program, path, force=True)
        return path


@dataclass
class Result:
    """A finished run: the optimized program, the report, and where it was written."""

    program: Program
    report: Report
    decisions: Decisions
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


def optimize(
    source: str | Path | Program,
    output: str | Path | None = None,
    *,
    options: Options | None = None,
    progress: Progress | None = None,
) -> Result:
    """Optimize `source` and write it to `output` when given.

    Raises an OpgraftError on bad input, unknown options, and outputs that cannot be written. A rewrite that fails
    verification is taken back and named in the report; that is no error.
    """
    from opgraft.cli.prove import prove
    from opgraft.cli.weigh import weigh

    options = options or Options()
    destination = Path(output) if output is not None else None
    if destination is not None and not options.dry_run:
        _check_destination(source, destination, options)
    with Driver(source, options, progress) as driver:
        report = driver.report
        if destination is not None and not options.dry_run:
            driver.folder(beside=destination)
            driver.reproducer_folder = destination.parent
        start = time.perf_counter()
        with driver.progress("rewrite"):
            attempt = driver.attempt(record=options.verify != "off")
        report.seconds["rewrite"] = time.perf_counter() - start
        candidate = None
        if not options.dry_run or options.verify != "off" or options.measure:
            name = destination.name if destination is not None else "candidate.onnx"
            if options.verify != "off" or options.measure:
                attempt, candidate = prove(driver, attempt, name)
                if options.measure and options.decisions is None:
                    attempt, candidate = weigh(driver, attempt, candidate, name)
        _fill_report(driver, attempt)
        if destination is not None and not options.dry_run:
            _emit(attempt.program, candidate, destination, options)
            report.output = str(destination)
            report.bytes_after = _file_bytes(destination)
        decisions = Decisions(driver.fingerprint, str(driver.pipeline), dict(driver.taken_back))
        return Result(attempt.program, report, decisions, destination if not options.dry_run else None)


def _check_destination(source: str | Path | Program, destination: Path, options: Options) -> None:
    origin = source.path if isinstance(source, Program) else Path(source)
    if origin is not None and origin.exists():
        check_output(destination, origin, force=options.force)


def _emit(program: Program, candidate: Path | None, destination: Path, options: Options) -> None:
    if candidate is None:
        save(program, destination, force=options.force)
        return
    try:
        data = data_path(candidate)
        if data.exists():
            data.replace(data_path(destination))
        candidate.replace(destination)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror or error}", where=str(destination)) from None


def _fill_report(driver: Driver, attempt: Attempt) -> None:
    report = driver.report
    report.nodes_after = count_nodes(attempt.program)
    report.contract = attempt.contract.value
    report.bytes_before = _file_bytes(driver.original.path)
    seconds = attempt.context.facts.get("seconds", {})
    counts: dict[str, int] = {}
    for rewrite in attempt.context.rewrites:
        counts[rewrite.pass_name] = counts.get(rewrite.pass_name, 0) + 1
    contracts = {p.name: p.contract.value for p in driver.pipeline.passes}
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
    report.near_misses = {
        name: sorted({str(m) for m in misses}) for name, misses in attempt.context.near_misses.items()
    }


def _file_bytes(path: Path | None) -> int:
    if path is None or not path.exists():
        return 0
    from opgraft.ir.external import all_tensors

    total = path.stat().st_size
    program = capture_onnx(path)
    files = {str(getattr(t, "path", "")) for _, t in all_tensors(program.model)} - {"", str(path)}
    return total + sum(Path(f).stat().st_size for f in files if Path(f).is_file())
