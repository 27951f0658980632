"""The history of the standard's operators: which version defines a node, and what that version permits.

Source: the schemas registered by the installed `onnx` package (`onnx.defs`), every version ever released.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx_ir

NEWEST_OPSET = 26
"""The newest version that conversion targets: the newest that ONNX Runtime 1.31 loads without a warning."""

OLDEST_TARGET = 7
"""The oldest version that conversion targets; before it, broadcasting was an attribute of every operator."""


@cache
def newest_known() -> int:
    """The newest version of the default operator set that the installed `onnx` package describes."""
    import onnx.defs

    return int(onnx.defs.onnx_opset_version())


@cache
def history(op_type: str) -> tuple[int, ...]:
    """The versions of the default operator set that changed `op_type`, oldest first; empty if unknown."""
    return tuple(sorted(_all_schemas().get(op_type, {})))


@cache
def _all_schemas() -> dict[str, dict[int, Any]]:
    import onnx.defs

    table: dict[str, dict[int, Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx"):
            table.setdefault(schema.name, {})[schema.since_version] = schema
    return table


def schema_at(op_type: str, version: int) -> Any | None:
    """The schema that opset `version` uses for `op_type`; None where it does not exist (yet, or any more)."""
    since = [v for v in history(op_type) if v <= version]
    if not since:
        return None
    schema = _all_schemas()[op_type][since[-1]]
    withdrawn = schema.deprecated and since[-1] == history(op_type)[-1]  # GroupNormalization-18 was replaced
    return None if withdrawn else schema


def next_change(op_type: str, version: int) -> int | None:
    """The first version after `version` that changed `op_type`."""
    return next((v for v in history(op_type) if v > version), None)


def default_of(schema: Any, attribute: str) -> Any:
    """The default value of an attribute in `schema`; None without one."""
    import onnx.helper

    declared = schema.attributes[attribute].default_value
    if declared is None or not declared.type:
        return None
    value = onnx.helper.get_attribute_value(declared)
    return value.decode() if isinstance(value, bytes) else value


@cache
def type_names() -> dict[str, onnx_ir.DataType]:
    """Schema spellings of tensor types: `tensor(float)` -> FLOAT."""
    spelled = {onnx_ir.DataType.FLOAT: "float", onnx_ir.DataType.DOUBLE: "double"}
    return {f"tensor({spelled.get(t, t.name.lower())})": t for t in onnx_ir.DataType}


@cache
def _spelling() -> dict[onnx_ir.DataType, str]:
    return {dtype: text for text, dtype in type_names().items()}


def spell_type(declared: onnx_ir.TypeProtocol | None) -> str | None:
    """A recorded type as schemas spell it: `seq(tensor(float))`; None when it is not recorded."""
    if isinstance(declared, onnx_ir.SequenceType | onnx_ir.OptionalType):
        inner = spell_type(declared.elem_type)
        kind = "seq" if isinstance(declared, onnx_ir.SequenceType) else "optional"
        return None if inner is None else f"{kind}({inner})"
    if not isinstance(declared, onnx_ir.TensorType) or declared.dtype == onnx_ir.DataType.UNDEFINED:
        return None
    return _spelling()[declared.dtype]


def formal_parameter(formals: Sequence[Any], index: int) -> Any | None:
    """The declared parameter of actual input or output `index`; a variadic one stands for all that follow."""
    import onnx.defs

    if index < len(formals):
        return formals[index]
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return formals[-1] if formals and formals[-1].option == variadic else None


def permits_type(schema: Any, formal: Any, text: str) -> bool:
    """Whether the schema lets a value of the type spelled `text` stand for the formal parameter."""
    constraint = next((c for c in schema.type_constraints if c.type_param_str == formal.type_str), None)
    return text in constraint.allowed_type_strs if constraint else text == formal.type_str
