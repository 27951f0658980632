"""Attention sites: a softmax over a dim of keys, the product that made the scores, and the product that uses them.

Found by following dims, never by names or shapes: the dim that the softmax normalizes is a free dim of one operand of
the score product (the keys) and is summed over in the context product (with the values). What the softmax's input
meets on the way from the score product are scale, masks and biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Kind, Relation
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.program import constant_array, is_op
from opgraft.ir.shape_rule import is_opaque
from opgraft.ir.sites.attention_operator import WHOLE_OPERATORS, site_of_operator
from opgraft.ir.sites.attention_site import Addend, AttentionSite, Refusal
from opgraft.ir.sites.score_dims import ScoreDims

_MAX_STEPS = 48
_KEEPS_INDEX = (Kind.SAME, Kind.PLACED, Kind.SLICED)
_TRANSPARENT = (
    *("Add", "Sub", "Mul", "Div", "Where", "Cast", "CastLike", "Min", "Max", "Clip", "Tanh", "Identity", "Neg", "Sum"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Slice", "Split", "Dropout"),
    *("MatMul", "Einsum", "Conv", "ScatterND", "And", "Softplus", "Sigmoid"),
)


@dataclass
class _Scores:
    """The score product as found from the softmax."""

    axes: AxisGraph
    node: onnx_ir.Node
    key_axis: int
    """Number of the key dim in the product's output."""
    key_position: int
    path: list[tuple[onnx_ir.Node, onnx_ir.Value]]
    """Nodes from the softmax up to the product, each with the value by which it was left."""


def find_attention(graph: onnx_ir.Graph, axes: AxisGraph, origins: Origins) -> Iterator[AttentionSite | Refusal]:
    """All attentions of one graph level, in order, and what might be one but cannot be claimed."""
    for node in graph:
        if node.outputs and node.outputs[0] in axes.constant:
            continue
        found: AttentionSite | Refusal | None = None
        if is_op(node, "Softmax"):
            found = _site_of(node, axes, origins)
        elif node.op_type in WHOLE_OPERATORS:
            found = site_of_operator(node, axes, origins)
        if found is not None:
            yield found


def _site_of(softmax: onnx_ir.Node, axes: AxisGraph, origins: Origins) -> AttentionSite | Refusal | None:
    ins, outs = axes.operand(softmax, 0), axes.of(softmax.outputs[0])
    source = softmax.inputs[0]
    if ins is None or outs is None or source is None:
        return None
    mixed = [r.source for n in outs for r in axes.into[n] if r.kind is Kind.MIXED]
    if len(mixed) != 1:
        return None
    context = _find_context(axes, outs[mixed[0] - ins[0]])
    if context is None:
        return _without_context(softmax, axes, outs[mixed[0] - ins[0]])
    scores = _find_scores(axes, source, mixed[0])
    if scores is None:
        return Refusal(softmax, "weights a sum, but no product of queries and keys is found before it")
    if _is_one_of_several(scores):
        keys: dict[int, Roles] = {mixed[0]: (Role.KEY,)}
        return Refusal(softmax, "normalizes scores that several products made, side by side", keys)
    return _describe(softmax, scores, *context, axes, origins)


def _without_context(softmax: onnx_ir.Node, axes: AxisGraph, number: int) -> Refusal | None:
    """Why there is no product with computed values after the softmax, where that is remarkable."""
    relations = [r for current in _passed_on(axes, number) for r in axes.out_of[current]]
    if any(r.kind in (Kind.SCRAMBLED, Kind.OPAQUE) for r in relations):
        return Refusal(softmax, "the dim that it normalizes is regrouped in a way that is not followed")
    if any(r.kind is Kind.CONTRACTED for r in relations):
        return Refusal(softmax, "weights constants: an attention over learned keys and values, or a layer of its own")
    return None


def _find_scores(axes: AxisGraph, start: onnx_ir.Value, axis: int) -> _Scores | None:
    """Backwards from the softmax to the nearest product of two computed operands; else of one and a constant."""
    fallback: _Scores | None = None
    pending: list[tuple[onnx_ir.Value, int, list[tuple[onnx_ir.Node, onnx_ir.Value]]]] = [(start, axis, [])]
    seen = {start}
    while pending and len(seen) < _MAX_STEPS:
        value, number, path = pending.pop(0)
        node = value.producer()
        if node is None or not is_op(node, *_TRANSPARENT, "Gemm"):
            continue
        position = _operand_with(axes, node, number)
        if position is not None and _contracts(axes, node) and not _is_constant(axes, node, position):
            found = _Scores(axes, node, number, position, path)
            if not any(_is_constant(axes, node, p) for p in _contracting_operands(axes, node)):
                return found
            fallback = fallback or found
        for relation in axes.into[number]:
            before = axes.axes[relation.source].value if relation.source >= 0 else None
            if relation.kind not in _KEEPS_INDEX or before is None or before in axes.constant or before in seen:
                continue
            if before not in node.inputs:
                continue
            seen.add(before)
            pending.append((before, relation.source, [*path, (node, before)]))
    return fallback


def _is_one_of_several(scores: _Scores) -> bool:
    """Whether other computed scores stand beside the product's along the keys, more than a sink."""
    axes = scores.axes
    for node, kept in scores.path:
        if not is_op(node, "Concat"):
            continue
        for position, value in enumerate(node.inputs):
            placed = [n for n in axes.operand(node, position) or () if any(_is_placed(r, node) for r in axes.out_of[n])]
            if value is not kept and value not in axes.constant and any(axes.axes[n].size != 1 for n in placed):
                return True
    return False


def _is_placed(relation: Relation, node: onnx_ir.Node) -> bool:
    return relation.kind is Kind.PLACED and relation.node is node


def _operand_with(axes: AxisGraph, node: onnx_ir.Node, number: int) -> int | None:
    """Which operand the dim of the output comes from, when it is one alone."""
    sources = {r.source for r in axes.into[number] if r.kind is Kind.SAME}
    positions = [p for p in range(len(node.inputs)) if sources & set(axes.operand(node, p) or ())]
    return positions[0] if len(positions) == 1 else None


def _contracting_operands(axes: AxisGraph, node: onnx_ir.Node) -> list[int]:
    return [
        p
        for p in range(len(node.inputs))
        if any(
            r.kind is Kind.CONTRACTED and r.node is node for n in axes.operand(node, p) or () for r in axes.out_of[n]
        )
    ]


def _contracts(axes: AxisGraph, node: onnx_ir.Node) -> bool:
    return len(_contracting_operands(axes, node)) > 1


def _is_constant(axes: AxisGraph, node: onnx_ir.Node, position: int) -> bool:
    return node.inputs[position] in axes.constant


def _find_context(axes: AxisGraph, number: int) -> tuple[onnx_ir.Node, int, int] | None:
    """Forwards from the softmax to where the key dim is summed over: node, key dim of the weights, of the values."""
    for current in _passed_on(axes, number):
        for relation in axes.out_of[current]:
            if relation.kind is Kind.CONTRACTED and axes.axes[relation.detail].value not in axes.constant:
                return relation.node, current, relation.detail
    return None


def _passed_on(axes: AxisGraph, number: int) -> Iterator[int]:
    """The dim and those after it that keep its index, nearest first."""
    pending, seen = [number], {number}
    while pending and len(seen) < _MAX_STEPS:
        current = pending.pop(0)
        yield current
        for relation in axes.out_of[current]:
            if relation.kind in _KEEPS_INDEX and relation.target not in seen:
                seen.add(relation.target)
                pending.append(relation.target)


def _describe(
    softmax: onnx_ir.Node,
    scores: _Scores,
    context: onnx_ir.Node,
    weights_key: int,
    values_key: int,
    axes: AxisGraph,
    origins: Origins,
) -> AttentionSite | Refusal | None:
    node = scores.node
    operands = _contracting_operands(axes, node)
    if len(operands) != 2 or scores.key_position not in operands:
        return None
    query_position = next(p for p in operands if p != scores.key_position)
    query, key, value = node.inputs[query_position], node.inputs[scores.key_position], axes.axes[values_key].value
    if query is None or key is None:
        return None
    dims = ScoreDims.of_product(axes, origins, node, query_position, scores.key_position, scores.key_axis)
    if dims.query_axis is None:
        return None
    doubt = dims.doubt()
    if doubt:
        return Refusal(softmax, doubt)
    if any(is_opaque(size) for size in (dims.heads, dims.kv_heads, dims.head_dim)):
        return Refusal(softmax, "the size of a head is not known")
    track = _track(scores, dims.query_axis)
    roles = dims.roles()
    dims.score_roles(roles)
    _add_value_roles(axes, context, weights_key, values_key, roles, dims)
    return AttentionSite(
        scores=node,
        softmax=softmax,
        context=context,
        query=query,
        key=key,
        value=value,
        output=context.outputs[0],
        heads=dims.heads,
        kv_heads=dims.kv_heads,
        head_dim=dims.head_dim,
        scale=_scale_of(scores, query, key),
        addends=tuple(_addends(track, axes)),
        is_channel=dims.is_channel,
        is_cross=dims.is_cross,
        has_constant_query=query in axes.constant,
        is_causal=False,
        softmax_positions=_softmax_positions(scores, track),
        value_key=values_key,
        output_query=_output_query(axes, context, weights_key),
        roles=roles,
    )


def _add_value_roles(
    axes: AxisGraph, context: onnx_ir.Node, weights_key: int, values_key: int, roles: dict[int, Roles], dims: ScoreDims
) -> None:
    """Roles of the weights, the values and the context from those of the scores."""
    outs = axes.of(context.outputs[0]) or range(0)
    weights = _of(axes, context, _operand_holding(axes, context, weights_key))
    values = _of(axes, context, _operand_holding(axes, context, values_key))
    roles[weights_key] = roles[values_key] = (Role.CHANNEL,) if dims.is_channel else (Role.KEY,)
    n_shared = 0
    for out in outs:
        from_weights = [r.source for r in axes.into[out] if r.source in weights]
        from_values = [r.source for r in axes.into[out] if r.source in values]
        if from_values and from_weights:
            place = dims.shared[n_shared] if n_shared < len(dims.shared) else None
            dims.add_shared(from_values[0], Role.KV_HEAD, roles, place)
            n_shared += 1
        if from_values and not from_weights:
            roles[out] = (Role.TOKEN,) if dims.is_channel else (Role.HEAD_DIM,)
            roles[from_values[0]] = roles[out]


def _output_query(axes: AxisGraph, context: onnx_ir.Node, weights_key: int) -> int | None:
    """The position of the one free dim of the attention weights in the context product's output."""
    positions = range(len(context.inputs))
    weights = _operand_holding(axes, context, weights_key)
    free = [
        n
        for n in axes.of(context.outputs[0]) or ()
        if {p for p in positions for r in axes.into[n] if r.source in _of(axes, context, p)} == {weights}
    ]
    return axes.axes[free[0]].index if len(free) == 1 else None


def _operand_holding(axes: AxisGraph, node: onnx_ir.Node, number: int) -> int:
    """The position of the operand that has the dim."""
    return next(p for p in range(len(node.inputs)) if number in _of(axes, node, p))


def _of(axes: AxisGraph, node: onnx_ir.Node, position: int) -> range:
    return axes.operand(node, position) or range(0)


def _scale_of(scores: _Scores, query: onnx_ir.Value, key: onnx_ir.Value) -> float | None:
    scale = 1.0
    for node, kept in scores.path:
        factor = _factor(node, kept)
        if factor is None:
            return None
        scale *= factor
    for value in (query, key):
        scale *= _scale_before(value)
    return scale


def _factor(node: onnx_ir.Node, kept: onnx_ir.Value) -> float | None:
    """What a node on the way multiplies the scores with; None when that is not one number."""
    if not is_op(node, "Mul", "Div"):
        return 1.0
    other = next((v for v in node.inputs if v is not kept), None)
    array = constant_array(other)
    if array is None or array.size != 1 or (is_op(node, "Div") and node.inputs[0] is not kept):
        return None
    number = float(array.reshape(-1)[0])
    if is_op(node, "Mul"):
        return number
    return 1.0 / number if number else None


def _scale_before(value: onnx_ir.Value) -> float:
    """Scalar factors on the way to an operand: exporters put the root of the scale on both."""
    scale = 1.0
    for _ in range(_MAX_STEPS):
        node = value.producer()
        if node is None or not is_op(
            node, "Mul", "Div", "Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze", "Expand"
        ):
            break
        source = node.inputs[0]
        if is_op(node, "Mul", "Div"):
            source = next((v for v in node.inputs if v is not None and constant_array(v) is None), None)
            factor = _factor(node, source) if source is not None else None
            if factor is None:
                break
            scale *= factor
        if source is None:
            break
        value = source
    return scale


@dataclass(frozen=True)
class _Step:
    """A node between the product and the softmax, the value it goes on with, and the token dims of its output."""

    node: onnx_ir.Node
    kept: onnx_ir.Value
    query: int
    key: int


def _track(scores: _Scores, query: int) -> list[_Step]:
    """From the product towards the softmax, as far as both token dims can be followed."""
    axes, numbers = scores.axes, [query, scores.key_axis]
    found = [_Step(scores.node, scores.node.outputs[0], *numbers)]
    for node, kept in reversed(scores.path):
        outs = axes.of(node.outputs[0]) or range(0)
        for place, number in enumerate(numbers):
            moved = [r.target for r in axes.out_of[number] if r.target in outs and r.kind in _KEEPS_INDEX]
            if axes.axes[number].value is not kept or not moved:
                return found
            numbers[place] = moved[0]
        found.append(_Step(node, kept, *numbers))
    return found


def _addends(track: list[_Step], axes: AxisGraph) -> Iterator[Addend]:
    """Masks and biases, nearest to the product first."""
    for step in track[1:]:
        node = step.node
        rank = len(axes.of(node.outputs[0]) or ())
        places = (step.query, step.key, axes.axes[step.query].index, axes.axes[step.key].index, rank)
        if is_op(node, "Add", "Sub", "Sum"):
            for other in node.inputs:
                if other is not None and other is not step.kept:
                    yield Addend(other, node, *places)
        elif is_op(node, "Where") and node.inputs[0] is not None and node.inputs[0] is not step.kept:
            yield Addend(node.inputs[0], node, *places, keeps_where=node.inputs[1] is step.kept)


def _softmax_positions(scores: _Scores, track: list[_Step]) -> tuple[int, int] | None:
    if len(track) != len(scores.path) + 1:
        return None
    return scores.axes.axes[track[-1].query].index, scores.axes.axes[track[-1].key].index
