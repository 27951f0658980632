"""FX rules of matrix products, contractions and attention."""

from __future__ import annotations

import torch
from opgraft.ir.fx import ops_linear as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import WIDE_UNSIGNED, DataType

aten = torch.ops.aten


def matmul(call: Call) -> Outputs:
    if call.dtype(0) in WIDE_UNSIGNED:
        return call.emit(ops.wrapped_matmul, call.tensor(0), call.tensor(1))
    return call.emit(aten.matmul.default, call.tensor(0), call.tensor(1))


def gemm(call: Call) -> Outputs:
    """A linear layer where the factors are one and the second matrix comes as torch stores it."""
    alpha, beta = call.float_attribute("alpha", 1.0), call.float_attribute("beta", 1.0)
    trans_a, trans_b = bool(call.int_attribute("transA", 0)), bool(call.int_attribute("transB", 0))
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    plain = alpha == 1.0 and (beta == 1.0 or c is None) and not trans_a and not call.is_integer()
    if plain and trans_b and (c is None or call.known_rank(2) == 1):
        return call.emit(aten.linear.default, a, b, c)
    return call.emit(ops.gemm, a, b, c, alpha, beta, trans_a, trans_b)


def einsum(call: Call) -> Outputs:
    return call.emit(aten.einsum.default, call.text_attribute("equation", "").replace(" ", ""), call.tensors())


def matmul_integer(call: Call) -> Outputs:
    made = call.emit(ops.integer_matmul, call.tensor(0), call.tensor(1), call.optional(2), call.optional(3))
    return call.result(made, DataType.INT32)


def attention(call: Call) -> Outputs:
    precision = call.type_attribute("softmax_precision")
    mode = call.int_attribute("qk_matmul_output_mode", 0)
    made = call.emit(
        ops.attention,
        *(call.tensor(i) for i in range(3)),
        *(call.optional(i) for i in range(3, 7)),
        heads=(call.int_attribute("q_num_heads", 0), call.int_attribute("kv_num_heads", 0)),
        scale=call.float_attribute("scale", 0.0) if "scale" in call.attributes else None,
        softcap=call.float_attribute("softcap", 0.0),
        causal=bool(call.int_attribute("is_causal", 0)),
        window=(call.int_attribute("left_window_size", -1), call.int_attribute("right_window_size", -1)),
        scores=mode,
        precision=None if precision is None else call.torch_type(precision),
    )
    return call.outputs_of(made, 4)


def rotary_embedding(call: Call) -> Outputs:
    return call.emit(
        ops.rotary,
        *(call.tensor(i) for i in range(3)),
        call.optional(3),
        bool(call.int_attribute("interleaved", 0)),
        call.int_attribute("rotary_embedding_dim", 0),
        call.int_attribute("num_heads", 0),
    )


LINEAR_RULES: dict[str, Rule] = {
    "Attention": attention,
    "Einsum": einsum,
    "Gemm": gemm,
    "MatMul": matmul,
    "MatMulInteger": matmul_integer,
    "RotaryEmbedding": rotary_embedding,
}
