"""Attention sites that are one operator already: the standard's Attention, and the runtime's own."""

from __future__ import annotations

import math

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.dims import Size, floor_divide, multiply_all
from opgraft.ir.shape_rule import is_opaque
from opgraft.ir.sites.attention_site import Addend, AttentionSite, Refusal
from opgraft.ir.sites.score_dims import ScoreDims

WHOLE_OPERATORS = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_MASK_INPUT = {"Attention": 3, "MultiHeadAttention": 5}
_LENGTHS_INPUT = {"Attention": 6, "MultiHeadAttention": 4, "GroupQueryAttention": 5}
"""Where the operator is told how many keys of each sample count, or which."""


def site_of_operator(node: onnx_ir.Node, axes: AxisGraph, origins: Origins) -> AttentionSite | Refusal:
    q, k, v = (axes.operand(node, p) for p in range(3))
    if any(_input(node, p) is None for p in range(3)):
        return Refusal(node, "queries, keys and values are packed in one input")
    if q is None or k is None or v is None or len(k) != len(q) or len(v) != len(q):
        return Refusal(node, "the ranks of queries, keys and values are not known, or differ")
    outs = axes.of(node.outputs[0]) or range(0)
    if len(q) == 4:
        return _by_head(node, ScoreDims.of_operator(axes, origins, q, k, outs), v)
    heads = _int(node, "q_num_heads") or _int(node, "num_heads")
    if not heads:
        return Refusal(node, "the number of heads is not known")
    # Keys that were repeated for every query head before they came here.
    repeats = multiply_all(axes.axes[n].size for n in axes.components(k[2]) if axes.is_stretched(n))
    kv_heads = floor_divide(_int(node, "kv_num_heads") or heads, repeats)
    head = Role.HEAD if heads == kv_heads else Role.KV_HEAD
    roles: dict[int, Roles] = {}
    for numbers, token, of_head in ((q, Role.QUERY, Role.HEAD), (k, Role.KEY, head), (v, Role.KEY, head)):
        roles |= _merged_roles(numbers, token, of_head, axes)
    roles |= _merged_roles(outs, Role.QUERY, Role.HEAD, axes)
    width = floor_divide(axes.axes[q[2]].size, heads)
    is_cross = origins.roots[q[1]] != origins.roots[k[1]]
    return _site(node, axes, (heads, kv_heads, width), roles, (q[1], k[1], v[1]), is_cross=is_cross)


def _by_head(node: onnx_ir.Node, dims: ScoreDims, values: range) -> AttentionSite | Refusal:
    """Of an operator on `[B, H, T, D]`."""
    doubt = dims.doubt()
    if doubt:
        return Refusal(node, doubt)
    sizes = dims.heads, dims.kv_heads, dims.head_dim
    if any(is_opaque(size) for size in sizes):
        return Refusal(node, "the size of a head is not known")
    roles = dims.roles()
    roles[values[2]] = roles[dims.key[2]]
    roles[values[3]] = roles[dims.query[3]]
    for number, pair in zip(values, dims.shared, strict=False):
        roles[number] = ()
        dims.add_shared(number, Role.KV_HEAD, roles, pair)
    for number, source in zip(dims.outs, (*dims.query[:3], values[3]), strict=False):
        roles[number] = roles[source]
    tokens = dims.query[2], dims.key[2], values[2]
    return _site(node, dims.axes, sizes, roles, tokens, is_cross=dims.is_cross, is_channel=dims.is_channel)


def _site(
    node: onnx_ir.Node,
    axes: AxisGraph,
    sizes: tuple[Size, Size, Size],
    roles: dict[int, Roles],
    tokens: tuple[int, int, int],
    *,
    is_cross: bool,
    is_channel: bool = False,
) -> AttentionSite:
    """`sizes`: heads, heads of keys, width of a head; `tokens`: the token dims of queries, keys and values."""
    query, key, value = (axes.axes[number].value for number in tokens)
    is_causal = node.op_type == "GroupQueryAttention" or _int(node, "is_causal") or _int(node, "unidirectional")
    lengths = _input(node, _LENGTHS_INPUT[node.op_type])
    return AttentionSite(
        scores=node,
        softmax=node,
        context=node,
        query=query,
        key=key,
        value=value,
        output=node.outputs[0],
        heads=sizes[0],
        kv_heads=sizes[1],
        head_dim=sizes[2],
        scale=_scale(node, axes.axes[tokens[0] + 1].size if is_channel else sizes[2]),
        addends=tuple(_addends(node, *tokens[:2], axes)),
        is_channel=is_channel,
        is_cross=is_cross,
        has_constant_query=query in axes.constant,
        is_causal=bool(is_causal),
        softmax_positions=None,
        value_key=tokens[2],
        output_query=None,
        roles=roles,
        undecided="" if lengths is None else f"the operator hides keys by {lengths.name!r}",
    )


def _input(node: onnx_ir.Node, position: int) -> onnx_ir.Value | None:
    return node.inputs[position] if position < len(node.inputs) else None


def _int(node: onnx_ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None or attribute.is_ref() else attribute.as_int()


def _merged_roles(numbers: range, token: Role, head: Role, axes: AxisGraph) -> dict[int, Roles]:
    """Of `[B, T, H * D]`; samples have none here."""
    parts = axes.components(numbers[2])
    split = {parts[-2]: (head,), parts[-1]: (Role.HEAD_DIM,)} if len(parts) == 2 else {}
    return {numbers[1]: (token,), numbers[2]: (Role.CHANNEL,), **split}


def _scale(node: onnx_ir.Node, width: Size) -> float | None:
    attribute = node.attributes.get("scale")
    if attribute is not None and not attribute.is_ref() and attribute.as_float():
        return attribute.as_float()
    return 1 / math.sqrt(width) if isinstance(width, int) and width else None


def _addends(node: onnx_ir.Node, query: int, key: int, axes: AxisGraph) -> list[Addend]:
    mask = _input(node, _MASK_INPUT.get(node.op_type, len(node.inputs)))
    if mask is None:
        return []
    dtype = mask.dtype or axes.facts.dtype(mask)
    keeps = True if dtype is onnx_ir.DataType.BOOL else None
    return [Addend(mask, node, query, key, 2, 3, 4, keeps_where=keeps)]
