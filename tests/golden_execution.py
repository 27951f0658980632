"""Execution of goldens: the reference executor, and the same program in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx.reference
import onnxruntime as ort
from onnx.reference.op_run import OpRun
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.float64 import to_float64
from opgraft.ir.kernel_table import Kernel, KernelTable
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes

ort.set_default_logger_severity(4)


def load(model: bytes) -> ort.InferenceSession:
    """The reference executor: optimizations off, weights as they are, one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_model(model: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return run_session(load(model), inputs)


def run_session(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@cache
def kernels() -> KernelTable:
    """The runtime's kernels."""
    with Executor() as executor:
        return KernelTable(Kernel(*row) for row in executor.kernels())


class ConvTranspose(OpRun):  # type: ignore[misc]
    """The reference implementation of the onnx package fails on groups: this one adds a product per kernel offset."""

    op_domain = ""

    def _run(self, x, w, b=None, dilations=None, group=1, pads=None, strides=None, **_: object):  # type: ignore[no-untyped-def]
        rank = x.ndim - 2
        dilations, strides = dilations or [1] * rank, strides or [1] * rank
        pads = pads or [0] * (2 * rank)
        steps = list(zip(x.shape[2:], w.shape[2:], dilations, strides, strict=True))
        full = [(n - 1) * stride + dilation * (k - 1) + 1 for n, k, dilation, stride in steps]
        result = np.zeros((x.shape[0], group, w.shape[1], *full))
        grouped_x = x.reshape(x.shape[0], group, -1, *x.shape[2:])
        grouped_w = w.reshape(group, -1, *w.shape[1:])
        for offset in np.ndindex(*w.shape[2:]):
            product = np.einsum("ngc...,gcm->ngm...", grouped_x, grouped_w[(..., *offset)])
            places = [
                slice(o * dilation, o * dilation + (n - 1) * stride + 1, stride)
                for o, (n, _, dilation, stride) in zip(offset, steps, strict=True)
            ]
            result[(..., *places)] += product
        result = result.reshape(x.shape[0], -1, *full)
        result = result[(..., *(slice(pads[i], n - pads[i + rank]) for i, n in enumerate(full)))]
        return (result if b is None else result + b.reshape(-1, *[1] * rank),)


class Float64:
    """The original in float64: by ONNX Runtime, or by the reference implementation where it has no such kernel."""

    def __init__(self, program: Program) -> None:
        wide = Program(to_float64(program.model))
        data = model_bytes(wide)
        self._session: ort.InferenceSession | None = None
        try:
            self._session = load(data)
        except Exception:  # noqa: BLE001 - a missing kernel has several exception types
            model = onnx.ModelProto.FromString(data)
            self._reference = onnx.reference.ReferenceEvaluator(model, new_ops=[ConvTranspose])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in inputs.items()}
        if self._session is not None:
            return run_session(self._session, wide)
        with np.errstate(all="ignore"):
            return dict(zip(self._reference.output_names, self._reference.run(None, wide), strict=True))
