"""One graph through a pipeline: what became of it, as a row."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

from backend_harness import Failure, check_valid
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import same_bits
from opgraft.ir.errors import ExecutionError, OutputError
from opgraft.ir.inputs import InputCase
from opgraft.ir.program import Program
from opgraft.ir.regions import RegionRecorder
from opgraft.ir.save import model_bytes
from opgraft.ir.verify import Outcome, Verifier, verify_region
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._pipeline import Pipeline
from opgraft.passes.opset.schemas import NEWEST_OPSET

from fuzz.generate import Graph
from fuzz.kernels import kernel_table
from fuzz.session import Feed, InProcess

SAME, WITHIN, AMPLIFIED = "same bits", "within tolerance", "amplified"
RIGHT = (SAME, WITHIN, AMPLIFIED)
NOT_RUN, FAILED, CRASHED = "not run", "failed", "crashed"
UNDEFINED = "undefined by the runtime"
"""Two runs of the original differ: the runtime reads memory that nothing was written to."""
_MAX_ROUNDS = 8
Told = Callable[[str], None]
Truths = list[tuple[InputCase, Feed]]


class Examiner:
    """Runs models before and after; `tell` hears which side runs, so that a crash is laid at the right door."""

    def __init__(self, runner: InProcess, tell: Told = lambda stage: None) -> None:
        self.runner = runner
        self.tell = tell

    def examine(self, graph: Graph, pipelines: tuple[str, ...]) -> dict[str, Any]:
        cases = [InputCase(name, feed) for name, feed in zip(graph.labels, graph.feeds, strict=True)]
        return self.compare(graph.model.SerializeToString(), cases, pipelines)

    def compare(self, original: bytes, cases: list[InputCase], pipelines: tuple[str, ...]) -> dict[str, Any]:
        """`outcome` and, for a failure, `detail`."""
        truths, reason = self.run_original(original, cases)
        if not truths:
            return {"outcome": NOT_RUN, "detail": reason}
        return self.compare_with(original, truths, pipelines)

    def run_original(self, original: bytes, cases: list[InputCase]) -> tuple[Truths, str]:
        """The cases that it runs on, with its outputs; and why it does not run on the others."""
        self.tell("original")
        truths: Truths = []
        try:
            handle = self.runner.load(original)
        except ExecutionError as error:
            return truths, f"load: {error}"[:400]
        reason = ""
        for case in cases:
            try:
                truths.append((case, self.runner.run(handle, case.arrays)))
            except (ExecutionError, TypeError) as error:
                # Special numbers, or the second sizes.
                reason = f"run: {error}"[:400]
                if not truths:
                    break
        return truths, reason

    def compare_with(self, original: bytes, truths: Truths, pipelines: tuple[str, ...]) -> dict[str, Any]:
        """The outputs of the original are known."""
        row: dict[str, Any] = {"outcome": SAME, "runs": len(truths)}
        try:
            return row | self._optimize(original, truths, pipelines)
        except Failure as failure:
            return row | self._judge(original, truths, str(failure))
        except Exception:  # noqa: BLE001 - whatever a pass raises is a failure of the pass
            return row | {"outcome": FAILED, "detail": traceback.format_exc(limit=-4)[-900:]}

    def _optimize(self, original: bytes, truths: Truths, pipelines: tuple[str, ...]) -> dict[str, Any]:
        program, context, _ = self._run_pipeline(original, pipelines)
        firings = dict(sorted(Counter(r.pass_name for r in context.rewrites).items()))
        data = model_bytes(program)
        if firings:
            check_valid(original, data)
        inexact = {r.pass_name for r in context.rewrites if r.contract is not Contract.EXACT}
        if not inexact:
            self._check_bits(data, truths)
            return {"firings": firings}
        self._check_exact_alone(original, truths, pipelines, inexact)
        found = self._verify(original, data, truths)
        if not found:
            return {"outcome": WITHIN, "firings": firings}
        self._check_amplified(original, pipelines, found)
        return {"outcome": AMPLIFIED, "firings": firings, "detail": found}

    def _judge(self, original: bytes, truths: Truths, detail: str) -> dict[str, Any]:
        """A difference, unless it is the runtime's own."""
        handle = self.runner.load(original)
        if any(same_bits(expected, self.runner.run(handle, case.arrays)) for case, expected in truths):
            return {"outcome": UNDEFINED, "detail": detail[:600]}
        return {"outcome": FAILED, "detail": detail[:600]}

    def _run_pipeline(
        self,
        original: bytes,
        pipelines: tuple[str, ...],
        disabled: frozenset[str] = frozenset(),
        *,
        record: bool = False,
    ) -> tuple[Program, PassContext, RegionRecorder]:
        self.tell("pipeline")
        program = capture_onnx(original)
        context = PassContext(
            program,
            evaluate=self.runner.evaluate,
            disabled=disabled,
            newest_opset=NEWEST_OPSET,
            kernels=kernel_table,
        )
        recorder = RegionRecorder(program)
        if record:
            context.recorder = recorder
        for text in pipelines:
            Pipeline.parse(text).run(program, context)
        return program, context, recorder

    def _check_bits(self, candidate: bytes, truths: Truths) -> None:
        self.tell("candidate")
        try:
            handle = self.runner.load(candidate)
        except ExecutionError as error:
            raise Failure(f"the result does not load: {error}") from None
        for case, expected in truths:
            try:
                outputs = self.runner.run(handle, case.arrays)
            except (ExecutionError, TypeError) as error:
                raise Failure(f"{case.name}: the result does not run: {error}") from None
            if list(outputs) != list(expected):
                raise Failure(f"outputs {list(outputs)} instead of {list(expected)}")
            found = same_bits(expected, outputs)
            if found:
                raise Failure(f"exact, {case.name}: {'; '.join(map(str, found[:3]))}")

    def _check_exact_alone(
        self, original: bytes, truths: Truths, pipelines: tuple[str, ...], inexact: set[str]
    ) -> None:
        """The exact passes by themselves keep the bits."""
        for _ in range(_MAX_ROUNDS):
            program, context, _ = self._run_pipeline(original, pipelines, frozenset(inexact))
            more = {r.pass_name for r in context.rewrites if r.contract is not Contract.EXACT}
            if not more:
                self._check_bits(model_bytes(program), truths)
                return
            inexact |= more

    def _verify(self, original: bytes, candidate: bytes, truths: Truths) -> str:
        """Under the numeric contract; says what is wrong."""
        self.tell("candidate")
        verifier = Verifier(capture_onnx(original), original, self.runner, cases=[case for case, _ in truths])
        found = verifier.verify(candidate, "numeric")
        if found.outcome is Outcome.UNVERIFIED:
            raise Failure(f"numeric: not verified: {found.reason}")
        return found.reason if found.outcome is Outcome.REFUTED else ""

    def _check_amplified(self, original: bytes, pipelines: tuple[str, ...], found: str) -> None:
        """A rounding that changed is no error of the pass when a later Floor or division by it makes it large: each
        numeric rewrite must then stand on its own, cut out of the graph. Raises Failure when one does not."""
        if "does not load" in found or "fails" in found:
            raise Failure(f"numeric: {found}")
        _, _, recorder = self._run_pipeline(original, pipelines, record=True)
        n_verified = 0
        for region in recorder.regions:
            if region.contract == Contract.EXACT.value:
                continue
            try:
                local = verify_region(region.before, region.after, region.contract, self.runner)
            except (ExecutionError, OutputError, ValueError):
                continue
            if local.outcome is Outcome.REFUTED:
                raise Failure(f"numeric: {region.pass_name} at {region.site!r}: {local.reason}; end to end: {found}")
            n_verified += local.outcome is Outcome.VERIFIED
        if not n_verified:
            raise Failure(f"numeric: {found}")
