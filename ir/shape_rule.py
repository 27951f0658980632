"""What a shape rule is given and returns, and broadcasting of sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from opgraft.ir.dims import Dim, Size, dim, minimum_operands
from opgraft.ir.integer_contents import Operands, Sizes

OPAQUE = "?"
"""First character of the names of sizes that nothing is known of but that they are one number."""

ShapeResult: TypeAlias = "Sizes | list[Sizes | None] | None"


class Unknowns:
    """Makes names for sizes that are not known. The same question gets the same name: `broadcast(a, b)` is one
    number wherever it is asked for."""

    def __init__(self) -> None:
        self._named: dict[Hashable, Dim] = {}
        self._n_fresh = 0

    def fresh(self) -> Dim:
        self._n_fresh += 1
        return dim(f"{OPAQUE}{self._n_fresh}")

    def of(self, *question: Hashable) -> Dim:
        found = self._named.get(question)
        if found is None:
            found = self._named[question] = self.fresh()
        return found


@dataclass(frozen=True)
class ShapeOperands(Operands):
    """A node with the shapes and contents of its inputs, and names for what stays unknown."""

    unknowns: Unknowns
    no_zeros: bool = False
    """Whether to take it that no dim of any value is zero."""

    def sizes(self, index: int) -> list[Size] | None:
        """The elements of a shape tensor, with a fresh name for each unknown one."""
        content = self.content(index)
        if content is None:
            return None
        return [self.unknowns.fresh() if e is None else e for e in content.elements.reshape(-1).tolist()]

    def ints_attribute(self, name: str) -> list[int] | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else list(attribute.as_ints())

    def text_attribute(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()


ShapeRule: TypeAlias = Callable[[ShapeOperands], ShapeResult]


def is_opaque(size: Size) -> bool:
    """Whether the size depends on a number that nothing is known of."""
    return isinstance(size, Dim) and any(name.startswith(OPAQUE) for name in size.names)


def broadcast(shapes: Sequence[Sizes], unknowns: Unknowns) -> Sizes:
    """The shape of an elementwise result. A size other than 1 decides where it is a number; two different symbols
    may each be 1, so that the result is a third."""
    rank = max(map(len, shapes), default=0)
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(_broadcast_dims(dims, unknowns) for dims in zip(*padded, strict=True))


def _broadcast_dims(dims: Sequence[Size], unknowns: Unknowns) -> Size:
    first = dims[0]
    if all(d is first or d == first for d in dims):
        return first
    others = [d for d in dims if d != 1]
    for size in others:
        if isinstance(size, int):
            return size
    distinct = frozenset(others)
    for size in others:
        if all(other == size or _fits_only(other, size) for other in others):
            return size
    return unknowns.of("broadcast", distinct)


def _fits_only(part: Size, whole: Size) -> bool:
    """Whether `part` broadcasts against `whole` only where they are equal: the first `whole` rows of a table of two or
    more, where a shorter table is an error."""
    operands = minimum_operands(part)
    return operands is not None and whole in operands and any(isinstance(o, int) and o > 1 for o in operands)


def same_at_run_time(dims: Sequence[Size]) -> Size:
    """Sizes that an operator requires to be equal: a number if one is, else a symbol of the model, else any."""
    for size in dims:
        if isinstance(size, int):
            return size
    return next((d for d in dims if not is_opaque(d)), dims[0])
