"""What the rule of an operator is given: the dims of its operands and outputs, and words for relations between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import onnx_ir
from opgraft.ir.axes.graph import NOWHERE, AxisGraph, Direction, Kind, Part, Relation, Window
from opgraft.ir.dims import Size
from opgraft.ir.shapes import ShapeAnalysis


class NodeAxes:
    """One node's dims while its rule relates them."""

    def __init__(self, graph: AxisGraph, facts: ShapeAnalysis, node: onnx_ir.Node) -> None:
        self.graph = graph
        self.facts = facts
        self.digits = graph.digits
        self.node = node

    def operand(self, position: int) -> range | None:
        return self.graph.operand(self.node, position)

    def output(self, index: int = 0) -> range | None:
        return self.graph.of(self.node.outputs[index]) if index < len(self.node.outputs) else None

    def size(self, number: int) -> Size:
        return self.graph.axes[number].size

    def sizes(self, numbers: Iterable[int]) -> tuple[Size, ...]:
        return tuple(self.graph.axes[n].size for n in numbers)

    def int_attribute(self, name: str, default: int) -> int:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def text_attribute(self, name: str, default: str) -> str:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_string()

    def ints_attribute(self, name: str) -> list[int] | None:
        attribute = self.node.attributes.get(name)
        return None if attribute is None else list(attribute.as_ints())

    def ints(self, name: str, position: int) -> list[int] | None:
        """A list that older versions of an operator have as attribute and newer ones as input."""
        attribute = self.node.attributes.get(name)
        return list(attribute.as_ints()) if attribute is not None else self.numbers(position)

    def numbers(self, position: int) -> list[int] | None:
        """The elements of a small integer input when all are known."""
        value = self.node.inputs[position] if position < len(self.node.inputs) else None
        return self.facts.static_content(value)

    def elements(self, position: int) -> list[Size | None] | None:
        """The elements of a small integer input, as far as they are known."""
        value = self.node.inputs[position] if position < len(self.node.inputs) else None
        found = self.facts.integers(value)
        return None if found is None else found.elements.reshape(-1).tolist()

    # -- relations ------------------------------------------------------------------------------------------------

    def _relate(self, kind: Kind, source: int, target: int, detail: Any = None) -> None:
        self.graph.relate(Relation(kind, source, target, self.node, detail))

    def same(self, source: int, target: int) -> None:
        """The same index; dims of other sizes are not, whatever the operator."""
        left, right = self.size(source), self.size(target)
        if isinstance(left, int) and isinstance(right, int) and left != right:
            self.scrambled(source, target)
            return
        self._relate(Kind.SAME, source, target)
        self.digits.inherit(source, target)

    def aligned(self, source: int, target: int) -> None:
        """Same index, or the source is stretched where its size is 1 and the target's is not."""
        if self.size(source) == 1 and self.size(target) != 1:
            self._relate(Kind.BROADCAST, source, target)
        else:
            self.same(source, target)

    def broadcast(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Dims of an operand against those of the result, counted from the last."""
        for source, target in zip(reversed(sources), reversed(targets), strict=False):
            self.aligned(source, target)

    def all_same(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        for source, target in zip(sources, targets, strict=True):
            self.same(source, target)

    def part(self, source: int, target: int, part: Part) -> None:
        self._relate(Kind.PART, source, target, part)

    def sliced(self, source: int, target: int, start: Size | None, step: int | None) -> None:
        if start == 0 and step == 1 and self.size(source) == self.size(target):
            self.same(source, target)
        else:
            self._relate(Kind.SLICED, source, target, (start, step))

    def placed(self, source: int, target: int, offset: Size | None) -> None:
        if offset == 0 and self.size(source) == self.size(target):
            self.same(source, target)
        else:
            self._relate(Kind.PLACED, source, target, offset)

    def gathered(self, source: int, target: int, indices: Any = None) -> None:
        self._relate(Kind.GATHERED, source, target, indices)

    def selected(self, source: int, index: Any = None) -> None:
        self._relate(Kind.SELECTED, source, NOWHERE, index)

    def contracted(self, left: int, right: int) -> None:
        self._relate(Kind.CONTRACTED, left, NOWHERE, right)
        self._relate(Kind.CONTRACTED, right, NOWHERE, left)

    def reduced(self, source: int) -> None:
        self._relate(Kind.REDUCED, source, NOWHERE)

    def window(self, source: int, target: int, window: Window | None) -> None:
        """None for a neighbourhood that is not known."""
        if window is None:
            self.mixed(source, target)
        else:
            self._relate(Kind.WINDOW, source, target, window)

    def mixed(self, source: int, target: int, direction: Direction = Direction.BOTH) -> None:
        self._relate(Kind.MIXED, source, target, direction)

    def scrambled(self, source: int, target: int) -> None:
        self._relate(Kind.SCRAMBLED, source, target)

    def created(self, target: int, reason: str) -> None:
        self._relate(Kind.CREATED, NOWHERE, target, reason)

    def opaque(self, reason: str) -> None:
        """The rule cannot say more: everything may reach everything."""
        self.graph.opaque[self.node] = reason
        for position in range(len(self.node.inputs)):
            for source in self.operand(position) or ():
                self._relate(Kind.OPAQUE, source, NOWHERE, reason)
        for index in range(len(self.node.outputs)):
            for target in self.output(index) or ():
                self._relate(Kind.OPAQUE, NOWHERE, target, reason)


AxisRule: TypeAlias = Callable[[NodeAxes], None]
