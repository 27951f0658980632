"""Roles for all dims: from attention sites, linear layers, convolutions, embeddings and routers, along the relations.

Stronger evidence goes first, and a dim keeps the first role it gets: attention, experts, vocabulary, channels,
sequences, spatial dims, and last the batch, which is what no operator mixes. Roles travel along relations that keep
what a dim is (the same index, a slice, a window), both ways; views are composed from the roles of their parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

import onnx_ir
from opgraft.ir.axes.graph import NOWHERE, AxisGraph, Direction, Kind, Relation
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.program import is_op
from opgraft.ir.sites.attention_site import AttentionSite, Refusal
from opgraft.ir.sites.masks import Mask
from opgraft.ir.sites.weight_roles import channels, experts, filters, projected, vocabulary

_CARRIES = frozenset((Kind.SAME, Kind.RESTORED, Kind.SLICED, Kind.PLACED, Kind.WINDOW, Kind.MIXED))
_TOKENS = frozenset((Role.TOKEN, Role.QUERY, Role.KEY))
_HEADS = frozenset((Role.HEAD, Role.KV_HEAD, Role.HEAD_DIM))
_CHANNELS = frozenset((Role.CHANNEL, Role.HEAD, Role.KV_HEAD, Role.HEAD_DIM))


class RoleTable:
    """The roles of every dim, and why one has none."""

    def __init__(self, axes: AxisGraph, origins: Origins) -> None:
        self.axes = axes
        self.origins = origins
        self.roles: list[Roles] = [()] * len(axes.axes)
        self.filters: frozenset[int] = frozenset()
        """Channels of convolutions; no tokens, though a later decoder takes them one by one."""
        self.projected: frozenset[int] = frozenset()
        """Channels that linear layers make; no heads, though what is cut out of them is."""

    def of(self, value: onnx_ir.Value) -> tuple[Roles, ...] | None:
        """The roles of the dims of a computed value or input; None where its rank is unknown."""
        numbers = self.axes.of(value)
        return None if numbers is None else tuple(self.roles[n] for n in numbers)

    def of_operand(self, node: onnx_ir.Node, position: int) -> tuple[Roles, ...] | None:
        numbers = self.axes.operand(node, position)
        return None if numbers is None else tuple(self.roles[n] for n in numbers)

    def reason(self, number: int) -> str:
        """Why the dim has no role."""
        relations = self.axes.into[number]
        for relation in relations:
            if relation.kind is Kind.OPAQUE:
                return f"opaque at {relation.node.name or relation.node.op_type}: {relation.detail}"
        ends = {r.kind for r in self.axes.out_of[number]}
        if Kind.SCRAMBLED in ends or any(r.kind is Kind.SCRAMBLED for r in relations):
            return "regrouped with other dims in a way that is not followed"
        if Kind.CREATED in {r.kind for r in relations}:
            return "made by an operator and used by none that tells its role"
        return "no operator that it reaches tells its role"


def assign_roles(
    graph: onnx_ir.Graph,
    axes: AxisGraph,
    origins: Origins,
    attention: Iterable[AttentionSite],
    refused: Iterable[Refusal] = (),
    masks: Iterable[Mask] = (),
) -> RoleTable:
    table = RoleTable(axes, origins)
    sites = list(attention)
    nodes = [node for node in graph if any(v not in axes.constant for v in node.outputs)]
    table.filters = frozenset(filters(nodes, axes))
    table.projected = frozenset(projected(nodes, axes))
    _spread(table, (item for site in sites for item in site.roles.items()))
    _spread(table, _padding(axes, masks))
    _spread(table, (item for refusal in refused for item in refusal.roles.items()))
    _spread(table, experts(nodes, axes, origins))
    _spread(table, vocabulary(nodes, axes))
    # Where some layers slide along a dim and others sum over it, as mixers of tokens do, it is a sequence when the
    # inputs bring it, and channels when weights made it.
    positions = list(_positions(axes))
    _spread(table, (item for item in positions if origins.is_input(item[0])))
    _spread(table, channels(nodes, axes, origins))
    _spread(table, positions)
    _compose(table)
    _spread(table, _batch(graph, table))
    for _ in range(3):
        if not _compose(table):
            break
    for number, roles in _units(table):
        table.roles[number] = table.roles[number] or roles
    _name_tokens(table, sites)
    return table


def _spread(table: RoleTable, seeds: Iterable[tuple[int, Roles]]) -> int:
    """Give the seeds their roles and carry them on, nearest first. Returns how many dims got a role."""
    pending: deque[int] = deque()
    n_new = 0
    for number, roles in seeds:
        if roles and not table.roles[number]:
            table.roles[number] = roles
            pending.append(number)
            n_new += 1
    while pending:
        number = pending.popleft()
        for other, relation in _neighbours(table.axes, number):
            if not table.roles[other] and not _is_barred(table, table.roles[number], other, relation):
                table.roles[other] = table.roles[number]
                pending.append(other)
                n_new += 1
    return n_new


def _neighbours(axes: AxisGraph, number: int) -> Iterator[tuple[int, Relation]]:
    for relation in axes.out_of[number]:
        if relation.target != NOWHERE and _carries(axes, relation):
            yield relation.target, relation
    for relation in axes.into[number]:
        if relation.source != NOWHERE and _carries(axes, relation):
            yield relation.source, relation


def _is_barred(table: RoleTable, roles: Roles, other: int, relation: Relation) -> bool:
    if other in table.filters:
        return not _TOKENS.isdisjoint(roles)
    is_whole = relation.kind is Kind.SLICED and relation.source == other
    return is_whole and other in table.projected and not _HEADS.isdisjoint(roles)


def _carries(axes: AxisGraph, relation: Relation) -> bool:
    if relation.kind is Kind.GATHERED:
        # Rows of a table are another thing than the places that ask for them; and an index that varies along several
        # dims makes none of them the dim that it indexes.
        ends = (axes.out_of[relation.source], axes.into[relation.target])
        places = [[r for r in end if r.kind is Kind.GATHERED and r.node is relation.node] for end in ends]
        return all(len(p) == 1 for p in places) and axes.axes[relation.source].value not in axes.constant
    return relation.kind in _CARRIES


def _padding(axes: AxisGraph, masks: Iterable[Mask]) -> Iterator[tuple[int, Roles]]:
    """`[B, Tk]`: inputs whose zeros were seen to hide keys, one sample's in that sample."""
    for value in dict.fromkeys(v for mask in masks for v in mask.padding_inputs):
        batch, keys = axes.of(value) or (NOWHERE, NOWHERE)
        if batch != NOWHERE:
            yield batch, (Role.BATCH,)
            yield keys, (Role.KEY,)


def _positions(axes: AxisGraph) -> Iterator[tuple[int, Roles]]:
    """Dims along which windows slide or state is carried: of one dim a sequence, of more space."""
    for node_relations in axes.out_of:
        for relation in node_relations:
            node = relation.node
            if relation.kind is Kind.MIXED and (
                relation.detail is not Direction.BOTH or _carries_state(axes, relation)
            ):
                yield relation.source, (Role.TOKEN,)
            elif relation.target != NOWHERE and _slides(axes, relation):
                data = axes.operand(node, 0) or range(0)
                yield relation.source, (Role.TOKEN,) if len(data) == 3 else (Role.SPATIAL,)


def _carries_state(axes: AxisGraph, relation: Relation) -> bool:
    return is_op(relation.node, "LSTM", "GRU", "RNN") and relation.source in (
        axes.operand(relation.node, 0) or range(0)
    )


_SLIDING = (
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "LpPool",
    "Resize",
    "Upsample",
    "GridSample",
    "ConvInteger",
)


def _slides(axes: AxisGraph, relation: Relation) -> bool:
    if not is_op(relation.node, *_SLIDING):
        return False
    return axes.axes[relation.source].index >= 2 and axes.axes[relation.source].use is None


def _batch(graph: onnx_ir.Graph, table: RoleTable) -> Iterator[tuple[int, Roles]]:
    """Dims of inputs that reach the outputs, or their end, without an operator that mixes along them."""
    for value in graph.inputs:
        for number in table.axes.of(value) or ():
            if not table.roles[number] and _never_mixed(table.axes, number):
                yield number, (Role.BATCH,)


def _never_mixed(axes: AxisGraph, number: int) -> bool:
    """Whether the dim stays itself to the end: nothing mixes along it, alone or merged with others."""
    own, merged = _closure(axes, [number], with_digits=True)
    holders, _ = _closure(axes, merged)
    for current in (*own, *holders):
        for relation in axes.out_of[current]:
            if relation.kind in _ENDS_BATCH:
                return False
            if current not in own and relation.kind is Kind.PART and not _is_merge(axes, relation):
                # Taken apart again: the dim itself must be among the parts.
                outs = axes.of(axes.axes[relation.target].value) or ()
                if not any(n in own for n in outs):
                    return False
    return True


def _closure(axes: AxisGraph, start: Iterable[int], *, with_digits: bool = False) -> tuple[set[int], list[int]]:
    """All dims that are the given ones, or digits of them, and the dims that these were merged into."""
    pending = list(start)
    seen, merged = set(pending), []
    while pending:
        for relation in axes.out_of[pending.pop()]:
            target = relation.target
            if target == NOWHERE or target in seen:
                continue
            if relation.kind is Kind.PART and not relation.detail.through and _is_merge(axes, relation):
                merged.append(target)
            elif relation.kind in _CARRIES or (relation.kind is Kind.PART and (relation.detail.through or with_digits)):
                seen.add(target)
                pending.append(target)
    return seen, merged


def _is_merge(axes: AxisGraph, relation: Relation) -> bool:
    """Whether all of the source becomes a digit of the target."""
    return bool(relation.detail.size == axes.axes[relation.source].size)


_ENDS_BATCH = (
    *(Kind.CONTRACTED, Kind.MIXED, Kind.SCRAMBLED, Kind.WINDOW, Kind.REDUCED, Kind.GATHERED, Kind.OPAQUE),
    # A sample is not asked for by a number of its own, as a feature is.
    Kind.SELECTED,
)


def _compose(table: RoleTable) -> int:
    """Roles of split and merged dims from those on the other side of the view."""
    found = 0
    for number in range(len(table.roles)):
        if table.roles[number]:
            continue
        roles = _merged(table, number) or _split(table, number)
        if roles:
            found += _spread(table, [(number, roles)])
    return found


def _merged(table: RoleTable, number: int) -> Roles:
    parts = table.axes.components(number)
    if len(parts) < 2:
        return ()
    # Tiled, the dim is what it was.
    repeated = [p for p in parts if table.axes.axes[p].index < 0 and table.axes.is_stretched(p)]
    roles = [table.roles[p] for p in parts if p not in repeated or (table.roles[p] and table.axes.axes[p].size != 1)]
    if not roles or not all(roles):
        return ()
    return joined(r for part in roles for r in part)


def joined(roles: Iterable[Role]) -> Roles:
    """The roles of a merged dim: channels in pieces are channels, neighbours of one kind are one."""
    flat = list(roles)
    if flat and all(r in _CHANNELS for r in flat) and Role.HEAD_DIM in flat:
        return (Role.CHANNEL,)
    return tuple(r for i, r in enumerate(flat) if i == 0 or r is not flat[i - 1])


def _split(table: RoleTable, number: int) -> Roles:
    """A part of a dim with one role has that role: groups of channels, windows of a sequence."""
    size = table.axes.axes[number].size
    for relation in table.axes.into[number]:
        if relation.kind is not Kind.PART or relation.detail.through or relation.detail.size != size:
            continue
        if len(table.roles[relation.source]) == 1:
            return table.roles[relation.source]
    return ()


def _units(table: RoleTable) -> Iterator[tuple[int, Roles]]:
    for axis in table.axes.axes:
        if axis.size == 1:
            yield axis.number, (Role.UNIT,)


def _name_tokens(table: RoleTable, sites: list[AttentionSite]) -> None:
    """Queries and keys are told apart only at the sites and where both stand side by side."""
    kept = {n for site in sites for n in site.roles}
    groups = [numbers for _, numbers in table.axes.values()] + [numbers for *_, numbers in table.axes.uses()]
    for numbers in groups:
        here = {r for n in numbers for r in table.roles[n]}
        if Role.QUERY in here and Role.KEY in here:
            continue
        for n in numbers:
            if n not in kept and _TOKENS & set(table.roles[n]):
                table.roles[n] = tuple(Role.TOKEN if r in _TOKENS else r for r in table.roles[n])
