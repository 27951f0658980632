"""The dims of a score product: which are samples, heads, queries and keys."""

from __future__ import annotations

from functools import cached_property

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Kind
from opgraft.ir.axes.origins import Origin, Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.dims import Size, multiply_all


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
        self.query_axis: int | None = tokens[-1] if tokens else (free[-1] if free else None)
        self.contracted_query = [n for n in self.query if self._ends(n, node)]
        self.contracted_key = [n for n in self.key if self._ends(n, node)]

    def opaque(self) -> int | None:
        """A dim of the operands of which it is not known whether it is of samples, heads or tokens."""
        for number in (*self.query, *self.key):
            origin = self._origins.origin[number]
            if self._axes.axes[number].size != 1 and (not origin or Origin.OPAQUE in origin):
                return int(number)
        return next((n for n in self.shared if self._is_counted(n)), None)

    def _is_counted(self, number: int) -> bool:
        """Whether some part of a shared dim is neither of samples nor of weights, nor repeated."""
        sides = [self._axes.components(self._source(number, operand)) for operand in (self.query, self.key)]
        if len(sides[0]) != len(sides[1]):
            sides = [max(sides, key=len)]
        for parts in zip(*sides, strict=True):
            told = any(self._origins.is_input(p) or self._origins.is_weight(p) for p in parts)
            if not told and not all(self._axes.is_stretched(p) for p in parts):
                return True
        return False

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

    @cached_property
    def heads(self) -> Size:
        """Heads of the queries: shared dims made by weights, and groups of queries."""
        sizes = [size for n in self.shared for size, sample, _ in self._digits(n) if not sample]
        sizes += [self._axes.axes[n].size for n in self.groups]
        if self.query_axis is not None:
            parts = self._axes.components(self.query_axis)
            sizes += [self._axes.axes[d].size for d in parts if len(parts) > 1 and self._origins.is_weight(d)]
        return multiply_all(sizes)

    @cached_property
    def kv_heads(self) -> Size:
        return multiply_all(
            size for n in self.shared for size, sample, repeats in self._digits(n) if not (sample or repeats)
        )

    def _source(self, number: int, operand: range) -> int:
        return next(r.source for r in self._axes.into[number] if r.source in operand)

    def _digits(self, number: int) -> list[tuple[Size, bool, bool]]:
        """The parts of a shared dim: size, whether samples are counted in it, whether keys are repeated along it.

        What one operand does not tell the other may: queries that are learned are the same for all samples."""
        query = self._axes.components(self._source(number, self.query))
        key = self._axes.components(self._source(number, self.key))
        if len(query) > len(key):
            return [(self._axes.axes[n].size, self._origins.is_input(n), False) for n in query]
        if len(key) > len(query):
            return [(self._axes.axes[n].size, self._origins.is_input(n), self._axes.is_stretched(n)) for n in key]
        digits = []
        for left, right in zip(query, key, strict=True):
            stretched = self._axes.is_stretched(left), self._axes.is_stretched(right)
            # Learned queries against learned keys: what both are only repeated along are samples.
            sample = self._origins.is_input(left) or self._origins.is_input(right) or all(stretched)
            size = self._axes.axes[left].size if self._axes.axes[right].size == 1 else self._axes.axes[right].size
            digits.append((size, sample, stretched[1] and not stretched[0]))
        return digits

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
                source = self._source(shared, numbers)
                found[source] = ()
                self.add_shared(source, head, found, shared)
        for n in self.groups:
            found[self._source(n, self.query)] = (Role.HEAD,)
        for n in self.outs:
            operand = self.query if self._from(n, self.query) else self.key
            found[n] = found.get(self._source(n, operand), ())
        return found

    def add_shared(self, number: int, head: Role, found: dict[int, Roles], shared: int | None = None) -> None:
        """The roles of a dim that runs along with the samples and heads, and of the dims it was merged from.

        Samples have none here: whether those are a batch, or windows of an image, is told elsewhere."""
        if self.heads == self.kv_heads:
            head = Role.HEAD
        parts = self._axes.components(number)
        samples = [self._origins.is_input(part) for part in parts]
        if shared is not None:
            digits = self._digits(shared)
            if len(digits) == len(parts):
                samples = [sample for _, sample, _ in digits]
        for part, sample in zip(parts, samples, strict=True):
            if sample or self._axes.axes[part].size == 1:
                continue
            found[part] = (Role.HEAD,) if self._axes.is_stretched(part) else (head,)
        if len(parts) > 1 and not any(samples):
            # Keys repeated for every query head are a dim of heads.
            repeats = any(self._axes.is_stretched(part) for part in parts)
            found[number] = (Role.HEAD,) if repeats else (head,)
        elif len(parts) > 1:
            found[number] = ()
