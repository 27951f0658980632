"""FX rules of spectra and windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opgraft.ir.fx import ops_signal as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import DataType

_AXIS_AS_INPUT = 20


def dft(call: Call) -> Outputs:
    if call.opset >= _AXIS_AS_INPUT:
        axis: Any = call.scalar(2) if call.has(2) else -2
    else:
        axis = call.int_attribute("axis", 1)
    length = call.scalar(1) if call.has(1) else None
    flags = (bool(call.int_attribute("inverse", 0)), bool(call.int_attribute("onesided", 0)))
    return call.emit(ops.dft, call.tensor(0), length, axis, *flags)


def stft(call: Call) -> Outputs:
    """Inputs: signal, step, window, length of a frame."""
    length = call.scalar(3) if call.has(3) else None
    return call.emit(
        ops.stft, call.tensor(0), call.scalar(1), call.optional(2), length, bool(call.int_attribute("onesided", 1))
    )


def _window(function: Callable[..., Any]) -> Rule:
    def rule(call: Call) -> Outputs:
        dtype = call.type_attribute("output_datatype") or call.scope.widened(DataType.FLOAT)
        is_periodic = bool(call.int_attribute("periodic", 1))
        made = call.emit(function, call.scalar(0), is_periodic, call.torch_type(dtype), call.builder.device)
        return call.result(made, dtype)

    return rule


SIGNAL_RULES: dict[str, Rule] = {
    "BlackmanWindow": _window(ops.blackman),
    "DFT": dft,
    "HammingWindow": _window(ops.hamming),
    "HannWindow": _window(ops.hann),
    "STFT": stft,
}
