"""Cost rules of elementwise operators, reductions, normalizations and data movement."""

from __future__ import annotations

from collections.abc import Mapping

from opgraft.ir.dims import multiply_all
from opgraft.ir.node_work import MICROSOFT, RULES, NodeView, Rule, Work, dtype_of, operand_dtype, rule

_ONE_STEP = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Ceil Cos
    Cosh Div Equal Erf Exp Floor Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Log Mod Mul Neg Not Or
    Pow Reciprocal Relu Round Sign Sin Sinh Sqrt Sub Tan Tanh ThresholdedRelu Where Xor
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Bernoulli Range
"""


def _each(steps: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), steps)


# Operations per output element: the steps of the definition in the ONNX operator reference, for example
# Sigmoid = neg, exp, add, reciprocal.
_PER_OUTPUT: Mapping[str, int] = {
    **_each(1, _ONE_STEP),
    **_each(2, "Clip PRelu LeakyRelu Shrink DequantizeLinear HannWindow"),
    **_each(3, "Softplus Softsign Elu HammingWindow"),
    **_each(4, "Celu Selu HardSigmoid Sigmoid QuantizeLinear"),
    **_each(5, "HardSwish Swish Mish BlackmanWindow"),
    **_each(6, "SwiGLU"),
}

_MICROSOFT_PER_OUTPUT: Mapping[str, int] = {
    "BiasAdd": 2,
    "BiasGelu": 6,
    "BiasSplitGelu": 7,
    "FastGelu": 9,
    "Gelu": 5,
    "QuickGelu": 6,
    "QuantizeLinear": 4,
    "DequantizeLinear": 2,
    # Two dequantizations of two, the operation, one quantization of four.
    "QLinearAdd": 9,
    "QLinearMul": 9,
    "QLinearSigmoid": 10,
    "QLinearLeakyRelu": 8,
    "QLinearWhere": 7,
    "QLinearConcat": 6,
    "QLinearSoftmax": 11,
}

# Operations per element of the first input.
_PER_INPUT: Mapping[str, int] = {
    **_each(1, "ReduceSum ReduceMax ReduceMin ReduceProd ReduceMean ReduceLogSum ArgMax ArgMin"),
    # One comparison per element is the least that these can do.
    **_each(1, "CumSum CumProd TopK GlobalAveragePool GlobalMaxPool Hardmax Unique NonZero"),
    # BatchNormalization in inference folds its statistics to one scale and one shift per channel.
    **_each(2, "ReduceL1 ReduceL2 ReduceSumSquare GlobalLpPool BatchNormalization"),
    **_each(3, "LpNormalization RotaryEmbedding"),
    # max, subtract, exp, sum; Softmax then divides, LogSoftmax subtracts.
    **_each(4, "ReduceLogSumExp"),
    **_each(5, "Softmax LogSoftmax MeanVarianceNormalization"),
    # minimum and maximum, then quantize.
    **_each(6, "DynamicQuantizeLinear"),
}

_MICROSOFT_PER_INPUT: Mapping[str, int] = {
    "RotaryEmbedding": 3,
    "QLinearGlobalAveragePool": 3,
    "QLinearReduceMean": 3,
    "BiasSoftmax": 6,
}

# mean, subtract, square, sum, multiply, scale: 6 and 1 for a shift; without the mean 4.
_NORMALIZATIONS: Mapping[str, int] = {
    "LayerNormalization": 6,
    "InstanceNormalization": 6,
    "GroupNormalization": 6,
    "RMSNormalization": 4,
    "SimplifiedLayerNormalization": 4,
}


def _register_tables() -> None:
    for table, domain in ((_PER_OUTPUT, ""), (_MICROSOFT_PER_OUTPUT, MICROSOFT)):
        for name, steps in table.items():
            RULES[domain, name] = Rule("elementwise", _PerOutput(steps), operand_dtype)
    for table, domain in ((_PER_INPUT, ""), (_MICROSOFT_PER_INPUT, MICROSOFT)):
        for name, steps in table.items():
            RULES[domain, name] = Rule("reduction", _PerInput(steps), operand_dtype)
    for name, steps in _NORMALIZATIONS.items():
        RULES["", name] = Rule("reduction", _Normalization(steps), operand_dtype)


class _PerOutput:
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, view: NodeView) -> Work:
        return view.work(view.out_count() * self.steps)


class _PerInput(_PerOutput):
    def __call__(self, view: NodeView) -> Work:
        return view.work(view.count(0) * self.steps)


class _Normalization(_PerOutput):
    def __call__(self, view: NodeView) -> Work:
        return view.work(view.count(0) * (self.steps + view.has(2)))


@rule("elementwise", "Sum", "Max", "Min", "Mean")
def _variadic(view: NodeView) -> Work:
    n_operations = len(view.node.inputs) - 1 + (view.node.op_type == "Mean")
    return view.work(view.out_count() * n_operations)


@rule("elementwise", "Gelu")
def _gelu(view: NodeView) -> Work:
    """x/2 * (1 + erf(x/sqrt 2)), or with tanh(sqrt(2/pi) * (x + 0.044715 x^3))."""
    return view.work(view.out_count() * (9 if view.string("approximate", "none") == "tanh" else 5))


@rule("reduction", microsoft=("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"))
def _skip_normalization(view: NodeView) -> Work:
    """(input, skip, gamma, beta, bias), or without mean (input, skip, gamma, bias): a sum, then the norm."""
    simplified = view.node.op_type == "SkipSimplifiedLayerNormalization"
    steps = 1 + (4 + view.has(3) if simplified else 6 + view.has(3) + view.has(4))
    return view.work(view.count(0) * steps)


@rule("reduction", microsoft=("EmbedLayerNormalization",))
def _embed_layer_normalization(view: NodeView) -> Work:
    """Rows of the word, position and segment tables (inputs 2, 3, 4), summed and normalized."""
    n_out = view.out_count()
    tables = [index for index in (2, 3, 4) if view.has(index)]
    return view.work(n_out * (len(tables) - 1 + 7), reads=dict.fromkeys(tables, n_out))


@rule("reduction", "LRN")
def _local_response(view: NodeView) -> Work:
    return view.work(view.count(0) * (view.integer("size", 1) + 5))


@rule("reduction", "AveragePool", "MaxPool", "LpPool", microsoft=("QLinearAveragePool", "NhwcMaxPool"))
def _pool(view: NodeView) -> Work:
    window = multiply_all(view.integers("kernel_shape"))
    return view.work(view.out_count() * window * (2 if view.node.op_type == "LpPool" else 1))


@rule("reduction", "Det")
def _determinant(view: NodeView) -> Work:
    """Gaussian elimination: 2/3 n^3 per matrix."""
    return view.work(view.count(0) * view.extent(0, -1) * 2 // 3)


@rule("view", "BitCast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout")
def _alias(view: NodeView) -> Work:
    """The runtime hands on the same buffer; what it cannot alias is one copy more than this lower bound."""
    view.out_count()
    return Work()


@rule("view", "Shape", "Size", "OptionalHasElement", "SequenceLength")
def _metadata(view: NodeView) -> Work:
    return view.work(reads=dict.fromkeys(range(len(view.node.inputs)), 0))


_COPIES = """
    Cast CastLike Concat Split Transpose Pad Tile Expand DepthToSpace SpaceToDepth ReverseSequence OneHot
    EyeLike ConstantOfShape Trilu CenterCropPad Col2Im MaxUnpool ConcatFromSequence SequenceAt
"""


@rule(
    "movement",
    *_COPIES.split(),
    microsoft=("Trilu", "Pad", "ExpandDims", "RemovePadding", "RestorePadding"),
)
def _copy(view: NodeView) -> Work:
    return view.work()


@rule("movement", "Slice", "Gather", "GatherElements", "GatherND", "Compress", microsoft=("GatherND",))
def _pick(view: NodeView) -> Work:
    """Only the picked elements of the data are read."""
    return view.work(reads={0: view.out_count()})


@rule("movement", microsoft=("GatherBlockQuantized",))
def _pick_blocks(view: NodeView) -> Work:
    """(data, indices, scales, zero_points): the picked rows with their scales, dequantized."""
    n_out = view.out_count()
    block = view.integer("block_size", 128)
    # Packed storage: four-bit data may be declared uint8, two elements each.
    per_element = 2 if dtype_of(view.input(0)).name == "UINT8" and view.integer("bits", 4) == 4 else 1
    return view.work(n_out * 2, reads={0: n_out // per_element, 2: n_out // block, 3: n_out // block})


@rule("movement", "Scatter", "ScatterElements", "ScatterND", "TensorScatter")
def _scatter(view: NodeView) -> Work:
    """A copy of the data with the updates written over it; with a reduction one operation per update."""
    updates = 1 if view.node.op_type == "TensorScatter" else 2
    reduces = view.string("reduction", "none") != "none"
    return view.work(view.count(updates) if reduces else 0)


@rule("movement", "Resize", "Upsample")
def _resize(view: NodeView) -> Work:
    """Separable interpolation: 2 taps (linear) or 4 (cubic) per resized dimension, a multiply-add each."""
    taps = {"linear": 2, "bilinear": 2, "cubic": 4}.get(view.string("mode", "nearest"), 0)
    before, after = view.shape(0), view.out_shape()
    n_resized = sum(old != new for old, new in zip(before, after, strict=True))
    used = dict.fromkeys(range(1, len(view.node.inputs)), 0)
    return view.work(view.out_count() * (2 * taps**n_resized if taps else 0), reads=used)


@rule("movement", "GridSample", microsoft=("GridSample",))
def _grid_sample(view: NodeView) -> Work:
    """Per output element, a multiply-add for each neighbour of the sampled point."""
    taps = {"nearest": 0, "cubic": 4, "bicubic": 4}.get(view.string("mode", "linear"), 2)
    spatial = len(view.shape(0)) - 2
    return view.work(view.out_count() * (2 * taps**spatial if taps else 0))


_register_tables()
