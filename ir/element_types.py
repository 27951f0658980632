"""The element type of each operator's outputs, where the model does not record it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir

DataType: TypeAlias = onnx_ir.DataType
Types: TypeAlias = Sequence["DataType | None"]

_BOOL, _INT32, _INT64, _FLOAT, _UINT8 = (
    DataType.BOOL,
    DataType.INT32,
    DataType.INT64,
    DataType.FLOAT,
    DataType.UINT8,
)


def _at(types: Types, index: int) -> DataType | None:
    return types[index] if index < len(types) else None


def _attribute(node: onnx_ir.Node, name: str) -> DataType | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else DataType(attribute.as_int())


def _filled(node: onnx_ir.Node, types: Types) -> list[DataType | None]:
    value = node.attributes.get("value")
    if value is None:
        return [_FLOAT]
    return [None if value.is_ref() else value.as_tensor().dtype]


def _quantized(node: onnx_ir.Node, types: Types) -> list[DataType | None]:
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return [_at(types, 2)]
    return [_attribute(node, "output_dtype") or _UINT8]


_Rule: TypeAlias = Callable[[onnx_ir.Node, Types], Sequence["DataType | None"]]


def _input(index: int) -> _Rule:
    return lambda node, types: [_at(types, index)]


_OF_FIRST = _input(0)


def _fixed(*result: DataType) -> _Rule:
    return lambda node, types: result


def _named(attribute: str) -> _Rule:
    return lambda node, types: [_attribute(node, attribute) or _at(types, 0)]


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(
        ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Not", "And", "Or", "Xor", "IsNaN", "IsInf"),
        _fixed(_BOOL),
    ),
    **dict.fromkeys(("Shape", "Size", "NonZero", "ArgMax", "ArgMin"), _fixed(_INT64)),
    **dict.fromkeys(("MatMulInteger", "ConvInteger"), _fixed(_INT32)),
    **dict.fromkeys(("QLinearMatMul", "QLinearConv"), _input(7)),
    **dict.fromkeys(("TopK", "MaxPool"), lambda node, types: [_at(types, 0), _INT64]),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "Split", "Attention"), lambda n, types: [_at(types, 0)] * len(n.outputs)),
    **dict.fromkeys(("EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli"), _named("dtype")),
    "Cast": lambda node, types: [_attribute(node, "to")],
    "CastLike": _input(1),
    "Where": _input(1),
    "OneHot": _input(2),
    "Dropout": lambda node, types: [_at(types, 0), _BOOL],
    "ConstantOfShape": _filled,
    "QuantizeLinear": _quantized,
    "DequantizeLinear": lambda node, types: [_attribute(node, "output_dtype") or _at(types, 1)],
    "DynamicQuantizeLinear": _fixed(_UINT8, _FLOAT, _UINT8),
}


def has_type_of_first(op_type: str) -> bool:
    """Whether the result of a standard operator has its first input's type."""
    return op_type not in _RULES


def infer_types(node: onnx_ir.Node, types: Types) -> list[DataType | None]:
    """The types of all outputs of a standard operator that has a shape rule; most have their first input's."""
    result = _RULES.get(node.op_type, _OF_FIRST)(node, types)
    return [*result, *[None] * (len(node.outputs) - len(result))][: len(node.outputs)]
