"""Runs one case in one form through a pipeline and compares both sides on the reference executor."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.inliner
import onnx.reference
import onnx.shape_inference
from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import Difference, float32_error, same_bits, within_tolerance
from opgraft.ir.errors import ExecutionError
from opgraft.ir.float64 import to_float64
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._pipeline import Pipeline
from opgraft.passes.opset.schemas import NEWEST_OPSET

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend
from backend_forms import FORMS, Case, Feed, Form, NotApplicable, adversarial_feeds, nodes_of
from golden_execution import ConvTranspose, kernels

MAX_RECORDED_FEEDS = 6
FAILED = "failed"
PASSED = ("same bits", "within tolerance")


class Failure(Exception):
    """What a row is marked as failed for."""


@dataclass
class Evidence:
    """One run of the original: its inputs and outputs."""

    label: str
    feed: Feed
    outputs: dict[str, Any]


class Harness:
    """Holds the child processes in which everything runs."""

    def __init__(self) -> None:
        # Hostile numbers (a size of infinity) end in the child; a minute is far beyond any ordinary run.
        self._executor = Executor(time_limit_s=60)
        self._evaluate = ConstantEvaluator()
        self._errors: tuple[Case | None, list[float]] = (None, [])

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()
        self._evaluate.close()

    def passes(self, case: Case) -> bool:
        """Whether the runtime gives the recorded outputs with its optimizations off."""
        try:
            handle = self._executor.load(case.model.SerializeToString())
            outputs = self._executor.run(handle, case.feeds[0] if case.feeds else {})
        except (ExecutionError, TypeError):
            return False
        return case.expected is None or not backend.compare(
            case.expected, [*outputs.values()][: len(case.expected)], case.rtol, case.atol
        )

    def accepted(self, model: bytes, feeds: Iterable[Feed]) -> list[Feed]:
        """Those inputs that the model takes."""
        found = []
        try:
            handle = self._executor.load(model)
        except ExecutionError:
            return []
        for feed in feeds:
            try:
                self._executor.run(handle, feed)
            except (ExecutionError, TypeError):
                continue
            found.append(feed)
        return found

    def examine(self, case: Case, form_name: str) -> dict[str, Any]:
        """One row: what became of the case in this form."""
        row: dict[str, Any] = {"test": case.name, "kind": case.kind, "form": form_name}
        try:
            form = FORMS[form_name](case)
        except NotApplicable as why:
            return row | {"outcome": "not applicable", "detail": str(why)}
        row["variant"] = form.variant
        if form_name == "doubled" and any(_updates_statistics(node) for node in nodes_of(case.model)):
            why = "in training mode the runtime writes running statistics over initializers, which both copies share"
            return row | {"outcome": "not run", "detail": why}
        original = form.model.SerializeToString()
        try:
            evidence = self._run_original(original, form, case)
        except ExecutionError as error:
            return row | {"outcome": "not run", "detail": str(error)[:300]}
        try:
            found = form_difference(form, evidence[0].outputs, case)
            if found:
                raise Failure(f"the form itself is wrong: {found}")
            row |= self._optimize(original, case, evidence)
        except Failure as failure:
            row |= {"outcome": FAILED, "detail": str(failure)[:600]}
        except Exception:  # noqa: BLE001 - whatever a pass raises is a failure of the pass
            row |= {"outcome": FAILED, "detail": traceback.format_exc(limit=-4)[-900:]}
        return row

    def _run_original(self, original: bytes, form: Form, case: Case) -> list[Evidence]:
        handle = self._executor.load(original)
        evidence = []
        feeds = [(f"inputs {n}", feed) for n, feed in enumerate(form.feeds[:MAX_RECORDED_FEEDS])]
        feeds += adversarial_feeds(form.feeds[0]) if case.kind != "light" else []
        for label, feed in feeds:
            try:
                evidence.append(Evidence(label, feed, self._executor.run(handle, feed)))
            except ExecutionError:
                if not evidence:
                    raise
                # What the original rejects is no evidence: special numbers, or sizes that do not go with the weights
                # of the form, which are those of the first inputs.
        self._executor.release(handle)
        return evidence

    def _optimize(self, original: bytes, case: Case, evidence: list[Evidence]) -> dict[str, Any]:
        program, context = self.run_pipeline(original, case.pipelines)
        firings = Counter(r.pass_name for r in context.rewrites)
        row = {"outcome": PASSED[0], "firings": dict(sorted(firings.items())), "feeds": len(evidence)}
        data = model_bytes(program)
        row["changed"] = bool(context.rewrites)
        if not context.rewrites:
            self._compare(data, evidence)
            return row
        check_valid(original, data)
        numeric = {r.pass_name for r in context.rewrites if r.contract is not Contract.EXACT}
        self._compare(data, evidence, self._own_errors(case) if numeric else None)
        row["outcome"] = PASSED[1] if numeric else PASSED[0]
        while numeric:
            # The exact passes by themselves keep the bits.
            program, context = self.run_pipeline(original, case.pipelines, disabled=frozenset(numeric))
            more = {r.pass_name for r in context.rewrites if r.contract is not Contract.EXACT}
            if not more:
                self._compare(model_bytes(program), evidence)
                break
            numeric |= more
        if case.variant(8, "optimized") == 0:
            self._check_loads_optimized(original, data, evidence[0].feed)
            row["loaded_optimized"] = True
        return row

    def run_pipeline(
        self, original: bytes, pipelines: tuple[str, ...], disabled: frozenset[str] = frozenset()
    ) -> tuple[Program, PassContext]:
        program = capture_onnx(original)
        context = PassContext(
            program, evaluate=self._evaluate, disabled=disabled, newest_opset=NEWEST_OPSET, kernels=kernels
        )
        for text in pipelines:
            Pipeline.parse(text).run(program, context)
        return program, context

    def _compare(self, candidate: bytes, evidence: list[Evidence], errors: list[float] | None = None) -> None:
        """Bit by bit, or with the original's own float32 errors, per output of the case."""
        try:
            handle = self._executor.load(candidate)
        except ExecutionError as error:
            raise Failure(f"the result does not load: {error}") from None
        for item in evidence:
            try:
                outputs = self._executor.run(handle, item.feed)
            except ExecutionError as error:
                raise Failure(f"{item.label}: the result does not run: {error}") from None
            if list(outputs) != list(item.outputs):
                raise Failure(f"outputs {list(outputs)} instead of {list(item.outputs)}")
            found: list[Difference]
            if errors is None:
                found = same_bits(item.outputs, outputs)
            else:
                # Every form has the outputs of the case, once or several times, in their order.
                allowed = {name: errors[i % len(errors)] for i, name in enumerate(item.outputs)}
                found = within_tolerance(item.outputs, outputs, allowed)
            if found:
                contract = "exact" if errors is None else "numeric"
                raise Failure(f"{contract}, {item.label}: {'; '.join(map(str, found[:3]))}")
        self._executor.release(handle)

    def _own_errors(self, case: Case) -> list[float]:
        """Per output of the case, the largest error of its float32 over its inputs: a few numbers alone are a poor
        estimate of a rounding error. Measured on the case as it is; a form computes the same."""
        if self._errors[0] is not case:
            model = case.model.SerializeToString()
            wide = model_bytes(Program(to_float64(capture_onnx(model).model)))
            if not self._has_float64(wide):
                self._errors = (case, [0.0])  # nothing to measure against: one unit in the last place is allowed
                return [0.0]
            worst = [0.0] * len(case.model.graph.output)
            handle = self._executor.load(model)
            for feed in [*case.feeds[:MAX_RECORDED_FEEDS], *case.error_feeds] or [{}]:
                try:
                    outputs = self._executor.run(handle, feed)
                except ExecutionError:
                    continue
                errors = float32_error(outputs, self._run_float64(wide, feed))
                for index, name in enumerate(outputs):
                    worst[index] = max(worst[index], errors.get(name, 0.0))
            if not np.isfinite(worst).all():
                raise Failure(f"no float64 reference: errors {worst}")
            self._errors = (case, worst)
        return self._errors[1]

    def _has_float64(self, model: bytes) -> bool:
        try:
            self._executor.load(model)
        except ExecutionError:
            try:
                _reference(model)
            except (NotImplementedError, AttributeError):  # parameters of functions that nobody gives
                return False
        return True

    def _run_float64(self, model: bytes, feed: Feed) -> dict[str, Any]:
        given = {n: _widened(v) for n, v in feed.items()}
        try:
            return dict(self._executor.run_once(model, given))
        except ExecutionError:
            pass  # no kernel of that type: the onnx package's reference implementation has all types
        evaluator = _reference(model)
        with np.errstate(all="ignore"):
            return dict(zip(evaluator.output_names, evaluator.run(None, given), strict=True))

    def _check_loads_optimized(self, original: bytes, data: bytes, feed: Feed) -> None:
        """Where the runtime with its default optimizations takes the original, it takes the result."""
        try:
            self._executor.run_once(original, feed, optimized=True)
        except ExecutionError:
            return
        try:
            self._executor.run_once(data, feed, optimized=True)
        except ExecutionError as error:
            raise Failure(f"fails with the runtime's optimizations: {error}") from None


def _updates_statistics(node: onnx.NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and any(a.name == "training_mode" and a.i for a in node.attribute)


def form_difference(form: Form, outputs: dict[str, Any], case: Case) -> str:
    """Where the form does not compute what the case does: it would be no evidence about the case."""
    for copy in form.unwrap(outputs) if case.expected is not None else ():
        found = backend.compare(case.expected, copy[: len(case.expected or [])], case.rtol, case.atol)
        if found:
            return found
    return ""


def _reference(model: bytes) -> onnx.reference.ReferenceEvaluator:
    inlined = onnx.inliner.inline_local_functions(onnx.ModelProto.FromString(model))
    return onnx.reference.ReferenceEvaluator(inlined, new_ops=[ConvTranspose])


def _widened(value: Any) -> Any:
    if isinstance(value, list):
        return [_widened(v) for v in value]
    return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value


def check_valid(original: bytes, data: bytes) -> None:
    """What the onnx package's checker and shape inference accept before, they accept afterwards."""
    try:
        onnx.checker.check_model(original)
    except onnx.checker.ValidationError:
        return
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        raise Failure(f"the checker rejects the result: {error}") from None
    try:
        onnx.shape_inference.infer_shapes(original, check_type=True, strict_mode=True)
    except Exception:  # noqa: BLE001 - several types; the original says nothing then
        return
    try:
        onnx.shape_inference.infer_shapes(data, check_type=True, strict_mode=True)
    except Exception as error:  # noqa: BLE001 - as above
        raise Failure(f"shape inference rejects the result: {error}") from None


__all__ = ["FAILED", "FORMS", "PASSED", "Failure", "Harness", "check_valid"]
