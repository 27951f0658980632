"""Relations of whole attention operators and rotary embeddings, the standard's and the runtime's own."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.axes.graph import Direction, Part
from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.dims import Size, floor_divide

_UNKNOWN = "the shape is not known"


def _relate_attention(n: NodeAxes, heads: int | None, kv_heads: int | None, direction: Direction) -> None:
    """Queries, keys and values at inputs 0, 1, 2, each `[B, H, T, D]` or `[B, T, H * D]`; the result like queries."""
    query, key, value, outs = n.operand(0), n.operand(1), n.operand(2), n.output()
    if query is None or key is None or value is None or outs is None or len(query) != len(outs):
        n.opaque(_UNKNOWN)
        return
    tokens = 2 if len(query) == 4 else 1
    n.same(query[0], outs[0])
    n.same(query[tokens], outs[tokens])
    for numbers in (key, value):
        n.same(numbers[0], outs[0])
        n.mixed(numbers[2 if len(numbers) == 4 else 1], outs[tokens], direction)
    _relate_query_heads(n, query, outs, heads)
    for numbers in (key, value):
        _relate_key_heads(n, numbers, outs, heads, kv_heads, ends=numbers is key)
    if len(query) == 4:
        n.contracted(query[3], key[-1])


def _relate_query_heads(n: NodeAxes, query: range, outs: range, heads: int | None) -> None:
    if len(query) == 4:
        n.same(query[1], outs[1])
    elif heads:
        n.part(query[2], outs[2], _head_digit(n.size(query[2]), n.size(outs[2]), heads, heads))
    else:
        n.scrambled(query[2], outs[2])


def _relate_key_heads(
    n: NodeAxes, numbers: range, outs: range, heads: int | None, kv_heads: int | None, *, ends: bool
) -> None:
    """Head h of the result reads head `h // (heads / kv_heads)` of keys and values."""
    if len(numbers) == len(outs) == 4:
        group = floor_divide(n.size(outs[1]), n.size(numbers[1])) if n.size(numbers[1]) != 0 else 1
        if group == 1:
            n.same(numbers[1], outs[1])
        else:
            n.part(numbers[1], outs[1], Part(1, group, n.size(numbers[1])))
        if not ends:
            n.same(numbers[3], outs[3])
        return
    source, target = numbers[-1], outs[-1]
    if len(numbers) != len(outs) or not heads or not kv_heads:
        n.scrambled(source, target)
        return
    n.part(source, target, _head_digit(n.size(source), n.size(target), kv_heads, heads))
    if not ends:
        width = floor_divide(n.size(target), heads)
        n.part(source, target, Part(1, 1, width))


def _head_digit(in_size: Size, out_size: Size, in_heads: int, out_heads: int) -> Part:
    width = floor_divide(out_size, out_heads)
    return Part(floor_divide(in_size, in_heads), width * (out_heads // in_heads), in_heads)


def _attention(n: NodeAxes) -> None:
    """ai.onnx Attention."""
    # With a past, or with padding behind the keys, the order is counted from elsewhere.
    shifted = any(len(n.node.inputs) > p and n.node.inputs[p] is not None for p in (4, 6))
    causal = bool(n.int_attribute("is_causal", 0)) and not shifted
    heads = n.int_attribute("q_num_heads", 0) or None
    kv_heads = n.int_attribute("kv_num_heads", 0) or None
    _relate_attention(n, heads, kv_heads, Direction.FORWARD if causal else Direction.BOTH)
    outs, mask = n.output(), n.operand(3)
    if mask is not None and outs is not None:
        _relate_mask(n, mask, outs)
    _relate_caches(n, kv_heads)


def _relate_mask(n: NodeAxes, mask: Sequence[int], outs: range) -> None:
    """`[..., H, Tq, Tk]`, broadcast against the scores; the key dim ends."""
    n.reduced(mask[-1])
    if len(outs) == 4:
        n.broadcast(mask[:-1], outs[:-1])
        return
    if len(mask) > 1:
        n.aligned(mask[-2], outs[1])
    if len(mask) > 2 and n.size(mask[-3]) != 1:
        n.scrambled(mask[-3], outs[2])
    if len(mask) > 3:
        n.aligned(mask[-4], outs[0])


def _relate_caches(n: NodeAxes, kv_heads: int | None) -> None:
    """Outputs 1 and 2: `[B, H, P + T, D]`, the past and what is new; output 3: the scores."""
    for index, (new, past) in enumerate(((1, 4), (2, 5)), start=1):
        outs, fresh, old = n.output(index), n.operand(new), n.operand(past)
        if outs is None or fresh is None:
            continue
        offset: Size = 0
        if old is not None:
            n.all_same(old[:2], outs[:2])
            n.same(old[3], outs[3])
            n.placed(old[2], outs[2], 0)
            offset = n.size(old[2])
        n.same(fresh[0], outs[0])
        n.placed(fresh[2 if len(fresh) == 4 else 1], outs[2], offset)
        if len(fresh) == 4:
            n.same(fresh[1], outs[1])
            n.same(fresh[3], outs[3])
        elif kv_heads:
            width = n.size(outs[3])
            n.part(fresh[2], outs[1], Part(width, 1, kv_heads))
            n.part(fresh[2], outs[3], Part(1, 1, width))
    scores, query = n.output(3), n.operand(0)
    if scores is not None and query is not None:
        n.same(query[0], scores[0])
        n.same(query[2 if len(query) == 4 else 1], scores[2])
        n.opaque("scores of the operator itself")


def _multi_head_attention(n: NodeAxes) -> None:
    """com.microsoft MultiHeadAttention, queries, keys and values apart."""
    if n.operand(1) is None or n.operand(2) is None:
        n.opaque("packed queries, keys and values")
        return
    heads = n.int_attribute("num_heads", 0) or None
    causal = n.int_attribute("unidirectional", 0) and not (len(n.node.inputs) > 6 and n.node.inputs[6] is not None)
    _relate_attention(n, heads, heads, Direction.FORWARD if causal else Direction.BOTH)


def _group_query_attention(n: NodeAxes) -> None:
    """com.microsoft GroupQueryAttention; its past makes earlier keys visible, so that nothing is claimed of order."""
    if n.operand(1) is None or n.operand(2) is None:
        n.opaque("packed queries, keys and values")
        return
    heads, kv_heads = n.int_attribute("num_heads", 0) or None, n.int_attribute("kv_num_heads", 0) or None
    _relate_attention(n, heads, kv_heads, Direction.BOTH)
    for index in (1, 2):
        outs, fresh = n.output(index), n.operand(index)
        if outs is not None and fresh is not None:
            n.same(fresh[0], outs[0])
            for target in outs[1:]:
                n.scrambled(fresh[2], target)
            n.mixed(fresh[1], outs[2])


def _rotary(position_ids: int, cosine: int) -> AxisRule:
    def rule(n: NodeAxes) -> None:
        ins, outs = n.operand(0), n.output()
        if ins is None or outs is None:
            n.opaque(_UNKNOWN)
            return
        n.all_same(ins[:-1], outs[:-1])
        n.mixed(ins[-1], outs[-1])
        if len(ins) == 3 and n.int_attribute("num_heads", 0):
            heads = n.int_attribute("num_heads", 0)
            n.part(ins[-1], outs[-1], _head_digit(n.size(ins[-1]), n.size(outs[-1]), heads, heads))
        tokens = outs[2] if len(outs) == 4 else outs[1]
        for position in (cosine, cosine + 1):
            table = n.operand(position) or range(0)
            if len(table) == 3:
                n.aligned(table[0], outs[0])
                n.aligned(table[1], tokens)
            for source in table[:1] if len(table) == 2 else ():
                n.gathered(source, tokens)
            if table:
                n.reduced(table[-1])
        ids = n.operand(position_ids)
        if ids is not None and len(ids) == 2:
            n.aligned(ids[0], outs[0])
            n.aligned(ids[1], tokens)

    return rule


ATTENTION_AXIS_RULES: dict[str, AxisRule] = {"Attention": _attention, "RotaryEmbedding": _rotary(3, 1)}
CONTRIB_ATTENTION_AXIS_RULES: dict[str, AxisRule] = {
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _group_query_attention,
    "RotaryEmbedding": _rotary(1, 2),
}
