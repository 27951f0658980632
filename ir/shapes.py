"""Shapes and the contents of shape tensors, as integers and expressions over named dims; forward, once per node.

Two facts about a value: its dims, and, for small integer tensors, its elements. Both are `Size` (an int or a polynomial
over dim names, see `ir.dims`) or None for unknown. A recorded shape (`value_info`) is taken as a fact; where it says
nothing, the operators' rules fill in. Two dims of the same name are the same number, as the standard says; ONNX Runtime
does not check that of its inputs. Named dims are taken to be at least one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx_ir
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.dims import Size, floor_divide, maximum
from opgraft.ir.program import Program, constant_ints, constant_tensor, is_op

Extent: TypeAlias = "Size | None"
Extents: TypeAlias = "tuple[Extent, ...]"
# Contents longer than this are no shapes.
_MAX_CONTENT = 64


@dataclass
class ShapeAnalysis:
    """Facts by value. Rewrites keep values equal, so facts outlive them; new values have none."""

    shapes: dict[onnx_ir.Value, Extents] = field(default_factory=dict)
    contents: dict[onnx_ir.Value, Extents] = field(default_factory=dict)

    def shape(self, value: onnx_ir.Value | None) -> Extents | None:
        """The dims of `value`, or None when not even the rank is known."""
        if value is None:
            return None
        found = self.shapes.get(value)
        return found if found is not None else recorded_shape(value)

    def content(self, value: onnx_ir.Value | None) -> Extents | None:
        """The elements of a small integer scalar or vector, or None."""
        if value is None:
            return None
        found = self.contents.get(value)
        if found is not None:
            return found
        constant = constant_ints(value, limit=_MAX_CONTENT)
        return tuple(constant) if constant is not None else None

    def static_content(self, value: onnx_ir.Value | None) -> list[int] | None:
        content = self.content(value)
        if content is None or not all(isinstance(c, int) for c in content):
            return None
        return [c for c in content if isinstance(c, int)]


def recorded_shape(value: onnx_ir.Value) -> Extents | None:
    """The shape that the model declares; unnamed dims are None."""
    tensor = constant_tensor(value)
    shape = tensor.shape if tensor is not None else value.shape
    if shape is None:
        return None
    return tuple(_extent(d) for d in shape)


def _extent(dim: Any) -> Extent:
    if isinstance(dim, int):
        return dim
    return parse_dim(dim.value) if dim.value else None


def analyze_shapes(program: Program) -> ShapeAnalysis:
    """Facts about every value of the main graph and its subgraphs that the rules reach."""
    facts = ShapeAnalysis()
    for graph in program.scopes():
        for node in graph:
            _visit(node, facts)
    return facts


def _visit(node: onnx_ir.Node, facts: ShapeAnalysis) -> None:
    if not is_op(node, node.op_type) or not node.outputs:
        return
    rule = _SHAPE_RULES.get(node.op_type)
    recorded = recorded_shape(node.outputs[0])
    if rule is not None and (recorded is None or any(d is None for d in recorded)):
        computed = rule(node, facts)
        if computed is not None:
            facts.shapes[node.outputs[0]] = _merge(recorded, computed)
    content_rule = _CONTENT_RULES.get(node.op_type)
    if content_rule is not None and _is_integer(node, facts):
        content = content_rule(node, facts)
        if content is not None and len(content) <= _MAX_CONTENT:
            facts.contents[node.outputs[0]] = content
            if node.op_type in ("Slice", "Concat") and facts.shape(node.outputs[0]) is None:
                facts.shapes[node.outputs[0]] = (len(content),)


def _is_integer(node: onnx_ir.Node, facts: ShapeAnalysis) -> bool:
    """Whether the result is an int32 or int64 tensor, recorded or because its operands are."""
    dtype = node.outputs[0].dtype
    if dtype is not None:
        return dtype in (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)
    return node.op_type in ("Shape", "Size", "Cast") or all(
        i is None or facts.content(i) is not None or i.dtype == onnx_ir.DataType.INT64 for i in node.inputs
    )


def _merge(recorded: Extents | None, computed: Extents) -> Extents:
    """Recorded dims where there are any. Ranks or numbers that contradict each other leave the dim unknown."""
    if recorded is None:
        return computed
    if len(recorded) != len(computed):
        return recorded
    merged: list[Extent] = []
    for left, right in zip(recorded, computed, strict=True):
        contradicts = isinstance(left, int) and isinstance(right, int) and left != right
        merged.append(None if contradicts else left if left is not None else right)
    return tuple(merged)


# -- shape rules -----------------------------------------------------------------------------------------------


def _ints(node: onnx_ir.Node, name: str) -> list[int] | None:
    attribute = node.attributes.get(name)
    return None if attribute is None or attribute.is_ref() else list(attribute.as_ints())


def _int(node: onnx_ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else attribute.as_int()


def broadcast(shapes: Sequence[Extents]) -> Extents:
    """The shape of an elementwise result; a dim is known when one operand alone decides it."""
    rank = max((len(s) for s in shapes), default=0)
    result: list[Extent] = []
    for position in range(rank):
        dims = [s[position - rank + len(s)] for s in shapes if position - rank + len(s) >= 0]
        others = [d for d in dims if d != 1]
        if not others:
            result.append(1)
        elif all(d == others[0] for d in others):
            result.append(others[0])
        else:
            numbers = [d for d in others if isinstance(d, int)]
            result.append(numbers[0] if numbers else None)
    return tuple(result)


def _elementwise(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shapes = [facts.shape(v) for v in node.inputs if v is not None]
    known = [s for s in shapes if s is not None]
    return broadcast(known) if len(known) == len(shapes) else None


def _same(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    return facts.shape(node.inputs[0])


def _matmul(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    left, right = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if left is None or right is None or len(left) < 2 or len(right) < 2:
        return None
    return (*broadcast([left[:-2], right[:-2]]), left[-2], right[-1])


def _transpose(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    perm = _ints(node, "perm") or list(range(len(shape)))[::-1]
    return tuple(shape[p] for p in perm) if len(perm) == len(shape) else None


def _reshape(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    data, target = facts.shape(node.inputs[0]), facts.content(node.inputs[1]) if len(node.inputs) > 1 else None
    if target is None:
        return None
    result: list[Extent] = []
    for index, size in enumerate(target):
        if size == 0 and not _int(node, "allowzero", 0):
            result.append(data[index] if data is not None and index < len(data) else None)
        else:
            result.append(None if size == -1 else size)
    if any(size == -1 for size in target):
        result[list(target).index(-1)] = _remaining(data, [r for r, t in zip(result, target, strict=True) if t != -1])
    return tuple(result)


def _remaining(data: Extents | None, others: Sequence[Extent]) -> Extent:
    """What is left of the elements of `data` after division by `others`, when it divides."""
    if data is None or any(d is None for d in data) or any(o is None for o in others):
        return None
    total: Size = 1
    for extent in data:
        total = total * extent if extent is not None else total
    divisor: Size = 1
    for other in others:
        divisor = divisor * other if other is not None else divisor
    if divisor == 0:
        return None
    quotient = floor_divide(total, divisor)
    return quotient if quotient * divisor == total else None


def _expand(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    data, target = facts.shape(node.inputs[0]), facts.content(node.inputs[1])
    return broadcast([data, target]) if data is not None and target is not None else None


def _axes(node: onnx_ir.Node, facts: ShapeAnalysis, index: int = 1) -> list[int] | None:
    if len(node.inputs) > index and node.inputs[index] is not None:
        return facts.static_content(node.inputs[index])
    return _ints(node, "axes")


def _unsqueeze(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shape, axes = facts.shape(node.inputs[0]), _axes(node, facts)
    if shape is None or axes is None:
        return None
    rank = len(shape) + len(axes)
    ones = {a % rank for a in axes}
    rest = iter(shape)
    return tuple(1 if position in ones else next(rest) for position in range(rank))


def _squeeze(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shape, axes = facts.shape(node.inputs[0]), _axes(node, facts)
    if shape is None or axes is None:
        return None
    gone = {a % len(shape) for a in axes}
    return tuple(d for i, d in enumerate(shape) if i not in gone)


def _concat(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shapes = [facts.shape(v) for v in node.inputs]
    known = [s for s in shapes if s]
    if len(known) != len(shapes):
        return None
    axis = _int(node, "axis", 0) % len(known[0])
    total: Extent = 0
    for shape in known:
        part = shape[axis]
        total = total + part if total is not None and part is not None else None
    return tuple(total if i == axis else _first_known([s[i] for s in known]) for i in range(len(known[0])))


def _first_known(dims: Sequence[Extent]) -> Extent:
    return next((d for d in dims if isinstance(d, int)), dims[0])


def _gather(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    data, indices = facts.shape(node.inputs[0]), facts.shape(node.inputs[1])
    if not data or indices is None:
        return None
    axis = _int(node, "axis", 0) % len(data)
    return (*data[:axis], *indices, *data[axis + 1 :])


def _shape_of_shape(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    content = _shape_content(node, facts)
    return (len(content),) if content is not None else None


_SHAPE_RULES: dict[str, Callable[[onnx_ir.Node, ShapeAnalysis], Extents | None]] = {
    **dict.fromkeys(
        (
            *("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Less", "LessOrEqual", "Greater"),
            *("GreaterOrEqual", "Where", "Max", "Min", "Sum", "Mean", "Mod"),
        ),
        _elementwise,
    ),
    **dict.fromkeys(
        (
            *("Identity", "Cast", "Relu", "Sigmoid", "Tanh", "Exp", "Log", "Sqrt", "Neg", "Abs", "Not", "Erf", "Gelu"),
            *("Sin", "Cos", "Softmax", "LogSoftmax", "LayerNormalization", "BatchNormalization", "Reciprocal", "Clip"),
            *("IsNaN", "Dropout", "HardSigmoid", "HardSwish", "LeakyRelu", "Softplus", "Floor", "Ceil", "Round"),
            *("CumSum", "Trilu", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "CastLike"),
        ),
        _same,
    ),
    "MatMul": _matmul,
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Expand": _expand,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Concat": _concat,
    "Gather": _gather,
    "Shape": _shape_of_shape,
}


# -- content rules ---------------------------------------------------------------------------------------------


def _shape_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shape = facts.shape(node.inputs[0])
    if shape is None:
        return None
    end = node.attributes.get("end")
    return shape[_int(node, "start", 0) : end.as_int() if end is not None else None]


def _size_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    shape = facts.shape(node.inputs[0])
    if shape is None or any(d is None for d in shape):
        return None
    total: Size = 1
    for extent in shape:
        total = total * extent if extent is not None else total
    return (total,)


def _gather_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    content, picks = facts.content(node.inputs[0]), facts.static_content(node.inputs[1])
    if content is None or picks is None or facts.shape(node.inputs[0]) in (None, ()):
        return None
    if any(not -len(content) <= p < len(content) for p in picks):
        return None
    return tuple(content[p] for p in picks)


def _slice_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    content = facts.content(node.inputs[0])
    steps: list[int] | None
    if len(node.inputs) < 3:
        starts, ends, steps = _ints(node, "starts"), _ints(node, "ends"), [1]
    else:
        starts, ends = facts.static_content(node.inputs[1]), facts.static_content(node.inputs[2])
        steps = facts.static_content(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    if content is None or not starts or not ends or not steps or len(starts) != 1 or steps[0] < 1:
        return None
    return content[starts[0] : ends[0] : steps[0]]


def _concat_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    parts: list[Extent] = []
    for value in node.inputs:
        content = facts.content(value)
        if content is None:
            # One unknown number keeps its place when the length is known.
            shape = facts.shape(value)
            if shape is None or len(shape) != 1 or not isinstance(shape[0], int) or shape[0] > _MAX_CONTENT:
                return None
            content = (None,) * shape[0]
        parts += content
    return tuple(parts)


def _same_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    return facts.content(node.inputs[0])


def _cast_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    to = onnx_ir.DataType(_int(node, "to", 0))
    source = node.inputs[0].dtype if node.inputs[0] is not None else None
    integers = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)
    # int64 to int32 wraps; sizes never reach that, other numbers may.
    return facts.content(node.inputs[0]) if to == onnx_ir.DataType.INT64 and source in integers else None


def _reshape_content(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
    target = facts.static_content(node.inputs[1])
    return facts.content(node.inputs[0]) if target is not None and len(target) <= 1 else None


def _arithmetic(combine: Callable[[Size, Size], Extent]) -> Callable[[onnx_ir.Node, ShapeAnalysis], Extents | None]:
    def rule(node: onnx_ir.Node, facts: ShapeAnalysis) -> Extents | None:
        if len(node.inputs) != 2:
            return None
        left, right = facts.content(node.inputs[0]), facts.content(node.inputs[1])
        if left is None or right is None or (len(left) != len(right) and 1 not in (len(left), len(right))):
            return None
        size = max(len(left), len(right))
        pairs = zip(left * (size // len(left)), right * (size // len(right)), strict=True) if left and right else ()
        return tuple(combine(a, b) if a is not None and b is not None else None for a, b in pairs)

    return rule


def _divide(numerator: Size, denominator: Size) -> Extent:
    """ONNX divides towards zero: the same as flooring where nothing is negative."""
    if not isinstance(denominator, int) or denominator <= 0:
        return None
    if isinstance(numerator, int):
        return numerator // denominator if numerator >= 0 else None
    quotient = floor_divide(numerator, denominator)
    return quotient if quotient * denominator == numerator else None


def _maximum(left: Size, right: Size) -> Extent:
    return max(left, right) if isinstance(left, int) and isinstance(right, int) else maximum(left, right)


def _minimum(left: Size, right: Size) -> Extent:
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    return left if left == right else None


_CONTENT_RULES: dict[str, Callable[[onnx_ir.Node, ShapeAnalysis], Extents | None]] = {
    "Shape": _shape_content,
    "Size": _size_content,
    "Gather": _gather_content,
    "Slice": _slice_content,
    "Concat": _concat_content,
    "Cast": _cast_content,
    "Reshape": _reshape_content,
    **dict.fromkeys(("Unsqueeze", "Squeeze", "Identity"), _same_content),
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(_divide),
    "Max": _arithmetic(_maximum),
    "Min": _arithmetic(_minimum),
}
