"""Attention sites that are one operator already: the standard's Attention, and the runtime's own."""

from __future__ import annotations

import math

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.dims import Size, floor_divide
from opgraft.ir.sites.attention_site import Addend, AttentionSite, Refusal

WHOLE_OPERATORS = ("Attention", "MultiHeadAttention", "GroupQueryAttention")
_MASK_INPUT = {"Attention": 3, "MultiHeadAttention": 5}


def site_of_operator(node: onnx_ir.Node, axes: AxisGraph, origins: Origins) -> AttentionSite | Refusal:
    operands = [axes.operand(node, p) for p in range(3)]
    query, key, value = (node.inputs[p] if p < len(node.inputs) else None for p in range(3))
    if query is None or key is None or value is None:
        return Refusal(node, "queries, keys and values are packed in one input")
    q, k, v = operands
    if q is None or k is None or v is None or len(k) != len(q) or len(v) != len(q):
        return Refusal(node, "the ranks of queries, keys and values are not known, or differ")
    heads, kv_heads = _heads(node, q, k, axes)
    if heads is None or kv_heads is None:
        return Refusal(node, "the number of heads is not known")
    width = axes.axes[q[-1]].size if len(q) == 4 else floor_divide(axes.axes[q[-1]].size, heads)
    tokens = 2 if len(q) == 4 else 1
    causal = node.op_type == "GroupQueryAttention" or _int(node, "is_causal") or _int(node, "unidirectional")
    outs = axes.of(node.outputs[0])
    return AttentionSite(
        scores=node,
        softmax=node,
        context=node,
        query=query,
        key=key,
        value=value,
        output=node.outputs[0],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width,
        scale=_scale(node, width),
        addends=tuple(_addends(node, q[tokens], k[tokens])),
        is_channel=False,
        is_cross=origins.roots[q[tokens]] != origins.roots[k[tokens]],
        has_constant_query=query in axes.constant,
        is_causal=bool(causal),
        softmax_positions=None,
        value_key=v[tokens],
        output_query=None,
        roles={
            **_roles(q, Role.QUERY, Role.HEAD),
            **_roles(k, Role.KEY, Role.HEAD if heads == kv_heads else Role.KV_HEAD),
            **_roles(v, Role.KEY, Role.HEAD if heads == kv_heads else Role.KV_HEAD),
            **_roles(outs or range(0), Role.QUERY, Role.HEAD),
        },
    )


def _int(node: onnx_ir.Node, name: str) -> int:
    attribute = node.attributes.get(name)
    return 0 if attribute is None or attribute.is_ref() else attribute.as_int()


def _heads(node: onnx_ir.Node, q: range, k: range, axes: AxisGraph) -> tuple[Size | None, Size | None]:
    if len(q) == 4:
        return axes.axes[q[1]].size, axes.axes[k[1]].size
    heads = _int(node, "q_num_heads") or _int(node, "num_heads") or None
    return heads, _int(node, "kv_num_heads") or heads


def _roles(numbers: range, token: Role, head: Role) -> dict[int, Roles]:
    kinds = (Role.BATCH, head, token, Role.HEAD_DIM) if len(numbers) == 4 else (Role.BATCH, token, Role.CHANNEL)
    return {number: (role,) for number, role in zip(numbers, kinds, strict=False)}


def _scale(node: onnx_ir.Node, width: Size) -> float | None:
    attribute = node.attributes.get("scale")
    if attribute is not None and not attribute.is_ref() and attribute.as_float():
        return attribute.as_float()
    return 1 / math.sqrt(width) if isinstance(width, int) and width else None


def _addends(node: onnx_ir.Node, query: int, key: int) -> list[Addend]:
    position = _MASK_INPUT.get(node.op_type)
    mask = node.inputs[position] if position is not None and position < len(node.inputs) else None
    if mask is None:
        return []
    keeps = True if mask.dtype is onnx_ir.DataType.BOOL else None
    return [Addend(mask, node, query, key, 2, 3, 4, keeps_where=keeps)]
