"""Cost rules of matrix products, convolutions, einsum and recurrent layers, float and quantized.

Letters: a product contracts K of `[..., M, K] x [..., K, N]`; a convolution weight is
`[C_out, C_in/g, k...]`.
"""

from __future__ import annotations

from opgraft.ir.dims import Size, add_all, multiply_all
from opgraft.ir.node_work import NodeView, UnknownCost, Work, dtype_name, dtype_of, rule

# dequantize, round, shift and clip one accumulator: what a quantized product does per output element.
_REQUANTIZE_STEPS = 4


@rule("contraction", "MatMul", microsoft=("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation"))
def _matmul(view: NodeView) -> Work:
    transposed = view.integer("transA", 0)
    depth = view.extent(0, -2 if transposed and len(view.shape(0)) > 1 else -1)
    n_out = view.out_count()
    activated = view.node.op_type == "FusedMatMulActivation"
    return view.work(n_out if activated else 0, contraction=n_out * depth * 2)


@rule("contraction", "Gemm", microsoft=("FusedGemm", "GemmFastGelu"))
def _gemm(view: NodeView) -> Work:
    depth = view.extent(0, 0 if view.integer("transA", 0) else -1)
    n_out = view.out_count()
    steps = int(view.has(2)) + {"FusedGemm": 1, "GemmFastGelu": 9}.get(view.node.op_type, 0)
    return view.work(n_out * steps, contraction=n_out * depth * 2)


@rule("contraction", "MatMulInteger", microsoft=("MatMulInteger16",), dtype="int8")
def _matmul_integer(view: NodeView) -> Work:
    return view.work(contraction=view.out_count() * view.extent(0, -1) * 2)


@rule("contraction", "QLinearMatMul", microsoft=("QGemm",), dtype="int8")
def _matmul_quantized(view: NodeView) -> Work:
    depth = view.extent(0, 0 if view.integer("transA", 0) else -1)
    n_out = view.out_count()
    return view.work(n_out * _REQUANTIZE_STEPS, contraction=n_out * depth * 2)


@rule("contraction", microsoft=("MatMulIntegerToFloat", "DynamicQuantizeMatMul"), dtype="int8")
def _matmul_dynamic(view: NodeView) -> Work:
    """int8 product scaled to float; the dynamic one also finds the range of A and quantizes it."""
    n_out = view.out_count()
    quantize = view.count(0) * 6 if view.node.op_type == "DynamicQuantizeMatMul" else 0
    return view.work(n_out * 2 + quantize, contraction=n_out * view.extent(0, -1) * 2)


def _blockwise_dtype(view: NodeView) -> str:
    """`accuracy_level=4` multiplies in int8; all others in the type of A."""
    return "int8" if view.integer("accuracy_level", 0) == 4 else dtype_name(dtype_of(view.input(0)))


@rule("contraction", microsoft=("MatMulNBits", "MatMulBnb4"), dtype=_blockwise_dtype)
def _matmul_blockwise(view: NodeView) -> Work:
    """Weights `[N, K]` of a few bits, unpacked with one scale and one zero point per block."""
    k, n = view.integer("K", 0), view.integer("N", 0)
    return view.work(2 * k * n, contraction=view.count(0) * n * 2)


@rule("contraction", "Conv", microsoft=("FusedConv", "NhwcFusedConv", "NhwcConv"))
def _conv(view: NodeView) -> Work:
    n_out = view.out_count()
    steps = int(view.has(2)) + int(view.has(3)) + bool(view.string("activation", ""))
    return view.work(n_out * steps, contraction=n_out * _per_output_channel(view, 1) * 2)


@rule("contraction", "ConvInteger", dtype="int8")
def _conv_integer(view: NodeView) -> Work:
    return view.work(contraction=view.out_count() * _per_output_channel(view, 1) * 2)


@rule("contraction", "QLinearConv", microsoft=("QLinearConv",), dtype="int8")
def _conv_quantized(view: NodeView) -> Work:
    """(x, x_scale, x_zero, w, ...)."""
    n_out = view.out_count()
    steps = _REQUANTIZE_STEPS + int(view.has(8))
    return view.work(n_out * steps, contraction=n_out * _per_output_channel(view, 3) * 2)


@rule("contraction", "ConvTranspose")
def _conv_transpose(view: NodeView) -> Work:
    """Every input element is multiplied with the `[C_out/g, k...]` slab of its channel."""
    bias = view.out_count() if view.has(2) else 0
    return view.work(bias, contraction=view.count(0) * _per_output_channel(view, 1) * 2)


@rule("contraction", "DeformConv")
def _conv_deformable(view: NodeView) -> Work:
    """A convolution of samples, each interpolated from its 4 neighbours; input 3 is the bias, 4 the mask."""
    n_out = view.out_count()
    samples = view.extent(0, 0) * view.extent(0, 1) * multiply_all(view.shape(1)[2:])
    sampled = samples * multiply_all(view.out_shape()[2:])
    bias = n_out if view.has(3) else 0
    return view.work(sampled * (8 + view.has(4)) + bias, contraction=n_out * _per_output_channel(view, 1) * 2)


@rule("contraction", "CausalConvWithState", microsoft=("CausalConvWithState",))
def _conv_causal(view: NodeView) -> Work:
    """Depthwise along the last dim; SiLU where an activation is asked for."""
    n_out = view.out_count()
    steps = int(view.has(2)) + (5 if view.string("activation", "none") not in ("", "none") else 0)
    return view.work(n_out * steps, contraction=n_out * view.extent(1, -1) * 2)


def _per_output_channel(view: NodeView, weight: int) -> Size:
    """Elements of the weight for one index of its first dim."""
    return multiply_all(view.shape(weight)[1:])


@rule("contraction", "Einsum")
def _einsum(view: NodeView) -> Work:
    """Operands are combined from left to right, as the runtime does; a label goes once nobody needs it."""
    terms, output = _einsum_terms(view)
    extents: dict[str, Size] = {}
    for index, labels in enumerate(terms):
        for label, extent in zip(labels, view.shape(index), strict=True):
            # An ellipsis dim broadcasts, so 1 yields to the other operand's extent.
            if extents.get(label, 1) == 1:
                extents[label] = extent
    kept = terms[0]
    flops: Size = 0
    contraction: Size = 0
    for position in range(1, len(terms)):
        needed = set(output).union(*terms[position + 1 :])
        joint = list(dict.fromkeys(kept + terms[position]))
        product = multiply_all(extents[label] for label in joint)
        if set(joint) <= needed:
            flops = flops + product
        else:
            contraction = contraction + product * 2
        kept = [label for label in joint if label in needed]
    if len(terms) == 1 and not set(kept) <= set(output):
        flops = view.count(0)
    return view.work(flops, contraction=contraction)


def _einsum_terms(view: NodeView) -> tuple[list[list[str]], list[str]]:
    """Labels per dim of each operand and of the output; ellipsis dims are labelled "...1" from the right."""
    equation = view.string("equation", "").replace(" ", "")
    left, arrow, right = equation.partition("->")
    operands = left.split(",")
    if len(operands) != len(view.node.inputs):
        raise UnknownCost(f"einsum equation {equation!r} does not fit {len(view.node.inputs)} inputs")
    terms = []
    for index, term in enumerate(operands):
        terms.append(_expand_labels(term, len(view.shape(index))))
    if arrow:
        return terms, _expand_labels(right, len(view.out_shape()))
    flat = [label for term in terms for label in term]
    return terms, sorted({label for label in flat if flat.count(label) == 1 or label.startswith("...")})


def _expand_labels(term: str, rank: int) -> list[str]:
    before, dots, after = term.partition("...")
    n_hidden = rank - len(before) - len(after)
    if n_hidden < 0 or (n_hidden and not dots):
        raise UnknownCost(f"einsum term {term!r} does not fit rank {rank}")
    return [*before, *(f"...{n}" for n in range(n_hidden, 0, -1)), *after]


# Gates, and steps per unit besides the two products and the bias: LSTM has 3 sigmoids of 4, 2 tanh, 3
# multiplications and 1 addition; GRU 2 sigmoids, 1 tanh and 5 to mix; RNN 1 tanh. Adding the two products of
# a gate is one more each.
_RECURRENT = {"LSTM": (4, 18), "GRU": (3, 14), "RNN": (1, 1)}


def _recurrent_work(view: NodeView, quantized: bool) -> Work:
    """X `[T, B, I]` (or `[B, T, I]` with layout 1), W `[D, gates*H, I]`, R `[D, gates*H, H]`."""
    n_gates, steps = _RECURRENT[view.node.op_type.removeprefix("DynamicQuantize")]
    rows = view.extent(0, 0) * view.extent(0, 1)
    hidden: Size = view.integer("hidden_size", 0) or view.extent(2, -1)
    directions = view.extent(1, 0)
    depth = view.extent(0, 2) + hidden
    units = rows * directions * hidden
    # The two bias halves (input and recurrent) fold into one before the run.
    per_unit = steps + n_gates + (n_gates if view.has(3) else 0)
    conversion = add_all([view.count(0), units]) * 6 if quantized else 0
    return view.work(units * per_unit + conversion, contraction=units * n_gates * depth * 2)


@rule("contraction", "LSTM", "GRU", "RNN")
def _recurrent(view: NodeView) -> Work:
    return _recurrent_work(view, quantized=False)


@rule("contraction", microsoft=("DynamicQuantizeLSTM",), dtype="int8")
def _recurrent_quantized(view: NodeView) -> Work:
    return _recurrent_work(view, quantized=True)
