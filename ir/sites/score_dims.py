"""The dims of a score product: which are samples, heads, queries and keys."""

from __future__ import annotations

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
        return None

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
            found[n] = found.get(self._source(n, operand), ())
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
        """None where samples are in it too: whether those are a batch, or windows of an image, is told elsewhere."""
        parts = self._axes.components(number)
        if any(self._origins.is_input(part) for part in parts):
            return ()
        if all(self._axes.is_stretched(part) or self._axes.axes[part].size == 1 for part in parts):
            return (Role.HEAD,)
        # Keys repeated for every query head are a dim of heads.
        return (Role.HEAD,) if any(self._axes.is_stretched(part) for part in parts if len(parts) > 1) else (head,)
