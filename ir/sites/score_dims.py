"""The dims of the scores of an attention: which are samples, heads, queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Kind
from opgraft.ir.axes.origins import Origin, Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.dims import Size, multiply_all


@dataclass(frozen=True)
class ScoreDims:
    """Numbers of the dims of queries, keys and scores: `[batch and heads ..., queries, keys]`, in whatever order."""

    axes: AxisGraph
    origins: Origins
    query: range
    key: range
    outs: range
    """Of the scores, or of the attention operator's result."""
    shared: list[tuple[int, int]]
    """Dims of queries and of keys that run along with each other: samples and heads."""
    groups: list[int]
    """Groups of queries that share keys, where those are a dim of their own in `outs`."""
    query_axis: int | None
    key_axis: int
    contracted_query: list[int]
    contracted_key: list[int]
    may_share_keys: bool = False
    """Whether the operator takes fewer heads of keys than of queries."""

    @staticmethod
    def of_product(
        axes: AxisGraph, origins: Origins, node: onnx_ir.Node, query_position: int, key_position: int, key_axis: int
    ) -> ScoreDims:
        """Of a product of two operands; `key_axis` is the dim of the keys in its result."""
        query = axes.operand(node, query_position) or range(0)
        key = axes.operand(node, key_position) or range(0)
        outs = axes.of(node.outputs[0]) or range(0)

        def source(number: int, operand: range) -> int | None:
            return next((r.source for r in axes.into[number] if r.source in operand and r.kind in _ALIGNED), None)

        def ends(number: int) -> bool:
            return any(r.kind is Kind.CONTRACTED and r.node is node for r in axes.out_of[number])

        pairs = {n: (source(n, query), source(n, key)) for n in outs}
        free = [n for n, (left, right) in pairs.items() if left is not None and right is None]
        # Groups of queries that share keys may be a dim of their own; the tokens are those counted in an input.
        groups = [n for n in free if origins.is_weight(n)] if len(free) > 1 else []
        tokens = [n for n in free if n not in groups]
        return ScoreDims(
            axes,
            origins,
            query,
            key,
            outs,
            shared=[(left, right) for left, right in pairs.values() if left is not None and right is not None],
            groups=groups,
            query_axis=tokens[-1] if tokens else (free[-1] if free else None),
            key_axis=key_axis,
            contracted_query=[n for n in query if ends(n)],
            contracted_key=[n for n in key if ends(n)],
        )

    @staticmethod
    def of_operator(axes: AxisGraph, origins: Origins, query: range, key: range, outs: range) -> ScoreDims:
        """Of an attention operator on `[B, H, T, D]`."""
        shared = [(query[0], key[0]), (query[1], key[1])]
        return ScoreDims(axes, origins, query, key, outs, shared, [], query[2], key[2], [query[3]], [key[3]], True)

    def doubt(self) -> str:
        """What keeps samples, heads and tokens from being told apart; empty where nothing does."""
        for number in (*self.query, *self.key):
            origin = self.origins.origin[number]
            if self.axes.axes[number].size != 1 and (not origin or Origin.OPAQUE in origin):
                return f"where dim {self.axes.axes[number]} comes from is not known"
        for left, right in self.shared:
            if self._is_counted(left, right):
                return f"where dim {self.axes.axes[left]} comes from is not known"
        if self._query_heads and not any(self.origins.is_input(n) for n in self._query_parts):
            return f"heads and learned queries are merged in dim {self.axes.axes[self._query_parts[0]]}"
        return ""

    def _is_counted(self, left: int, right: int) -> bool:
        """Whether some part of a shared dim is neither of samples nor of weights, nor repeated."""
        sides = [self.axes.components(left), self.axes.components(right)]
        if len(sides[0]) != len(sides[1]):
            sides = [max(sides, key=len)]
        for parts in zip(*sides, strict=True):
            told = any(self.origins.is_input(p) or self.origins.is_weight(p) for p in parts)
            if not told and not all(self.axes.is_stretched(p) for p in parts):
                return True
        return False

    @property
    def is_channel(self) -> bool:
        return any(self.origins.is_input(n) for n in self.contracted_key)

    @property
    def is_cross(self) -> bool:
        if self.query_axis is None or self.is_channel:
            return False
        return self.origins.roots[self.query_axis] != self.origins.roots[self.key_axis]

    @property
    def head_dim(self) -> Size:
        """Channels of a head: those that are summed over, or that attend to each other."""
        if self.is_channel:
            return self.axes.axes[self.key_axis].size
        return multiply_all(self.axes.axes[n].size for n in self.contracted_key)

    @cached_property
    def heads(self) -> Size:
        """Heads of the queries: shared dims made by weights, and groups of queries."""
        sizes = [size for pair in self.shared for size, sample in self._query_digits(*pair) if not sample]
        sizes += [self.axes.axes[n].size for n in (*self.groups, *self._query_heads)]
        return multiply_all(sizes)

    @cached_property
    def kv_heads(self) -> Size:
        return multiply_all(
            size for pair in self.shared for size, sample, repeats in self._key_digits(*pair) if not (sample or repeats)
        )

    @cached_property
    def _query_parts(self) -> tuple[int, ...]:
        return () if self.query_axis is None else self.axes.components(self.query_axis)

    @cached_property
    def _query_heads(self) -> list[int]:
        """Heads that were merged with the queries, as where all share one head of keys: keys have no such part."""
        if len(self._query_parts) < 2:
            return []
        keys = self.axes.components(self.key_axis)
        return [n for n in self._query_parts if self.origins.is_weight(n) and n not in keys]

    def _is_grouped(self, left: int, right: int) -> bool:
        """Whether an operator lets several heads of queries share one of keys, so that the sizes are not the same.

        A product has the same size on both sides when it runs, though one be a number and the other a name."""
        if not self.may_share_keys or (left, right) != self.shared[1]:
            return False
        sizes = self.axes.axes[left].size, self.axes.axes[right].size
        return sizes[0] != sizes[1] and 1 not in sizes

    def _query_digits(self, left: int, right: int) -> list[tuple[Size, bool]]:
        if self._is_grouped(left, right):
            return [(self.axes.axes[n].size, self.origins.is_input(n)) for n in self.axes.components(left)]
        return [(size, sample) for size, sample, _ in self._digits(left, right)]

    def _key_digits(self, left: int, right: int) -> list[tuple[Size, bool, bool]]:
        if self._is_grouped(left, right):
            parts = self.axes.components(right)
            return [(self.axes.axes[n].size, self.origins.is_input(n), self.axes.is_stretched(n)) for n in parts]
        return self._digits(left, right)

    def _digits(self, left: int, right: int) -> list[tuple[Size, bool, bool]]:
        """The parts of a shared dim: size, whether samples are counted in it, whether keys are repeated along it.

        What one operand does not tell the other may: queries that are learned are the same for all samples."""
        query, key = self.axes.components(left), self.axes.components(right)
        if len(query) > len(key):
            return [(self.axes.axes[n].size, self.origins.is_input(n), False) for n in query]
        if len(key) > len(query):
            return [(self.axes.axes[n].size, self.origins.is_input(n), self.axes.is_stretched(n)) for n in key]
        digits = []
        for one, other in zip(query, key, strict=True):
            stretched = self.axes.is_stretched(one), self.axes.is_stretched(other)
            # Learned queries against learned keys: what both are only repeated along are samples.
            sample = self.origins.is_input(one) or self.origins.is_input(other) or all(stretched)
            size = self.axes.axes[one].size if self.axes.axes[other].size == 1 else self.axes.axes[other].size
            digits.append((size, sample, stretched[1] and not stretched[0]))
        return digits

    def roles(self) -> dict[int, Roles]:
        """Of the dims of both operands."""
        tokens = (Role.CHANNEL, Role.CHANNEL) if self.is_channel else (Role.QUERY, Role.KEY)
        ended = Role.TOKEN if self.is_channel else Role.HEAD_DIM
        found: dict[int, Roles] = {}
        for side, (numbers, role, head) in enumerate(
            ((self.query, tokens[0], Role.HEAD), (self.key, tokens[1], Role.KV_HEAD))
        ):
            for n in numbers:
                found[n] = (role,)
            for n in self.contracted_query + self.contracted_key:
                found[n] = (ended,)
            for pair in self.shared:
                found[pair[side]] = ()
                self.add_shared(pair[side], head, found, pair)
        for n in self.groups:
            found[next(r.source for r in self.axes.into[n] if r.source in self.query)] = (Role.HEAD,)
        return found

    def score_roles(self, found: dict[int, Roles]) -> None:
        """Roles of the dims of the scores from those of the operands."""
        for n in self.outs:
            sources = [r.source for r in self.axes.into[n] if r.kind in _ALIGNED]
            operand = self.query if any(s in self.query for s in sources) else self.key
            found[n] = found.get(next(r.source for r in self.axes.into[n] if r.source in operand), ())

    def add_shared(self, number: int, head: Role, found: dict[int, Roles], pair: tuple[int, int] | None = None) -> None:
        """The roles of a dim that runs along with the samples and heads, and of the dims it was merged from.

        Samples have none here: whether those are a batch, or windows of an image, is told elsewhere."""
        if self.heads == self.kv_heads:
            head = Role.HEAD
        parts = self.axes.components(number)
        samples = [self.origins.is_input(part) for part in parts]
        if pair is not None and not self._is_grouped(*pair):
            digits = self._digits(*pair)
            if len(digits) == len(parts):
                samples = [sample for _, sample, _ in digits]
        for part, sample in zip(parts, samples, strict=True):
            if sample or self.axes.axes[part].size == 1:
                continue
            found[part] = (Role.HEAD,) if self.axes.is_stretched(part) else (head,)
        if len(parts) > 1 and not any(samples):
            # Keys repeated for every query head are a dim of heads.
            repeats = any(self.axes.is_stretched(part) for part in parts)
            found[number] = (Role.HEAD,) if repeats else (head,)
        elif len(parts) > 1:
            found[number] = ()


_ALIGNED = (Kind.SAME, Kind.BROADCAST)
