"""FX rules of ONNX Runtime's attention operators (domain com.microsoft)."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.fx import ops_attention_contrib as ops
from opgraft.ir.fx.call import Call, Output, Outputs, Rule
from opgraft.ir.fx.values import DataType, FxValue
from torch import fx

_MASKED = -10000.0


def _typed(call: Call, node: fx.Node, ranks: Sequence[int], dtypes: Sequence[DataType | None] = ()) -> list[Output]:
    """The items of `node` with their ranks, of the first input's type unless another is given: no record is needed."""
    fresh = call.scope.emission.unknowns.fresh
    made: list[Output] = []
    for place, item in enumerate(call.outputs_of(node, len(ranks))):
        dtype = dtypes[place] if place < len(dtypes) else call.dtype(0)
        sizes = tuple(fresh() for _ in range(ranks[place]))
        made.append(None if item is None else FxValue(call.builder, dtype, item, sizes=sizes))
    return made


def _refuse_inputs(call: Call, *indices: int) -> None:
    for index in indices:
        if call.has(index):
            raise call.fail(f"input {index} of this operator has no torch form")


def _refuse_attributes(call: Call, *names: str) -> None:
    for name in names:
        if call.int_attribute(name, 0):
            raise call.fail(f"attribute {name} of this operator has no torch form")


def multi_head_attention(call: Call) -> Outputs:
    """Inputs: query, key, value, bias, padding, attention bias, past key, past value."""
    _refuse_inputs(call, 8, 9)
    if call.n_outputs > 3:
        raise call.fail("the output of scores has no torch form")
    made = call.emit(
        ops.multi_head_attention,
        call.tensor(0),
        *(call.optional(i) for i in range(1, 8)),
        call.int_attribute("num_heads", 1),
        call.float_attribute("scale", 0.0),
        call.float_attribute("mask_filter_value", _MASKED),
        bool(call.int_attribute("unidirectional", 0)),
    )
    return _typed(call, made, (3, 4, 4))


def attention(call: Call) -> Outputs:
    """Inputs: x, weights, bias, mask, past, attention bias."""
    _refuse_inputs(call, 6)
    _refuse_attributes(call, "do_rotary", "past_present_share_buffer")
    if call.has(3) and call.known_rank(3) == 4:
        raise call.fail("a mask of four dims has no torch form")
    made = call.emit(
        ops.packed_attention,
        call.tensor(0),
        call.tensor(1),
        *(call.optional(i) for i in range(2, 6)),
        call.int_attribute("num_heads", 1),
        call.ints_attribute("qkv_hidden_sizes"),
        call.float_attribute("scale", 0.0),
        call.float_attribute("mask_filter_value", _MASKED),
        bool(call.int_attribute("unidirectional", 0)),
    )
    return _typed(call, made, (3, 5))


def grouped_query_attention(call: Call) -> Outputs:
    """Inputs: query, key, value, past key and value, lengths, total, cosine, sine, positions, attention bias, sink."""
    _refuse_inputs(call, 12, 13, 14, 15)
    _refuse_attributes(call, "sliding_window_cache", "qk_output", "kv_cache_bit_width")
    rotates = bool(call.int_attribute("do_rotary", 0))
    made = call.emit(
        ops.grouped_query_attention,
        call.tensor(0),
        *(call.optional(i) for i in range(1, 5)),
        call.tensor(5),
        call.scalar(6),
        *(call.optional(i) if rotates else None for i in (7, 8, 9)),
        call.optional(10),
        call.optional(11),
        heads=(call.int_attribute("num_heads", 1), call.int_attribute("kv_num_heads", 1)),
        scale=call.float_attribute("scale", 0.0),
        softcap=call.float_attribute("softcap", 0.0),
        causal=bool(call.int_attribute("causal", 1)),
        window=call.int_attribute("local_window_size", -1),
        interleaved=bool(call.int_attribute("rotary_interleaved", 0)),
        smooth=call.int_attribute("smooth_softmax", 0) == 1,
    )
    return _typed(call, made, (3, 4, 4))


def rotary_embedding(call: Call) -> Outputs:
    _refuse_attributes(call, "is_packed_batching")
    if call.float_attribute("scale", 1.0) != 1.0:
        raise call.fail("attribute scale of this operator has no torch form")
    made = call.emit(
        ops.rotary_embedding,
        *(call.tensor(i) for i in range(4)),
        bool(call.int_attribute("interleaved", 0)),
        call.int_attribute("rotary_embedding_dim", 0),
        call.int_attribute("num_heads", 0),
    )
    return FxValue(call.builder, call.dtype(0), made, sizes=call.value(0).sizes)


def embed_layer_normalization(call: Call) -> Outputs:
    made = call.emit(
        ops.embed_layer_norm,
        call.tensor(0),
        call.optional(1),
        *(call.tensor(i) if i != 4 else call.optional(i) for i in range(2, 7)),
        call.optional(7),
        call.optional(8),
        call.float_attribute("epsilon", 1e-12),
    )
    return _typed(call, made, (3, 1, 3), (call.dtype(2), DataType.INT32, call.dtype(2)))


ATTENTION_CONTRIB_RULES: dict[str, Rule] = {
    "Attention": attention,
    "EmbedLayerNormalization": embed_layer_normalization,
    "GroupQueryAttention": grouped_query_attention,
    "MultiHeadAttention": multi_head_attention,
    "RotaryEmbedding": rotary_embedding,
}
