"""Where each dim began: at an input of the model, in a weight, or by counting.

The dims of values are numbered in the order of computation, so one pass forwards settles all. Where data and a
constant meet (a bias, a table of positions), the dim comes from the data.
"""

from __future__ import annotations

import enum

from opgraft.ir.axes.graph import NOWHERE, AxisGraph, Kind, Relation


class Origin(enum.Flag):
    NONE = 0
    INPUT = enum.auto()
    """A dim of an input of the model."""
    WEIGHT = enum.auto()
    """A dim of a constant: the channels that a linear layer makes, rows of an embedding."""
    COUNTED = enum.auto()
    """Made by an operator: a range, a new dim of size 1."""
    OPAQUE = enum.auto()


_NO_ROOTS: frozenset[int] = frozenset()
_MAX_STEPS = 64
_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention")


class Origins:
    """By dim: the kinds of places it comes from, and which dims of inputs."""

    def __init__(self, graph: AxisGraph) -> None:
        self._graph = graph
        self.origin: list[Origin] = [Origin.NONE] * len(graph.axes)
        self.roots: list[frozenset[int]] = [_NO_ROOTS] * len(graph.axes)
        """Numbers of dims of the model's inputs."""
        self._interned: dict[frozenset[int], frozenset[int]] = {}
        self._is_constant = [axis.use is not None or axis.value in graph.constant for axis in graph.axes]
        for number in range(len(graph.axes)):
            self._settle(number)

    def _settle(self, number: int) -> None:
        axis = self._graph.axes[number]
        relations = self._graph.into[number]
        if axis.use is not None:
            self.origin[number] = Origin.WEIGHT
            return
        if axis.value.producer() is None and not relations:
            self.origin[number] = Origin.INPUT
            self.roots[number] = self._intern(frozenset((number,)))
            return
        sources = [r for r in relations if r.source != NOWHERE]
        # A dim that views gave back comes from that dim, not from all that it was merged with.
        sources = [r for r in sources if _is_restored(r)] or sources
        if any(r.kind is Kind.SAME for r in sources):
            # The queries of an attention operator stay what they are, learned ones too.
            sources = [r for r in sources if r.kind is not Kind.MIXED or r.node.op_type not in _ATTENTION]
        chosen = [r for r in sources if not self._is_constant[r.source]] or sources
        # What is written into a tensor at places that are not known leaves its dims what they are.
        chosen = [r for r in chosen if r.kind is not Kind.SCRAMBLED] or chosen
        # A dim of size 1 says nothing of what it is stretched to.
        chosen = [r for r in chosen if r.kind is not Kind.BROADCAST]
        chosen = [r for r in chosen if self.origin[r.source] & ~Origin.COUNTED] or chosen
        if len(chosen) == 1 and chosen[0].kind is Kind.SLICED:
            chosen = self._piece_of(chosen[0]) or chosen
        self.origin[number], self.roots[number] = self._join(chosen)
        if not chosen:
            opaque = any(r.kind is Kind.OPAQUE for r in relations)
            self.origin[number] = Origin.OPAQUE if opaque else Origin.COUNTED

    def _piece_of(self, taken: Relation) -> list[Relation]:
        """Where a slice lies within one piece of a concatenation: what puts that piece there. The class token taken
        out of a sequence comes from where it was put in front, not from the image."""
        start, step = taken.detail
        size = self._graph.axes[taken.target].size
        number = taken.source
        for _ in range(_MAX_STEPS):
            relations = [r for r in self._graph.into[number] if r.source != NOWHERE and not self._is_constant[r.source]]
            if any(r.kind is Kind.PLACED for r in self._graph.into[number]):
                break
            if not relations or relations[0].kind not in (Kind.SAME, Kind.RESTORED):
                return []
            number = relations[0].source
        if step != 1 or not isinstance(start, int) or not isinstance(size, int):
            return []
        for relation in self._graph.into[number]:
            held = self._graph.axes[relation.source].size if relation.kind is Kind.PLACED else None
            known = isinstance(held, int) and isinstance(relation.detail, int)
            if known and relation.detail <= start and start + size <= relation.detail + held:
                return [relation]
        return []

    def _join(self, relations: list[Relation]) -> tuple[Origin, frozenset[int]]:
        origin, roots = Origin.NONE, _NO_ROOTS
        for relation in relations:
            origin |= self.origin[relation.source]
            more = self.roots[relation.source]
            if not more <= roots:
                roots = self._intern(roots | more)
        return origin, roots

    def _intern(self, roots: frozenset[int]) -> frozenset[int]:
        return self._interned.setdefault(roots, roots)

    def is_input(self, number: int) -> bool:
        return bool(self.origin[number] & Origin.INPUT)

    def is_weight(self, number: int) -> bool:
        return self.origin[number] == Origin.WEIGHT or self.origin[number] == Origin.WEIGHT | Origin.COUNTED


def _is_restored(relation: Relation) -> bool:
    if relation.kind is Kind.PART:
        return bool(relation.detail.through)
    return relation.kind is Kind.RESTORED
