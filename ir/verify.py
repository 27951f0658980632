"""Is the candidate the same program as the original? Evidence from runs, and what it says.

The original's outputs are computed once and the original released, so that both need not fit in memory together.
Every case runs in the reference executor (optimizations off, one thread); the first ones also with all of the runtime's
optimizations on: a candidate that is wrong only there met a defect of the runtime.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from opgraft.ir.compare import (
    float32_error,
    largest_finite,
    max_abs_error,
    same_bits,
    tolerance_of,
    within_tolerance,
)
from opgraft.ir.errors import ExecutionError
from opgraft.ir.float64 import to_float64
from opgraft.ir.inputs import InputCase, UnsupportedInput, input_cases
from opgraft.ir.program import Program, Reference
from opgraft.ir.rounding import move_inputs, move_weights
from opgraft.ir.save import model_bytes

# Enough for several batches and lengths with every style once; more cases repeat what these show.
_MAX_CASES = 14
_MAX_OPTIMIZED_CASES = 2
# A model whose float64 copy is larger than this is not replayed as a whole.
_MAX_FLOAT64_BYTES = 3 << 30
_N_PERTURBATIONS = 2
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


class Runner(Protocol):
    """What verification needs of a runtime; `backends.onnxruntime.executor.Executor` is one."""

    def load(self, model: Path | str | bytes, *, optimized: bool = False) -> Any: ...

    def run(self, handle: Any, inputs: Mapping[str, Any]) -> dict[str, Any]: ...

    def release(self, handle: Any) -> None: ...


class Outcome(enum.Enum):
    VERIFIED = "verified"
    REFUTED = "refuted"
    UNVERIFIED = "unverified"


@dataclass
class Verification:
    """The evidence of one comparison."""

    outcome: Outcome
    contract: str
    reason: str = ""
    cases: list[str] = field(default_factory=list)
    rejected_cases: int = 0
    max_abs_error: float = 0.0
    tolerance: float = 0.0
    """At the output where `max_abs_error` was found."""
    float32_error: float = 0.0
    float64_source: str = ""
    differences: list[str] = field(default_factory=list)
    failing_case: InputCase | None = None
    failed_only_optimized: bool = False
    notes: list[str] = field(default_factory=list)


@dataclass
class _Truth:
    """What the original gives for one case."""

    case: InputCase
    outputs: dict[str, Any]
    optimized: dict[str, Any] | None = None
    errors: dict[str, float] | None = None


class Verifier:
    """Compares candidates with one original; its outputs are computed at the first use and kept."""

    def __init__(
        self,
        original: Program,
        model: Path | bytes,
        runner: Runner,
        *,
        seed: int = 0,
        cases: Sequence[InputCase] | None = None,
    ) -> None:
        """`model` is `original` as a file or bytes. `cases` replaces the generated inputs."""
        self._program = original
        self._model = model
        self._runner = runner
        self._seed = seed
        self._given = list(cases) if cases is not None else None
        self._truths: list[_Truth] | None = None
        self._rejected = 0
        self._reason = ""
        self._float64_source = ""
        self.notes: list[str] = []

    def verify(self, candidate: Path | bytes, contract: str) -> Verification:
        """Compare under `exact` or `numeric`."""
        truths = self._collect()
        result = Verification(Outcome.VERIFIED, contract, rejected_cases=self._rejected, notes=list(self.notes))
        if not truths:
            result.outcome, result.reason = Outcome.UNVERIFIED, self._reason
            return result
        if contract != "exact":
            self._measure_float32_error(truths)
            result.float64_source = self._float64_source
        self._compare(candidate, truths, result, optimized=False)
        if result.outcome is Outcome.VERIFIED:
            self._measure_float32_error(truths)
            self._compare(candidate, truths[:_MAX_OPTIMIZED_CASES], result, optimized=True)
        return result

    def ordinary_case(self) -> InputCase | None:
        """The largest case that measurement can use."""
        ordinary = [t.case for t in self._collect() if t.case.is_ordinary]
        return max(ordinary, key=lambda c: sum(a.size for a in c.arrays.values()), default=None)

    def tolerances(self, case: InputCase) -> dict[str, float]:
        """What NUMERIC allows each float output of a case that was compared."""
        truths = self._collect()
        self._measure_float32_error(truths)
        truth = next(t for t in truths if t.case is case)
        errors = truth.errors or {}
        return {name: tolerance_of(error, truth.outputs[name]) for name, error in errors.items()}

    def _collect(self) -> list[_Truth]:
        if self._truths is None:
            self._truths = []
            try:
                cases = self._given if self._given is not None else input_cases(self._program, seed=self._seed)
                if any(n.op_type in _RANDOM for n in self._program.graph.all_nodes()):
                    self._reason = "random operators: no two runs agree"
                else:
                    self._truths = self._run_original(cases)
            except UnsupportedInput as error:
                self._reason = f"no inputs can be made up: {error}"
            except ExecutionError as error:
                if error.is_fatal:
                    raise
                self._reason = str(error)
        return self._truths

    def _run_original(self, cases: Sequence[InputCase]) -> list[_Truth]:
        truths: list[_Truth] = []
        handle = self._runner.load(self._model)
        failures: set[str] = set()
        try:
            for case in cases:
                binding = case.name.partition(", ")[2]
                if len(truths) >= _MAX_CASES or (binding and binding in failures):
                    continue
                if _is_repetition(case, truths):
                    continue
                try:
                    truths.append(_Truth(case, self._runner.run(handle, case.arrays)))
                except ExecutionError as error:
                    if error.is_fatal:
                        # A model that brings the runtime down at once is refused; one that does so only on some
                        # sizes is compared on the others, and no further size is risked.
                        if not truths:
                            raise
                        break
                    self._rejected += 1
                    self._reason = f"the original does not run on generated inputs: {error}"
                    failures.add(binding)
        finally:
            self._runner.release(handle)
        self._run_optimized(truths)
        return truths

    def _run_optimized(self, truths: Sequence[_Truth]) -> None:
        try:
            handle = self._runner.load(self._model, optimized=True)
        except ExecutionError as error:
            self.notes.append(f"with its optimizations on, the runtime rejects the original: {error}")
            return
        try:
            for truth in truths[:_MAX_OPTIMIZED_CASES]:
                truth.optimized = self._runner.run(handle, truth.case.arrays)
        except ExecutionError as error:
            self.notes.append(f"with its optimizations on, the runtime fails on the original: {error}")
        finally:
            self._runner.release(handle)

    def _measure_float32_error(self, truths: Sequence[_Truth]) -> None:
        if all(t.errors is not None for t in truths):
            return
        answers = self._float64_answers([t.case for t in truths])
        for truth, answer in zip(truths, answers, strict=True):
            truth.errors = float32_error(truth.outputs, answer) if answer is not None else {}
        if not any(truth.errors for truth in truths):
            self._estimate_float32_error(truths)
        _even_out(truths)

    def _float64_answers(self, cases: Sequence[InputCase]) -> list[dict[str, Any] | None]:
        reference = self._program.reference_float64
        if reference is not None:
            self._float64_source = "the torch module in float64"
            return [_try_reference(reference, case) for case in cases]
        weights = sum(v.const_value.nbytes for v in self._program.graph.initializers.values() if v.const_value)
        if weights > _MAX_FLOAT64_BYTES:
            self.notes.append("too large to be replayed in float64: no rounding is allowed for")
            return [None] * len(cases)
        try:
            wide = Program(to_float64(self._program.model))
            handle = self._runner.load(model_bytes(wide))
        except (ExecutionError, OSError) as error:
            self.notes.append(f"no float64 kernels for this model, no rounding is allowed for: {error}")
            return [None] * len(cases)
        answers: list[dict[str, Any] | None] = []
        for case in cases:
            try:
                answers.append(self._runner.run(handle, _widen(case.arrays)))
            except ExecutionError:
                answers.append(None)
        self._runner.release(handle)
        self._float64_source = "the original model in float64"
        return answers

    def _estimate_float32_error(self, truths: Sequence[_Truth]) -> None:
        """Without float64 (the runtime has no such convolution): see `ir.rounding`."""
        rng = np.random.default_rng(self._seed)
        has_floats = any(a.dtype == np.float32 for t in truths for a in t.case.arrays.values())
        try:
            for _ in range(_N_PERTURBATIONS):
                handle = self._runner.load(self._model if has_floats else move_weights(self._program, rng))
                for truth in truths:
                    arrays = move_inputs(truth.case.arrays, rng) if has_floats else truth.case.arrays
                    moved = float32_error(truth.outputs, self._runner.run(handle, arrays))
                    known = truth.errors or {}
                    truth.errors = {name: max(error, known.get(name, 0.0)) for name, error in moved.items()}
                self._runner.release(handle)
            what = "inputs" if has_floats else "weights"
            self._float64_source = f"the original model under changes of its {what} by one unit in the last place"
        except (ExecutionError, OSError) as error:
            self.notes.append(f"rounding could not be estimated: {error}")

    def _compare(
        self, candidate: Path | bytes, truths: Sequence[_Truth], result: Verification, *, optimized: bool
    ) -> None:
        try:
            handle = self._runner.load(candidate, optimized=optimized)
        except ExecutionError as error:
            if optimized and truths and truths[0].optimized is None:
                return
            result.outcome = Outcome.REFUTED
            result.reason = f"the candidate does not load: {error}"
            result.failed_only_optimized = optimized
            return
        try:
            for truth in truths:
                if optimized and truth.optimized is None:
                    continue
                self._compare_case(handle, truth, result, optimized=optimized)
                if result.outcome is Outcome.REFUTED:
                    return
        finally:
            self._runner.release(handle)

    def _compare_case(self, handle: Any, truth: _Truth, result: Verification, *, optimized: bool) -> None:
        try:
            outputs = self._runner.run(handle, truth.case.arrays)
        except ExecutionError as error:
            result.outcome, result.reason = Outcome.REFUTED, f"the candidate fails: {error}"
            result.failing_case, result.failed_only_optimized = truth.case, optimized
            return
        expected = truth.optimized if optimized and truth.optimized is not None else truth.outputs
        if not optimized:
            result.cases.append(truth.case.name)
        if result.contract == "exact" and not optimized:
            differences = same_bits(expected, outputs)
        else:
            differences = within_tolerance(truth.outputs, outputs, self._allowed(truth, optimized))
            self._note_worst(truth, outputs, result)
        if differences:
            result.outcome = Outcome.REFUTED
            result.differences = [str(d) for d in differences[:5]]
            result.reason = f"{differences[0]} ({truth.case.name})"
            result.failing_case, result.failed_only_optimized = truth.case, optimized

    def _allowed(self, truth: _Truth, optimized: bool) -> dict[str, float]:
        """Errors to allow for: the original's own in float32, and what the runtime's optimizations do to it."""
        errors = dict(truth.errors or {})
        if optimized and truth.optimized is not None:
            for name, value in truth.outputs.items():
                drift = max_abs_error(value, truth.optimized.get(name)) if isinstance(value, np.ndarray) else 0.0
                errors[name] = max(errors.get(name, 0.0), drift)
        return errors

    def _note_worst(self, truth: _Truth, outputs: Mapping[str, Any], result: Verification) -> None:
        for name, value in truth.outputs.items():
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or name not in outputs:
                continue
            error = max_abs_error(value, outputs[name])
            if np.isfinite(error) and error >= result.max_abs_error:
                own = (truth.errors or {}).get(name, 0.0)
                result.max_abs_error, result.float32_error = error, own
                result.tolerance = tolerance_of(own, value)


def _even_out(truths: Sequence[_Truth]) -> None:
    """With few elements a case may round to almost nothing by luck, which says nothing of another order of sums: cases
    of one style are each allowed the largest relative error among them. (Styles differ by orders of magnitude.)"""
    by_style: dict[str, list[_Truth]] = {}
    for truth in truths:
        by_style.setdefault(truth.case.name.partition(", ")[0], []).append(truth)
    for alike in by_style.values():
        relative: dict[str, float] = {}
        for truth in alike:
            for name, error in (truth.errors or {}).items():
                size = largest_finite(truth.outputs[name])
                if size > 0:
                    relative[name] = max(relative.get(name, 0.0), error / size)
        for truth in alike:
            truth.errors = {
                name: max(error, relative.get(name, 0.0) * largest_finite(truth.outputs[name]))
                for name, error in (truth.errors or {}).items()
            }


def _is_repetition(case: InputCase, truths: Sequence[_Truth]) -> bool:
    """The first binding of dims shows every style; further ones bring only their sizes."""
    style, _, binding = case.name.partition(", ")
    first = next((name for t in truths if (name := t.case.name.partition(", ")[2])), "")
    return bool(first) and binding not in ("", first) and style not in ("random", "padded left")


def _try_reference(reference: Reference, case: InputCase) -> dict[str, np.ndarray] | None:
    try:
        return reference(case.arrays)
    except Exception:  # noqa: BLE001 - a module may reject made-up inputs in any way; the case then has no float64
        return None


def _widen(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: a.astype(np.float64) if a.dtype == np.float32 else a for k, a in arrays.items()}


def region_cases(program: Program, seed: int) -> list[InputCase]:
    """Inputs for a region: like a program's, and integers that are indices of nothing known."""
    return [
        case
        for case in input_cases(program, seed=seed)
        if case.name.endswith(("declared shapes", "batch 2, others 8", "batch 1, others 5", "batch 3, others 16"))
    ]


def verify_region(before: Program, after: Program, contract: str, runner: Runner, *, seed: int = 0) -> Verification:
    """Local evidence for one rewrite: both sides on ordinary and adversarial inputs."""
    try:
        cases = region_cases(before, seed)
    except UnsupportedInput as error:
        return Verification(Outcome.UNVERIFIED, contract, reason=str(error))
    verifier = Verifier(before, model_bytes(before), runner, cases=cases)
    return verifier.verify(model_bytes(after), contract)
