"""The shape of each operator's outputs from its inputs' shapes and shape tensors."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.dims import Size, floor_divide
from opgraft.ir.integer_contents import Sizes
from opgraft.ir.shape_rule import ShapeOperands, ShapeResult, ShapeRule, broadcast, same_at_run_time
from opgraft.ir.shape_rules_spatial import SPATIAL_RULES
from opgraft.ir.shape_rules_view import VIEW_RULES


def _same(operands: ShapeOperands) -> ShapeResult:
    return operands.shape(0)


def _elementwise(operands: ShapeOperands) -> ShapeResult:
    shapes = [s for s in operands.shapes if s is not None]
    if not shapes or len(shapes) != len(operands.node.inputs):
        return None
    return shapes[0] if len(shapes) == 1 else broadcast(shapes, operands.unknowns)


def matmul_shape(left: Sizes | None, right: Sizes | None, operands: ShapeOperands) -> Sizes | None:
    if not left or not right:
        return None
    batch: Sizes = broadcast([left[:-2], right[:-2]], operands.unknowns)
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else ()
    return (*batch, *rows, *columns)


def _matmul(operands: ShapeOperands) -> ShapeResult:
    return matmul_shape(operands.shape(0), operands.shape(1), operands)


def _qlinear_matmul(operands: ShapeOperands) -> ShapeResult:
    return matmul_shape(operands.shape(0), operands.shape(3), operands)


def _gemm(operands: ShapeOperands) -> ShapeResult:
    left, right = operands.shape(0), operands.shape(1)
    if left is None or right is None or len(left) != 2 or len(right) != 2:
        return None
    return (
        left[1 if operands.int_attribute("transA", 0) else 0],
        right[0 if operands.int_attribute("transB", 0) else 1],
    )


def _reduce(operands: ShapeOperands) -> ShapeResult:
    shape, axes = operands.shape(0), operands.ints("axes", 1)
    if shape is None:
        return None
    keep = operands.int_attribute("keepdims", 1) == 1  # any other number removes them
    if axes is None and operands.is_present(1):
        return tuple(operands.unknowns.fresh() for _ in shape) if keep else None
    if not axes and operands.int_attribute("noop_with_empty_axes", 0):
        return shape
    reduced = {a % len(shape) for a in axes} if axes and shape else set(range(len(shape)))
    return _without(shape, reduced, keep)


def _arg(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    axis = operands.axis(len(shape)) if shape is not None else None
    if shape is None or axis is None:
        return None
    return _without(shape, {axis}, operands.int_attribute("keepdims", 1) == 1)


def _without(shape: Sizes, reduced: set[int], keep: bool) -> Sizes:
    return tuple(1 if i in reduced else d for i, d in enumerate(shape) if keep or i not in reduced)


def _layer_normalization(operands: ShapeOperands) -> ShapeResult:
    shape = operands.shape(0)
    axis = operands.axis(len(shape), -1) if shape is not None else None
    if shape is None or axis is None:
        return None
    statistics = (*shape[:axis], *(1 for _ in shape[axis:]))
    return [shape, statistics, statistics]


def _batch_normalization(operands: ShapeOperands) -> ShapeResult:
    return [operands.shape(0), operands.shape(3), operands.shape(4)]


def _dropout(operands: ShapeOperands) -> ShapeResult:
    return [operands.shape(0), operands.shape(0)]


def _dynamic_quantize(operands: ShapeOperands) -> ShapeResult:
    return [operands.shape(0), (), ()]


def _einsum(operands: ShapeOperands) -> ShapeResult:
    equation = operands.text_attribute("equation", "").replace(" ", "")
    terms, arrow, result = equation.partition("->")
    shapes = [s for s in operands.shapes if s is not None]
    names = terms.split(",")
    if "." in equation or len(shapes) != len(operands.node.inputs) or len(names) != len(shapes):
        return None
    if not arrow:
        result = "".join(sorted(c for c in set(terms) - {","} if terms.count(c) == 1))
    dims: dict[str, list[Size]] = {}
    for term, shape in zip(names, shapes, strict=True):
        if len(term) != len(shape):
            return None
        for letter, size in zip(term, shape, strict=True):
            dims.setdefault(letter, []).append(size)
    # The runtime broadcasts a 1 here.
    return tuple(broadcast([(d,) for d in dims[letter]], operands.unknowns)[0] for letter in result)


def _recurrent(operands: ShapeOperands) -> ShapeResult:
    shape, hidden = operands.shape(0), operands.int_attribute("hidden_size", 0)
    if shape is None or len(shape) != 3 or operands.int_attribute("layout", 0) or not hidden:
        return None
    directions = 2 if operands.text_attribute("direction", "forward") == "bidirectional" else 1
    state = (directions, shape[1], hidden)
    return [(shape[0], *state), state, state]


def _attention(operands: ShapeOperands) -> ShapeResult:
    """Q, K, V as [B, H, S, D] or [B, S, H*D]; outputs Y, present key and value, scores."""
    q, k, v = (operands.shape(i) for i in range(3))
    if q is None or k is None or v is None or not len(q) == len(k) == len(v):
        return None
    past = operands.shape(4) if operands.is_present(4) else ()
    if len(q) == 4:
        heads, kv_heads, width, key_width = q[1], k[1], v[3], k[3]
        output: Sizes = (q[0], heads, q[2], width)
        n_queries, n_keys = q[2], k[2]
    elif len(q) == 3:
        heads, kv_heads = operands.int_attribute("q_num_heads", 0), operands.int_attribute("kv_num_heads", 0)
        if not heads or not kv_heads:
            return None
        width, key_width = floor_divide(v[2], kv_heads), floor_divide(k[2], kv_heads)
        output = (q[0], q[1], width * heads)
        n_queries, n_keys = q[1], k[1]
    else:
        return None
    if past is None or (past and len(past) != 4):
        return [output]
    total = n_keys + past[2] if past else n_keys
    batch = same_at_run_time([q[0], k[0]])
    return [
        output,
        (batch, kv_heads, total, key_width),
        (batch, kv_heads, total, width),
        (batch, heads, n_queries, total),
    ]


SAME_SHAPE = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Bernoulli", "BitwiseNot", "Cast", "CastLike"),
    *("Ceil", "Celu", "Clip", "Cos", "Cosh", "CumProd", "CumSum", "DequantizeLinear", "Elu", "Erf", "Exp", "EyeLike"),
    *("Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Hardmax", "Identity"),
    *("InstanceNormalization", "IsInf", "IsNaN", "LRN", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization"),
    *("MeanVarianceNormalization", "Mish", "Neg", "Not", "QuantizeLinear", "RandomNormalLike", "RandomUniformLike"),
    *("Reciprocal", "Relu", "ReverseSequence", "RotaryEmbedding", "Round", "Scatter", "ScatterElements"),
    *("ScatterND", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt"),
    *("Swish", "Tan", "Tanh", "TensorScatter", "ThresholdedRelu", "Trilu", "RMSNormalization"),
)
ELEMENTWISE = (
    *("Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater"),
    *("GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub"),
    *("Sum", "Where", "Xor"),
)
_REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
    *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
)

SHAPE_RULES: dict[str, ShapeRule] = {
    **dict.fromkeys(SAME_SHAPE, _same),
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **VIEW_RULES,
    **SPATIAL_RULES,
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Attention": _attention,
    "BatchNormalization": _batch_normalization,
    "Dropout": _dropout,
    "DynamicQuantizeLinear": _dynamic_quantize,
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "LayerNormalization": _layer_normalization,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearMatMul": _qlinear_matmul,
    "RNN": _recurrent,
}


def infer(operands: ShapeOperands) -> Sequence[Sizes | None]:
    """The shapes of all outputs, as far as they follow from what is known."""
    node = operands.node
    rule = SHAPE_RULES.get(node.op_type)
    result = rule(operands) if rule is not None else None
    # A list is one shape per output; a tuple is the shape of the first.
    shapes = result if isinstance(result, list) else [result]
    return [*shapes, *[None] * (len(node.outputs) - len(shapes))][: len(node.outputs)]
