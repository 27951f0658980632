"""What the installed runtime can do, found by trying: operators, element types, the newest opset.

Each answer comes from a one-node model that ran in a child process and was compared with numpy. The table of
all registered kernels tells a kernel of its own from a function body, or casts put around the node.
Answers are cached per runtime version, processor and number of threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from opgraft.backends import cache
from opgraft.backends.onnxruntime.executor import ExecutionFailure, Executor
from opgraft.backends.onnxruntime.protocol import Array
from opgraft.ir.errors import ExecutionError, UsageError
from opgraft.ir.kernel_table import Kernel
from opgraft.ir.target import processor_model

if TYPE_CHECKING:
    from opgraft.backends.onnxruntime.capability_cases import Case
    from opgraft.ir.target import Target

Status: TypeAlias = Literal["kernel", "converted", "imprecise", "wrong", "no"]

_OLDEST_OPSET = 11
# The largest error accepted, in units of the type's rounding, relative to the largest output: the probes sum
# up to 64 terms, whose rounding errors add up like a random walk (8 units), in at most two sums in a row.
_ERROR_UNITS = 16
# ONNX Runtime's names of the element types.
_RUNTIME_TYPES = {"float32": "tensor(float)", "float64": "tensor(double)"}
_CACHE_NAME = "capabilities"
# Raise when a case or what is said of its answer changes: answers of an older probe are then asked again.
_PROBE_VERSION = 2


@dataclass(frozen=True)
class Support:
    """How the runtime runs one operator on one element type."""

    operator: str
    domain: str
    dtype: str
    status: Status
    """kernel: its own; converted: through its function body or casts; imprecise: float64 as precise as
    float32; wrong: not what numpy says; no: it fails."""
    error: float | None = None
    """Largest error relative to the largest output."""
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.status in ("kernel", "converted")


@dataclass(frozen=True)
class Capabilities:
    """The answers for one installed runtime on one machine."""

    runtime: str
    processor: str
    threads: int
    newest_opset: int
    supports: tuple[Support, ...]
    kernels: tuple[Kernel, ...]

    def support(self, operator: str, dtype: str = "float32", domain: str = "") -> Support | None:
        """The answer of the probe; None when nothing like it was asked."""
        for support in self.supports:
            if (support.operator, support.dtype, support.domain) == (operator, dtype, domain):
                return support
        return None

    def runs(self, operator: str, dtype: str = "float32", domain: str = "") -> bool:
        """The operator was tried on this type and computes what it should."""
        support = self.support(operator, dtype, domain)
        return support is not None and support.runs

    def has_kernel(self, operator: str, dtype: str | None = None, domain: str = "", opset: int | None = None) -> bool:
        """The registry has a kernel of the operator at that opset with this type among those it takes.

        That is necessary, not sufficient: the operator's schema may still refuse the type.
        """
        wanted = None if dtype is None else _runtime_type(dtype)
        at = opset if opset is not None else (self.newest_opset if domain == "" else 1)
        since = _since_version(operator, domain, at)
        return any(
            kernel.serves(since) and (wanted is None or any(wanted in types for types in kernel.types.values()))
            for kernel in self.kernels
            if kernel.operator == operator and kernel.domain == domain
        )


def probe(target: Target | None = None, *, threads: int = 1, use_cache: bool = True) -> Capabilities:
    """Capabilities of the runtime on this machine; only the machine itself can be asked.

    Raises UsageError for a target that is another machine.
    """
    if target is not None and not target.is_host:
        raise UsageError(f"target {target.name} is another machine", remedy="run the probe on that machine")
    key = _cache_key(threads)
    if use_cache:
        stored = _read_capabilities(cache.load(_CACHE_NAME, key))
        if stored:
            return stored
    with Executor(time_limit_s=60.0) as executor:
        opset = _find_newest_opset(executor)
        kernels = tuple(Kernel(*row) for row in executor.kernels())
        unanswered = Capabilities(_runtime_version(), processor_model(), threads, opset, (), kernels)
        supports = tuple(_probe_cases(executor, unanswered))
    answered = Capabilities(unanswered.runtime, unanswered.processor, threads, opset, supports, kernels)
    cache.store(_CACHE_NAME, key, asdict(answered))
    cache.store("newest-opset", key, opset)
    return answered


def newest_opset(*, use_cache: bool = True) -> int:
    """The newest opset of the default domain that the installed runtime runs, not only parses."""
    key = _cache_key(threads=1)
    if use_cache:
        stored = cache.load("newest-opset", key)
        if isinstance(stored, int) and stored >= _OLDEST_OPSET:
            return stored
    with Executor(time_limit_s=60.0) as executor:
        opset = _find_newest_opset(executor)
    cache.store("newest-opset", key, opset)
    return opset


def _runtime_version() -> str:
    # Importing the runtime takes 0.2 s; its metadata answers at once.
    for distribution in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml"):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _cache_key(threads: int) -> str:
    # onnx as well: the probe asks about the opsets that it knows.
    versions = f"{_runtime_version()}, onnx {metadata.version('onnx')}, probe {_PROBE_VERSION}"
    return f"{versions}, {processor_model()}, {os.cpu_count()} cpus, {threads} threads"


def _read_capabilities(stored: Any) -> Capabilities | None:
    """None for what an older version or a damaged file holds."""
    try:
        supports = tuple(Support(**row) for row in stored.pop("supports"))
        kernels = tuple(Kernel(**row) for row in stored.pop("kernels"))
        return Capabilities(supports=supports, kernels=kernels, **stored)
    except (AttributeError, KeyError, TypeError):
        return None


def _since_version(operator: str, domain: str, opset: int) -> int:
    """The opset that defined the operator as `opset` has it; 0 where the standard does not have it there."""
    from onnx import defs

    if defs.has(operator, opset, domain):
        return int(defs.get_schema(operator, opset, domain).since_version)
    # The runtime's own operators are unknown to the standard.
    return opset if domain else 0


def _runtime_type(dtype: str) -> str:
    return _RUNTIME_TYPES.get(dtype, f"tensor({dtype})")


def _find_newest_opset(executor: Executor) -> int:
    from onnx import defs
    from opgraft.backends.onnxruntime.capability_cases import CASES

    # Opsets are parsed before all their kernels exist, so operators that every network has must run as well.
    asked = [case for case in CASES if case.operator in ("MatMul", "Gemm", "Conv")]
    for opset in range(defs.onnx_opset_version(), _OLDEST_OPSET - 1, -1):
        if all(_try_case(executor, case, "float32", opset)[1] is not None for case in asked):
            return opset
    raise ExecutionError("the installed onnxruntime runs no known opset", remedy="reinstall onnxruntime")


def _probe_cases(executor: Executor, known: Capabilities) -> Iterator[Support]:
    from opgraft.backends.onnxruntime.capability_cases import CASES

    for case in CASES:
        for dtype in case.dtypes:
            reason, error = _try_case(executor, case, dtype, known.newest_opset, known.threads)
            status: Status
            if error is None:
                status = "no"
            elif error <= _ERROR_UNITS * _rounding(dtype):
                has_kernel = known.has_kernel(case.operator, dtype, case.domain)
                status = "kernel" if has_kernel else "converted"
            elif dtype == "float64" and error <= _ERROR_UNITS * _rounding("float32"):
                status = "imprecise"
            else:  # also when the error is not a number
                status = "wrong"
            yield Support(case.operator, case.domain, dtype, status, error, reason)


def _try_case(executor: Executor, case: Case, dtype: str, opset: int, threads: int = 1) -> tuple[str, float | None]:
    """Why it does not run, or the error of its first output relative to the largest expected value."""
    from opgraft.backends.onnxruntime.capability_models import build_model, cast_inputs

    inputs = cast_inputs(case, dtype)
    try:
        model = build_model(case, inputs, opset)
        outputs = executor.run_once(model, inputs, threads=threads, where=case.operator)
    except ExecutionFailure as failure:
        return f"{failure.kind}: {failure.message}", None
    exact = [x.astype(np.float64) if x.dtype.kind not in "iu" else x for x in inputs.values()]
    expected = case.reference(*exact)
    answer = outputs["y0"]
    if not isinstance(answer, np.ndarray) or answer.shape != expected.shape:
        return "another shape than expected", float("nan")
    return "", _relative_error(answer, expected)


def _relative_error(answer: Array, expected: Array) -> float:
    difference = np.abs(answer.astype(np.float64) - expected).max(initial=0.0)
    return float(difference / max(np.abs(expected).max(initial=0.0), np.finfo(np.float64).tiny))


def _rounding(dtype: str) -> float:
    """Relative rounding of a type; integer products are exact."""
    import ml_dtypes

    if dtype.startswith(("int", "uint")):
        return 0.0
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]
