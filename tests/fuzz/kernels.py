"""Which operators the installed runtime has kernels for, by opset and element types: its own registry."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
from onnx import TensorProto
from opgraft.ir.kernel_table import Kernel, KernelTable
from opgraft.passes.opset.schemas import schema_at

FLOAT, DOUBLE, HALF, BFLOAT16 = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT8, INT16, INT32, INT64 = TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64
UINT8, UINT16, UINT32, UINT64 = TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64
BOOL, STRING = TensorProto.BOOL, TensorProto.STRING
FLOATS = (FLOAT, DOUBLE, HALF, BFLOAT16)
INTEGERS = (INT64, INT32, INT8, UINT8, INT16, UINT16, UINT32, UINT64)
DTYPES = (*FLOATS, *INTEGERS, BOOL, STRING)

_SPELLED = {FLOAT: "tensor(float)", DOUBLE: "tensor(double)"}


@cache
def spell(dtype: int) -> str:
    """FLOAT -> `tensor(float)`."""
    return _SPELLED.get(dtype) or f"tensor({TensorProto.DataType.Name(dtype).lower()})"


@cache
def kernel_table() -> KernelTable:
    """The runtime's kernels as passes ask for them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return KernelTable(
        Kernel(k.domain, k.op_name, *k.version_range, k.type_constraints)
        for k in state.get_all_opkernel_def()
        if k.provider == "CPUExecutionProvider"
    )


def _type_string(parameters: Sequence[Any], index: int) -> str:
    return parameters[min(index, len(parameters) - 1)].type_str if parameters else ""


@cache
def supported(op_type: str, opset: int, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> bool:
    """Whether the runtime runs this operator on these element types (0: absent or not a tensor)."""
    schema = schema_at(op_type, opset)
    if schema is None:
        return False
    bound: dict[str, set[str]] = {}
    for parameters, given in ((schema.inputs, inputs), (schema.outputs, outputs)):
        for index, dtype in enumerate(given):
            if not dtype:
                continue
            name, text = _type_string(parameters, index), spell(dtype)
            constraint = next((c for c in schema.type_constraints if c.type_param_str == name), None)
            if constraint is not None and text not in constraint.allowed_type_strs:
                if not any("seq(" in t for t in constraint.allowed_type_strs):
                    return False
                continue
            if constraint is not None:
                bound.setdefault(name, set()).add(text)
    table = kernel_table()
    if table.has(op_type, schema.since_version, bound):
        return True
    # Without a kernel the runtime inlines the body that the standard gives, whose operators run on float32.
    is_function = schema.has_function or schema.has_context_dependent_function
    has_none = not table.has(op_type, schema.since_version, {})
    return is_function and has_none and all(d in (FLOAT, INT64, BOOL, 0) for d in inputs)


@cache
def input_types(op_type: str, opset: int, index: int = 0) -> tuple[int, ...]:
    """The element types that input `index` may have by itself."""
    return tuple(d for d in DTYPES if supported(op_type, opset, (*[0] * index, d), ()))


@cache
def exists(op_type: str, opset: int) -> bool:
    return schema_at(op_type, opset) is not None


def numpy_type(dtype: int) -> Any:
    return onnx.helper.tensor_dtype_to_np_dtype(dtype)
