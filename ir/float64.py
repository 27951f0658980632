"""The same program in float64: float32 rounding is measured against it."""

from __future__ import annotations

import numpy as np
import onnx_ir

_FLOAT, _DOUBLE = onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE
# Operators whose type argument is an attribute holding a data type.
_TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype", "stash_type"}


def to_float64(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy of `model` in which every float32 tensor is float64. Half-precision parts stay as they are."""
    wide = model.clone()
    graphs = [wide.graph, *wide.graph.subgraphs()]
    for function in wide.functions.values():
        graphs += [function.graph, *function.subgraphs()]
    for graph in graphs:
        for value in (*graph.inputs, *graph.initializers.values()):
            _widen_value(value)
        for node in graph:
            for output in node.outputs:
                _widen_value(output)
            _widen_attributes(node)
    return wide


def _widen_value(value: onnx_ir.Value) -> None:
    if value.const_value is not None and value.const_value.dtype == _FLOAT:
        tensor = value.const_value
        value.const_value = onnx_ir.Tensor(tensor.numpy().astype(np.float64), name=value.name)
    if isinstance(value.type, onnx_ir.TensorType) and value.type.dtype == _FLOAT:
        value.type = onnx_ir.TensorType(_DOUBLE)
    elif isinstance(value.type, (onnx_ir.SequenceType, onnx_ir.OptionalType)):
        value.type = None


def _widen_attributes(node: onnx_ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == onnx_ir.AttributeType.TENSOR and attribute.as_tensor().dtype == _FLOAT:
            node.attributes[name] = onnx_ir.AttrTensor(
                name, onnx_ir.tensor(attribute.as_tensor().numpy().astype(np.float64))
            )
        elif (
            name in _TYPE_ATTRIBUTES and attribute.type == onnx_ir.AttributeType.INT and attribute.value == int(_FLOAT)
        ):
            node.attributes[name] = onnx_ir.AttrInt64(name, int(_DOUBLE))
    if node.op_type == "Constant" and node.domain == "":
        _widen_constant(node)
    if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
        node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(np.zeros(1)))
    if node.op_type in ("RandomNormal", "RandomUniform") and "dtype" not in node.attributes:
        node.attributes["dtype"] = onnx_ir.AttrInt64("dtype", int(_DOUBLE))


def _widen_constant(node: onnx_ir.Node) -> None:
    for name in ("value_float", "value_floats"):
        attribute = node.attributes.pop(name, None)
        if attribute is not None and not attribute.is_ref():
            # The number is the float32 one: float64 of another number would measure the literal, not the rounding.
            array = np.asarray(attribute.value, dtype=np.float32).astype(np.float64)
            node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(array))
