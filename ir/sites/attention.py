"""Attention sites: a softmax over a dim of keys, the product that made the scores, and the product that uses them.

Found by following dims, never by names or shapes: the dim that the softmax normalizes is a free dim of one operand of
the score product (the keys) and is summed over in the context product (with the values). What the softmax's input
meets on the way from the score product are scale, masks and biases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Kind
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.dims import Size, multiply_all
from opgraft.ir.program import constant_array, is_op

_MAX_STEPS = 48
_KEEPS_INDEX = (Kind.SAME, Kind.PLACED, Kind.SLICED)
_TRANSPARENT = (
    *("Add", "Sub", "Mul", "Div", "Where", "Cast", "CastLike", "Min", "Max", "Clip", "Tanh", "Identity", "Neg", "Sum"),
    *("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Expand", "Concat", "Slice", "Split", "Dropout"),
    *("MatMul", "Einsum", "Conv", "ScatterND", "And", "Softplus", "Sigmoid"),
)


@dataclass(frozen=True)
class Addend:
    """What is added to the scores, or decides which are replaced."""

    value: onnx_ir.Value
    node: onnx_ir.Node
    """Add, Sub or Where, or the attention operator itself."""
    query_axis: int
    key_axis: int
    """Positions of both token dims in the node's scores."""
    keeps_where: bool | None = None
    """For a condition: which of its values keeps the score."""


@dataclass(frozen=True)
class AttentionSite:
    """One attention: three operands, its scores on the way through the softmax, and what its dims are."""

    scores: onnx_ir.Node
    softmax: onnx_ir.Node
    context: onnx_ir.Node
    query: onnx_ir.Value
    key: onnx_ir.Value
    value: onnx_ir.Value
    output: onnx_ir.Value
    heads: Size
    kv_heads: Size
    head_dim: Size
    scale: float | None
    """What query x key is multiplied with in all; None where it is no constant."""
    addends: tuple[Addend, ...]
    is_channel: bool
    """Whether tokens are summed over in the scores, so that channels attend to channels."""
    is_cross: bool
    """Whether queries and keys come from different dims of the inputs."""
    has_constant_query: bool
    softmax_positions: tuple[int, int] | None
    """Positions of the query and the key dim at the softmax; None where the query dim is merged with others there."""
    value_key: int
    """Number of the key dim of the values."""
    output_query: int | None
    """Position of the query dim in the output."""
    roles: dict[int, Roles] = field(hash=False)
    """Of the dims of all values named here and of the scores, by number."""


@dataclass
class _Scores:
    """The score product as found from the softmax."""

    node: onnx_ir.Node
    key_axis: int
    """Number of the key dim in the product's output."""
    key_position: int
    path: list[tuple[onnx_ir.Node, onnx_ir.Value]]
    """Nodes from the softmax up to the product, each with the value by which it was left."""


def find_attention(graph: onnx_ir.Graph, axes: AxisGraph, origins: Origins) -> Iterator[AttentionSite]:
    """All attentions of one graph level, in order."""
    for node in graph:
        if is_op(node, "Softmax") and node.outputs[0] not in axes.constant:
            found = _site_of(node, axes, origins)
            if found is not None:
                yield found


def _site_of(softmax: onnx_ir.Node, axes: AxisGraph, origins: Origins) -> AttentionSite | None:
    ins, outs = axes.operand(softmax, 0), axes.of(softmax.outputs[0])
    source = softmax.inputs[0]
    if ins is None or outs is None or source is None:
        return None
    mixed = [r.source for n in outs for r in axes.into[n] if r.kind is Kind.MIXED]
    if len(mixed) != 1:
        return None
    scores = _find_scores(axes, source, mixed[0])
    if scores is None:
        return None
    context = _find_context(axes, outs[mixed[0] - ins[0]])
    if context is None:
        return None
    return _describe(softmax, scores, *context, axes, origins)


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
            found = _Scores(node, number, position, path)
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
    pending, seen = [number], {number}
    while pending and len(seen) < _MAX_STEPS:
        current = pending.pop(0)
        for relation in axes.out_of[current]:
            if relation.kind is Kind.CONTRACTED:
                partner = axes.axes[relation.detail]
                if partner.value not in axes.constant:
                    return relation.node, current, relation.detail
            elif relation.kind in _KEEPS_INDEX and relation.target not in seen:
                seen.add(relation.target)
                pending.append(relation.target)
    return None


def _describe(
    softmax: onnx_ir.Node,
    scores: _Scores,
    context: onnx_ir.Node,
    weights_key: int,
    values_key: int,
    axes: AxisGraph,
    origins: Origins,
) -> AttentionSite | None:
    node = scores.node
    operands = _contracting_operands(axes, node)
    if len(operands) != 2 or scores.key_position not in operands:
        return None
    query_position = next(p for p in operands if p != scores.key_position)
    query, key, value = node.inputs[query_position], node.inputs[scores.key_position], axes.axes[values_key].value
    if query is None or key is None:
        return None
    dims = ScoreDims(axes, origins, node, query_position, scores.key_position, scores.key_axis)
    if dims.query_axis is None:
        return None
    track = _track(scores, axes, dims.query_axis)
    roles = dims.roles()
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
        scale=_scale_of(scores, query, key, axes),
        addends=tuple(_addends(track)),
        is_channel=dims.is_channel,
        is_cross=dims.is_cross,
        has_constant_query=query in axes.constant,
        softmax_positions=track[-1][2:] if len(track) == len(scores.path) + 1 else None,
        value_key=values_key,
        output_query=_output_query(axes, context, weights_key),
        roles=roles,
    )


class ScoreDims:
    """The dims of a score product: `[batch and heads ..., queries, keys]`, in whatever order."""

    def __init__(
        self, axes: AxisGraph, origins: Origins, node: onnx_ir.Node, query: int, key: int, key_axis: int
    ) -> None:
        self._axes = axes
        self._origins = origins
        self.query = axes.operand(node, query) or range(0)
        self.key = axes.operand(node, key) or range(0)
        self.outs = axes.of(node.outputs[0]) or range(0)
        self.key_axis = key_axis
        self.shared = [n for n in self.outs if self._from(n, self.query) and self._from(n, self.key)]
        free = [n for n in self.outs if self._from(n, self.query) and n not in self.shared]
        # Groups of queries that share keys may be a dim of their own; the tokens are those counted in an input.
        self.groups = [n for n in free if origins.is_weight(n)] if len(free) > 1 else []
        tokens = [n for n in free if n not in self.groups]
        self.query_axis = tokens[-1] if tokens else (free[-1] if free else None)
        self.contracted_query = [n for n in self.query if self._ends(n, node)]
        self.contracted_key = [n for n in self.key if self._ends(n, node)]

    def _from(self, number: int, operand: range) -> bool:
        return any(r.source in operand and r.kind in (Kind.SAME, Kind.BROADCAST) for r in self._axes.into[number])

    def _ends(self, number: int, node: onnx_ir.Node) -> bool:
        return any(r.kind is Kind.CONTRACTED and r.node is node for r in self._axes.out_of[number])

    @property
    def is_channel(self) -> bool:
        return any(self._origins.is_input(n) for n in self.contracted_key)

    @property
    def is_cross(self) -> bool:
        if self.query_axis is None or self.is_channel:
            return False
        return self._origins.roots[self.query_axis] != self._origins.roots[self.key_axis]

    @property
    def head_dim(self) -> Size:
        return multiply_all(self._axes.axes[n].size for n in self.contracted_key)

    @property
    def heads(self) -> Size:
        """Heads of the queries: shared dims made by weights, and groups of queries."""
        digits = [d for n in self.shared for d in self._head_digits(self._source(n, self.query))]
        digits += self.groups
        if self.query_axis is not None:
            parts = self._axes.components(self.query_axis)
            digits += [d for d in parts if len(parts) > 1 and self._origins.is_weight(d)]
        return multiply_all(self._axes.axes[d].size for d in digits)

    @property
    def kv_heads(self) -> Size:
        digits = [d for n in self.shared for d in self._head_digits(self._source(n, self.key))]
        return multiply_all(self._axes.axes[d].size for d in digits if not self._axes.is_stretched(d))

    def _source(self, number: int, operand: range) -> int:
        return next(r.source for r in self._axes.into[number] if r.source in operand)

    def _head_digits(self, number: int) -> list[int]:
        """The parts of a shared dim that are heads, not samples."""
        return [d for d in self._axes.components(number) if not self._origins.is_input(d)]

    def roles(self) -> dict[int, Roles]:
        """Of the dims of both operands and of the product."""
        tokens = (Role.CHANNEL, Role.CHANNEL) if self.is_channel else (Role.QUERY, Role.KEY)
        ended = Role.TOKEN if self.is_channel else Role.HEAD_DIM
        found: dict[int, Roles] = {}
        for numbers, role, head in ((self.query, tokens[0], Role.HEAD), (self.key, tokens[1], Role.KV_HEAD)):
            for n in numbers:
                found[n] = (role,)
            for n in self.contracted_query + self.contracted_key:
                found[n] = (ended,)
            for shared in self.shared:
                self.add_shared(self._source(shared, numbers), head, found)
        for n in self.groups:
            found[self._source(n, self.query)] = (Role.HEAD,)
        for n in self.outs:
            operand = self.query if self._from(n, self.query) else self.key
            found[n] = found[self._source(n, operand)]
        return found

    def add_shared(self, number: int, head: Role, found: dict[int, Roles]) -> None:
        """The roles of a dim that runs along with the samples and heads, and of the dims it was merged from."""
        if self.heads == self.kv_heads:
            head = Role.HEAD
        found[number] = self._shared_roles(number, head)
        for part in self._axes.components(number):
            if part != number and not self._origins.is_input(part) and self._axes.axes[part].size != 1:
                found[part] = (Role.HEAD,) if self._axes.is_stretched(part) else (head,)

    def _shared_roles(self, number: int, head: Role) -> Roles:
        parts = self._axes.components(number)
        roles = []
        for part in parts:
            if self._axes.axes[part].size == 1 and not self._origins.is_input(part) and len(parts) > 1:
                continue
            if self._origins.is_input(part):
                roles.append(Role.BATCH)
            else:
                roles.append(Role.HEAD if self._axes.is_stretched(part) else head)
        merged = [r for i, r in enumerate(roles) if i == 0 or r is not roles[i - 1]]
        if Role.HEAD in merged and Role.KV_HEAD in merged:
            # Keys repeated for every query head: a dim of heads.
            merged = [r for r in merged if r is not Role.KV_HEAD]
        return tuple(merged)


def _add_value_roles(
    axes: AxisGraph, context: onnx_ir.Node, weights_key: int, values_key: int, roles: dict[int, Roles], dims: ScoreDims
) -> None:
    """Roles of the weights, the values and the context from those of the scores."""
    outs = axes.of(context.outputs[0]) or range(0)
    weights = next(
        (axes.operand(context, p) for p in range(len(context.inputs)) if weights_key in _of(axes, context, p)), None
    )
    values = next(
        (axes.operand(context, p) for p in range(len(context.inputs)) if values_key in _of(axes, context, p)), None
    )
    if weights is None or values is None:
        return
    roles[weights_key] = roles[values_key] = (Role.CHANNEL,) if dims.is_channel else (Role.KEY,)
    for out in outs:
        from_weights = [r.source for r in axes.into[out] if r.source in weights]
        from_values = [r.source for r in axes.into[out] if r.source in values]
        if from_values and from_weights:
            dims.add_shared(from_values[0], Role.KV_HEAD, roles)
        if from_values and not from_weights:
            roles[out] = (Role.TOKEN,) if dims.is_channel else (Role.HEAD_DIM,)
            roles[from_values[0]] = roles[out]


def _output_query(axes: AxisGraph, context: onnx_ir.Node, weights_key: int) -> int | None:
    """The position of the one free dim of the attention weights in the context product's output."""
    positions = range(len(context.inputs))
    weights = next((p for p in positions if weights_key in _of(axes, context, p)), None)
    if weights is None:
        return None
    free = [
        n
        for n in axes.of(context.outputs[0]) or ()
        if {p for p in positions for r in axes.into[n] if r.source in _of(axes, context, p)} == {weights}
    ]
    return axes.axes[free[0]].index if len(free) == 1 else None


def _of(axes: AxisGraph, node: onnx_ir.Node, position: int) -> range:
    return axes.operand(node, position) or range(0)


def _scale_of(scores: _Scores, query: onnx_ir.Value, key: onnx_ir.Value, axes: AxisGraph) -> float | None:
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


def _track(scores: _Scores, axes: AxisGraph, query_axis: int) -> list[tuple[onnx_ir.Node, onnx_ir.Value, int, int]]:
    """The nodes from the product to the softmax, each with the value it goes on with and the positions of the query
    and key dims in its output; as far as both can be followed."""
    found = [(scores.node, scores.node.outputs[0], *_positions(axes, query_axis, scores.key_axis))]
    numbers = [query_axis, scores.key_axis]
    for node, kept in reversed(scores.path):
        outs, ins = axes.of(node.outputs[0]) or range(0), axes.of(kept) or range(0)
        for place, number in enumerate(numbers):
            moved = [r.target for r in axes.out_of[number] if r.target in outs and r.kind in _KEEPS_INDEX]
            if number not in ins or not moved:
                return found
            numbers[place] = moved[0]
        found.append((node, kept, *_positions(axes, *numbers)))
    return found


def _positions(axes: AxisGraph, query: int, key: int) -> tuple[int, int]:
    return axes.axes[query].index, axes.axes[key].index


def _addends(track: list[tuple[onnx_ir.Node, onnx_ir.Value, int, int]]) -> Iterator[Addend]:
    """Masks and biases, nearest to the product first."""
    for node, kept, queries, keys in track[1:]:
        if is_op(node, "Add", "Sub", "Sum"):
            for other in node.inputs:
                if other is not None and other is not kept:
                    yield Addend(other, node, queries, keys)
        elif is_op(node, "Where") and node.inputs[0] is not None and node.inputs[0] is not kept:
            yield Addend(node.inputs[0], node, queries, keys, keeps_where=node.inputs[1] is kept)
