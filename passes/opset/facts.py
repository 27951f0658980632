"""What is known about a value without running anything: its constant, its element type, its rank and dims."""

from __future__ import annotations

import numpy as np
import onnx_ir
from opgraft.passes.opset.schemas import formal_parameter, history, schema_at, type_names

_SAME_SHAPE = frozenset(
    [
        "Abs",
        "Acos",
        "Acosh",
        "Asin",
        "Asinh",
        "Atan",
        "Atanh",
        "BatchNormalization",
        "Cast",
        "CastLike",
        "Ceil",
        "Celu",
        "Clip",
        "Cos",
        "Cosh",
        "CumSum",
        "DequantizeLinear",
        "Dropout",
        "Elu",
        "Erf",
        "Exp",
        "Floor",
        "Gelu",
        "GroupNormalization",
        "HardSigmoid",
        "HardSwish",
        "Hardmax",
        "Identity",
        "InstanceNormalization",
        "IsInf",
        "IsNaN",
        "LRN",
        "LayerNormalization",
        "LeakyRelu",
        "Log",
        "LogSoftmax",
        "LpNormalization",
        "MeanVarianceNormalization",
        "Mish",
        "Neg",
        "Not",
        "PRelu",
        "QuantizeLinear",
        "RMSNormalization",
        "Reciprocal",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sigmoid",
        "Sign",
        "Sin",
        "Sinh",
        "Softmax",
        "Softplus",
        "Softsign",
        "Sqrt",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
        "Trilu",
    ]
)
_SAME_RANK = frozenset(
    [
        "AveragePool",
        "Concat",
        "Conv",
        "ConvTranspose",
        "CumProd",
        "DepthToSpace",
        "GatherElements",
        "GlobalAveragePool",
        "GlobalLpPool",
        "GlobalMaxPool",
        "LpPool",
        "MaxPool",
        "Pad",
        "Resize",
        "ReverseSequence",
        "Scatter",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Tile",
        "TopK",
        "Transpose",
        "Upsample",
    ]
)
_NEWEST = 1 << 30


def constant_of(value: onnx_ir.Value | None) -> np.ndarray | None:
    """The value as an array when no run can change it: a Constant, or an initializer that is no input."""
    if value is None:
        return None
    if value.is_initializer():
        if value.is_graph_input() or value.const_value is None:
            return None  # a caller may override the initializer
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.domain != "":
        return None
    if node.op_type == "Identity":
        return constant_of(node.inputs[0])
    if node.op_type != "Constant":
        return None
    tensor = onnx_ir.convenience.get_const_tensor(value)
    return None if tensor is None or any(a.is_ref() for a in node.attributes.values()) else tensor.numpy()


class Facts:
    """Element types and dims of values, each looked up once: planning changes neither.

    Both follow producers upwards, along chains that may be as long as the model.
    """

    def __init__(self) -> None:
        self._dtypes: dict[onnx_ir.Value, onnx_ir.DataType | None] = {}
        self._dims: dict[onnx_ir.Value, list[int | None] | None] = {}

    def dtype_of(self, value: onnx_ir.Value | None) -> onnx_ir.DataType | None:
        """The element type of a tensor value: recorded, or inferred from its producer's schema."""
        path: list[onnx_ir.Value] = []
        found: onnx_ir.DataType | None = None
        while value is not None:
            if value in self._dtypes:
                found = self._dtypes[value]
                break
            path.append(value)
            self._dtypes[value] = None  # ends the walk should the graph be cyclic
            step = _dtype_or_source(value)
            if isinstance(step, onnx_ir.DataType):
                found = step
                break
            value = step
        self._dtypes.update(dict.fromkeys(path, found))
        return found

    def dims_of(self, value: onnx_ir.Value | None) -> list[int | None] | None:
        """The dims of a value, None for a dynamic one; None when not even the rank is known."""
        path: list[tuple[onnx_ir.Value, bool]] = []
        found: list[int | None] | None = None
        while value is not None:
            if value in self._dims:
                found = self._dims[value]
                break
            self._dims[value] = None  # as above
            found = _recorded_dims(value)
            if found is not None:
                self._dims[value] = found
                break
            source, same_shape = _dims_source(value)
            path.append((value, same_shape))
            value = source
        for passed, same_shape in reversed(path):
            found = found if same_shape or found is None else [None] * len(found)
            self._dims[passed] = found
        return found

    def rank_of(self, value: onnx_ir.Value | None) -> int | None:
        """The number of dims of a value, when known."""
        dims = self.dims_of(value)
        return None if dims is None else len(dims)


def _dtype_or_source(value: onnx_ir.Value) -> onnx_ir.DataType | onnx_ir.Value | None:
    """The element type of a value, or another value that has the same."""
    if value.type is not None:
        return value.dtype if isinstance(value.type, onnx_ir.TensorType) else None
    if value.const_value is not None:
        return value.const_value.dtype
    node = value.producer()
    if node is None or node.domain != "":
        return None
    return _dtype_from_attributes(node) or _dtype_from_schema(node, value)


def _dtype_from_attributes(node: onnx_ir.Node) -> onnx_ir.DataType | None:
    for name in ("to", "dtype", "output_dtype"):
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref() and attribute.type == onnx_ir.AttributeType.INT:
            return onnx_ir.DataType(attribute.as_int()) if attribute.as_int() else None
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        if fill is None:
            return onnx_ir.DataType.FLOAT
        return None if fill.is_ref() else fill.as_tensor().dtype
    if node.op_type == "Constant":
        tensor = onnx_ir.convenience.get_const_tensor(node.outputs[0])
        return None if tensor is None else tensor.dtype
    return None


def _dtype_from_schema(node: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.DataType | onnx_ir.Value | None:
    """The element type the schema fixes, or an input that shares it."""
    schema = schema_at(node.op_type, _NEWEST) if history(node.op_type) else None
    index = value.index()
    if schema is None or index is None:
        return None
    formal = formal_parameter(schema.outputs, index)
    if formal is None:
        return None
    if formal.type_str in type_names():
        return type_names()[formal.type_str]
    sharing = [
        candidate
        for i, candidate in enumerate(node.inputs)
        if candidate is not None
        and (declared := formal_parameter(schema.inputs, i)) is not None
        and declared.type_str == formal.type_str
        and declared.is_homogeneous
    ]
    if sharing:
        return next((v for v in sharing if v.type is not None), sharing[0])
    constraint = next((c for c in schema.type_constraints if c.type_param_str == formal.type_str), None)
    if constraint is not None and len(constraint.allowed_type_strs) == 1:
        return type_names().get(constraint.allowed_type_strs[0])
    return None


def _dims_source(value: onnx_ir.Value) -> tuple[onnx_ir.Value | None, bool]:
    """The value whose dims the producer keeps, and whether it keeps more than their number."""
    node = value.producer()
    if node is None or node.domain != "" or not node.inputs or value.index() != 0:
        return None, False
    if node.op_type not in _SAME_SHAPE and node.op_type not in _SAME_RANK:
        return None, False
    return node.inputs[0], node.op_type in _SAME_SHAPE


def _recorded_dims(value: onnx_ir.Value) -> list[int | None] | None:
    if value.shape is not None:
        return [d if isinstance(d, int) else None for d in value.shape]
    if value.const_value is not None:
        return list(value.const_value.shape.numpy())
    return None
