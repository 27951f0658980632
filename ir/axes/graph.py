"""The graph of dim relations: its nodes are the dims of values, its edges say how an output dim comes from input dims.

A constant has dims of its own at every *use*: exporters share one zero vector between unrelated places. Every edge
belongs to one node of the model and points from a dim of its input to a dim of its output, or to none where the dim
ends there (contracted, reduced, selected). Equal sizes never relate two dims.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir
from opgraft.ir.axes.digits import Digits
from opgraft.ir.dims import Size
from opgraft.ir.shapes import ShapeAnalysis

NOWHERE = -1
"""The source of a created dim, the target of one that ends."""
STRETCHED = "broadcast"
"""Why a dim is created of which all indices hold the same: what Expand puts in front, a filled tensor."""


class Kind(enum.Enum):
    """How an index of the target dim comes from indices of the source dim."""

    SAME = "same"
    """The same index."""
    PART = "part"
    """Both share a digit: `(i // in_stride) % size == (o // out_stride) % size`. A dim split or merged by a view."""
    RESTORED = "restored"
    """The same index as a dim that earlier views had split or merged; the source is no dim of the node's inputs."""
    BROADCAST = "broadcast"
    """The only index of the source is used for all of the target."""
    SLICED = "sliced"
    """`i = start + o * step`."""
    PLACED = "placed"
    """`o = i + offset`: part of a concatenation, or the inside of a padding."""
    GATHERED = "gathered"
    """`i = indices[o]`, with the indices where they are constant."""
    SELECTED = "selected"
    """One index is taken; the dim ends."""
    CONTRACTED = "contracted"
    """Summed over together with a dim of another operand, the partner; the dim ends."""
    REDUCED = "reduced"
    """Reduced by the operator alone; the dim ends."""
    WINDOW = "window"
    """`o` depends on the indices `o * stride - before + k * dilation`, `0 <= k < kernel`."""
    MIXED = "mixed"
    """The same dim, in which any index may reach any other, or those that the direction in `detail` allows."""
    SCRAMBLED = "scrambled"
    """Part of the source's index goes into the target's, with other dims', in a way that is not followed."""
    CREATED = "created"
    """The dim begins here."""
    OPAQUE = "opaque"
    """Nothing is known; `detail` says why."""


@dataclass(frozen=True, slots=True)
class Part:
    in_stride: Size
    out_stride: Size
    size: Size
    through: bool = False
    """Whether the source is no dim of the node's inputs but one that was merged into such a dim before."""


@dataclass(frozen=True, slots=True)
class Window:
    kernel: int
    stride: int
    before: int
    dilation: int
    transposed: bool = False
    """Whether source and target change places, as in a transposed convolution."""


class Direction(enum.Enum):
    """Which indices of a mixed dim reach an index: none later, none earlier, or all."""

    FORWARD = "forward"
    BACKWARD = "backward"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Relation:
    kind: Kind
    source: int
    target: int
    node: onnx_ir.Node
    detail: Any = None
    """`Part`, `Window`, `Direction`; (start, step) of SLICED, an offset of PLACED, the indices of GATHERED, the number
    of the partner of CONTRACTED, a reason of OPAQUE and CREATED."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One dim of one value, or of one use of a constant."""

    number: int
    value: onnx_ir.Value
    index: int
    size: Size
    use: tuple[onnx_ir.Node, int] | None = None
    """The node and input position that use the constant."""

    def __str__(self) -> str:
        return f"{self.value.name}[{self.index}]"


class AxisGraph:
    """Dims by number, and the relations into and out of each."""

    def __init__(self, facts: ShapeAnalysis, opset: int = 0) -> None:
        self.facts = facts
        self.opset = opset
        """Of the default domain; 0 where the model imports none."""
        self.digits = Digits()
        self.axes: list[Axis] = []
        self.into: list[list[Relation]] = []
        self.out_of: list[list[Relation]] = []
        self.constant: set[onnx_ir.Value] = set()
        """Values that depend on no input."""
        self.opaque: dict[onnx_ir.Node, str] = {}
        """Nodes whose relations are not known, and why."""
        self._stretched: dict[int, bool] = {}
        self._of_value: dict[onnx_ir.Value, range] = {}
        self._of_use: dict[tuple[onnx_ir.Node, int], range] = {}

    def add_value(self, value: onnx_ir.Value, sizes: tuple[Size, ...]) -> range:
        numbers = self._add(value, sizes, None)
        self._of_value[value] = numbers
        return numbers

    def add_use(self, node: onnx_ir.Node, position: int, sizes: tuple[Size, ...]) -> range:
        value = node.inputs[position]
        if value is None:
            raise ValueError(f"{node.name} has no input {position}")
        numbers = self._add(value, sizes, (node, position))
        self._of_use[node, position] = numbers
        return numbers

    def add_digit(self, value: onnx_ir.Value, size: Size) -> int:
        """A dim that no value has: what a view takes out of one dim and puts into another at once."""
        self.axes.append(Axis(len(self.axes), value, -1, size))
        self.into.append([])
        self.out_of.append([])
        return len(self.axes) - 1

    def _add(self, value: onnx_ir.Value, sizes: tuple[Size, ...], use: tuple[onnx_ir.Node, int] | None) -> range:
        first = len(self.axes)
        for index, size in enumerate(sizes):
            self.axes.append(Axis(first + index, value, index, size, use))
            self.into.append([])
            self.out_of.append([])
        return range(first, first + len(sizes))

    def relate(self, relation: Relation) -> None:
        if relation.source != NOWHERE:
            self.out_of[relation.source].append(relation)
        if relation.target != NOWHERE:
            self.into[relation.target].append(relation)

    def of(self, value: onnx_ir.Value | None) -> range | None:
        """The numbers of the dims of a value that is no initializer; None where its rank is unknown."""
        return None if value is None else self._of_value.get(value)

    def operand(self, node: onnx_ir.Node, position: int) -> range | None:
        """The numbers of the dims of an input of a node: of the use where it is an initializer."""
        if position >= len(node.inputs) or node.inputs[position] is None:
            return None
        found = self._of_use.get((node, position))
        return found if found is not None else self.of(node.inputs[position])

    def components(self, number: int) -> tuple[int, ...]:
        """The dims that the dim was merged from, as fine as known; the dim itself when it was not merged."""
        compositions = self.digits.compositions(number)
        if not compositions:
            return (number,)
        finest = max(compositions, key=len)
        return tuple(part for n in finest for part in (self.components(n) if n != number else (n,)))

    def is_stretched(self, number: int) -> bool:
        """Whether all indices of the dim hold the same: stretched from size 1, however it was passed on."""
        pending = [number]
        while pending:
            current = pending[-1]
            if current in self._stretched:
                pending.pop()
                continue
            missing = [n for n in self._passed_on(current) if n not in self._stretched]
            if missing:
                pending += missing
                continue
            self._stretched[current] = self._holds_the_same(current)
            pending.pop()
        return self._stretched[number]

    def _passed_on(self, number: int) -> list[int]:
        """The dims that the dim has the index of."""
        relations = self.into[number]
        restored = [r.source for r in relations if r.kind is Kind.RESTORED]
        return restored or [r.source for r in relations if r.kind is Kind.SAME]

    def _holds_the_same(self, number: int) -> bool:
        if self.axes[number].size == 1:
            return True
        sources = self._passed_on(number)
        if sources:
            return all(self._stretched[n] for n in sources)
        relations = self.into[number]
        return bool(relations) and all(r.kind is Kind.BROADCAST or r.detail == STRETCHED for r in relations)

    def values(self) -> Iterator[tuple[onnx_ir.Value, range]]:
        yield from self._of_value.items()

    def uses(self) -> Iterator[tuple[onnx_ir.Node, int, range]]:
        for (node, position), numbers in self._of_use.items():
            yield node, position, numbers
