"""Sessions of ONNX Runtime in this process: their options, and values on their way in and out, in every type.

The runtime's Python API converts numpy arrays only; tensors of other types (bfloat16, float8, 4-bit and 2-bit
integers) go in and out as `OrtValue`s over raw memory.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from opgraft.backends.onnxruntime.protocol import (
    BFLOAT16,
    STRING,
    RawTensor,
    WireValue,
    aligned_buffer,
    from_raw,
    to_raw,
)


class UnsupportedValueError(RuntimeError):
    """A value this worker cannot carry: a sparse tensor, or a sequence of elements numpy does not know."""


def bind(session: ort.InferenceSession, feeds: Mapping[str, WireValue], names: Sequence[str]) -> Callable[[], Any]:
    """The call that runs `session` on `feeds`, with everything that can be prepared done before it."""
    types = [arg.type for arg in session.get_outputs() if arg.name in names]
    # The runtime's OrtValue is not constructed from strings.
    only_tensors = all(isinstance(x, RawTensor) and x.element_type != STRING for x in feeds.values())
    if only_tensors and all(kind.startswith("tensor") for kind in types):
        values = {name: _ort_value(value) for name, value in feeds.items() if isinstance(value, RawTensor)}
        return lambda: session.run_with_ort_values(names, values)
    mixed = {name: _to_feed(value) for name, value in feeds.items()}
    return lambda: session.run(names, mixed)


def session_options(
    *, optimized: bool, threads: int, config: Mapping[str, str], libraries: Sequence[str]
) -> ort.SessionOptions:
    """Options of the reference executor, or the runtime's own defaults when `optimized`."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    else:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.use_deterministic_compute = True
        # Neither changes a result; a reference run should not hold on to memory that it does not use.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
    for key, value in config.items():
        options.add_session_config_entry(key, value)
    for library in libraries:
        options.register_custom_ops_library(library)
    return options


def signature(arg: ort.NodeArg) -> list[Any]:
    """Name, type and shape (None: of unknown rank) as JSON."""
    return [arg.name, arg.type, list(arg.shape) if isinstance(arg.shape, (list, tuple)) else None]


def _ort_value(raw: RawTensor) -> ort.OrtValue:
    if raw.is_native:
        return ort.OrtValue.ortvalue_from_numpy(from_raw(raw))
    # The runtime reads its tensor out of any array with enough bytes: packed elements use the first ones.
    element = np.dtype(np.uint16 if raw.element_type == BFLOAT16 else np.uint8)
    n_bytes = math.prod(raw.shape) * element.itemsize
    storage = raw.data
    if raw.data.nbytes < n_bytes:
        storage = aligned_buffer(n_bytes)
        storage[: raw.data.nbytes] = raw.data
    typed = storage.view(element).reshape(raw.shape)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(typed, raw.element_type)


def _to_feed(value: WireValue) -> Any:
    if isinstance(value, RawTensor) and not value.is_native:
        return _ort_value(value)
    if isinstance(value, list):
        if any(isinstance(item, RawTensor) and not item.is_native for item in value):
            raise UnsupportedValueError("a sequence of elements that numpy has no type for")
        return [_to_feed(item) for item in value]
    if isinstance(value, dict):
        return {key: np.asarray(from_raw(item)).item() for key, item in value.items()}
    return from_raw(value)


def read_results(results: Sequence[Any], names: Sequence[str], feeds: Mapping[str, WireValue]) -> list[WireValue]:
    """What a bound call returned, on its way out; tensors are views of the runtime's memory and keep it alive.

    For an output that is also an input the runtime returns the memory it was fed, which is not its own: copied here.
    """
    values: list[WireValue] = []
    for result, name in zip(results, names, strict=True):
        fed = feeds.get(name)
        if isinstance(result, ort.OrtValue) and isinstance(fed, RawTensor):
            values.append(RawTensor(fed.element_type, fed.shape, fed.data.copy()))
        else:
            values.append(_to_wire(result))
    return values


def _to_wire(result: Any) -> WireValue:
    if not isinstance(result, ort.OrtValue):
        if isinstance(result, ort.SparseTensor):
            raise UnsupportedValueError("an output is a sparse tensor")
        if isinstance(result, (int, float, str)):
            return to_raw(np.asarray(result))
        if isinstance(result, list):
            return [_to_wire(item) for item in result]
        if isinstance(result, dict):
            return {key: _to_wire(item) for key, item in result.items()}
        return to_raw(result)
    element_type, shape = result.element_type(), tuple(result.shape())
    if element_type == STRING:
        return to_raw(result.numpy())
    n_bytes = result.tensor_size_in_bytes()
    if n_bytes == 0:
        return RawTensor(element_type, shape, np.empty(0, np.uint8))
    memory = (ctypes.c_uint8 * n_bytes).from_address(result.data_ptr())
    # The memory belongs to the OrtValue, so it has to live as long as the view does.
    memory.owner = result
    return RawTensor(element_type, shape, np.frombuffer(memory, np.uint8))
