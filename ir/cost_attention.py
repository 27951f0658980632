"""Cost rules of attention operators: standard, and the runtime's own.

Letters: B batch, H query heads, G key/value heads, S queries, T keys (past included), D head size, C = H*D.
Scores are counted for all S x T pairs: kernels compute causal blocks whole or skip them as they like.
"""

from __future__ import annotations

from opgraft.ir.dims import Size, maximum, multiply_all
from opgraft.ir.node_work import NodeView, UnknownCost, Work, rule

# scale, max, subtract, exp, sum, divide per score; one more for an additive mask.
_SCORE_STEPS = 6


def _attention(
    view: NodeView, score_count: Size, qk_depth: Size, value_depth: Size, *, masked: bool, extra: Size = 0
) -> Work:
    """Work of `score_count` scores of depth D each, and their product with values of depth D_v.

    `extra` is the multiply-adds of projections done by the same node.
    """
    products = score_count * (qk_depth + value_depth) * 2 + extra
    return view.work(score_count * (_SCORE_STEPS + masked), contraction=products)


@rule("contraction", "Attention")
def _standard(view: NodeView) -> Work:
    """Q `[B, H, S, D]` or `[B, S, H*D]`, K, V, attn_mask, past_key `[B, G, P, D]`, past_value."""
    query, key, value = view.shape(0), view.shape(1), view.shape(2)
    if len(query) == 4:
        batch, heads, n_queries, depth = query
        n_keys, value_depth = key[2], value[3]
    else:
        batch, n_queries, width = query
        heads, kv_heads = view.integer("q_num_heads", 0), view.integer("kv_num_heads", 0)
        if not heads or not kv_heads:
            raise UnknownCost("attributes q_num_heads and kv_num_heads are absent")
        n_keys, depth, value_depth = key[1], width // heads, value[2] // kv_heads
    if view.has(4):
        n_keys = n_keys + view.extent(4, 2)
    return _attention(view, batch * heads * n_queries * n_keys, depth, value_depth, masked=view.has(3))


@rule("contraction", microsoft=("MultiHeadAttention",))
def _multi_head(view: NodeView) -> Work:
    """(query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value); may be packed.

    Query `[B, S, C]` or packed `[B, S, H, 3, D]`; key `[B, T, C]`, `[B, H, T, D]` or packed
    `[B, T, H, 2, D]`.
    """
    heads = view.integer("num_heads", 0)
    query = view.shape(0)
    batch, n_queries = query[0], query[1]
    width = query[2] * query[4] if len(query) == 5 else query[2]
    depth = width // heads
    value_depth, n_keys = depth, n_queries
    if view.has(1):
        key = view.shape(1)
        n_keys = key[2] if len(key) == 4 else key[1]
    if view.has(2):
        value = view.shape(2)
        value_depth = value[3] if len(value) == 4 else value[2] // heads
    if view.has(6):
        n_keys = n_keys + view.extent(6, 2)
    return _attention(view, batch * heads * n_queries * n_keys, depth, value_depth, masked=view.has(4) or view.has(5))


@rule("contraction", microsoft=("GroupQueryAttention",))
def _group_query(view: NodeView) -> Work:
    """(query `[B, S, H*D]`, key, value, past_key `[B, G, P, D]`, ...), or all three packed in query.

    T is that of `present_key` (output 1), which is the whole buffer where past and present share one.
    """
    heads, kv_heads = view.integer("num_heads", 0), view.integer("kv_num_heads", 0)
    batch, n_queries, width = view.shape(0)
    depth = width // (heads if view.has(1) else heads + 2 * kv_heads)
    n_keys: Size
    if view.has_output(1):
        n_keys = view.out_shape(1)[2]
    else:
        n_keys = n_queries + (view.extent(3, 2) if view.has(3) else 0)
    rotary = batch * n_queries * depth * (heads + kv_heads) * 3 if view.integer("do_rotary", 0) else 0
    scores = batch * heads * n_queries * n_keys
    done = _attention(view, scores, depth, depth, masked=False)
    return view.work(scores * _SCORE_STEPS + rotary, contraction=done.contraction_flops)


def _projecting(view: NodeView, mask: int, past: int, bias_of_scores: int) -> Work:
    """Input `[B, S, C_in]`, weights `[C_in, C_q + C_k + C_v]`, bias; past `[2, B, H, P, D]`."""
    heads = view.integer("num_heads", 0)
    batch, n_queries, width_in = view.shape(0)
    width_out = view.extent(1, 1)
    sizes = view.integers("qkv_hidden_sizes")
    query_width, value_width = (sizes[0], sizes[2]) if sizes else (width_out // 3, width_out // 3)
    n_keys = n_queries + (view.extent(past, 3) if view.has(past) else 0)
    projection = batch * n_queries * width_in * width_out * 2
    masked = view.has(mask) or (bias_of_scores > 0 and view.has(bias_of_scores))
    scores = batch * heads * n_queries * n_keys
    return _attention(view, scores, query_width // heads, value_width // heads, masked=masked, extra=projection)


@rule("contraction", microsoft=("Attention",))
def _fused_projection(view: NodeView) -> Work:
    """(input, weights, bias, mask_index, past, attention_bias)."""
    return _projecting(view, mask=3, past=4, bias_of_scores=5)


@rule("contraction", microsoft=("QAttention",), dtype="int8")
def _fused_projection_quantized(view: NodeView) -> Work:
    """(input, weight, bias, input_scale, weight_scale, mask_index, input_zero, weight_zero, past)."""
    return _projecting(view, mask=5, past=8, bias_of_scores=0)


@rule("contraction", "LinearAttention", microsoft=("LinearAttention",))
def _linear(view: NodeView) -> Work:
    """State `[B, G, D, D_v]` (output 1): per token an outer product and a read per query head.

    A delta rule reads once more, a gate scales the state.
    """
    batch, kv_heads, depth, value_depth = view.out_shape(1)
    n_tokens = view.extent(0, 1)
    heads = view.integer("q_num_heads", 0)
    variant = view.string("update_rule", "gated_delta")
    products = kv_heads * (2 if "delta" in variant else 1) + heads
    state = batch * n_tokens * depth * value_depth
    return view.work(state * kv_heads if "gated" in variant else 0, contraction=state * products * 2)


@rule("contraction", microsoft=("MoE",))
def _mixture_of_experts(view: NodeView) -> Work:
    """(input `[..., C]`, router `[tokens, E]`, fc1, bias, fc2, bias, fc3, bias), weights `[E, in, out]`.

    Each token passes through k experts; of the weights, those of at most tokens*k experts are read.
    """
    tokens, n_experts = view.shape(1)
    routed = tokens * view.integer("k", 1)
    weights = [index for index in (2, 4, 6) if view.has(index)]
    per_token = sum((multiply_all(view.shape(index)[1:]) for index in weights), start=0)
    # min(E, tokens*k), the experts that can be touched at all.
    touched = -maximum(-n_experts, -routed)
    reads = {index: multiply_all(view.shape(index)[1:]) * touched for index in weights}
    return view.work(tokens * n_experts * 5, contraction=routed * per_token * 2, reads=reads)
