"""What a graph under construction is made of: values with their shapes at two bindings of the symbolic dims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape]


class Unfit(Exception):
    """The emitter found nothing legal to add."""


@dataclass(eq=False)
class Value:
    """A tensor, or with `is_sequence` a sequence of tensors of this type and shape."""

    name: str
    dtype: int
    shapes: Shapes
    array: np.ndarray | None = None
    """The contents of a constant."""
    is_sequence: bool = False

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    @property
    def rank(self) -> int:
        return len(self.shapes[0])

    @property
    def is_static(self) -> bool:
        return self.shapes[0] == self.shapes[1]

    @property
    def is_empty(self) -> bool:
        return any(0 in s for s in self.shapes)


@dataclass
class Input:
    """A graph input: how it is declared, and what may be fed."""

    value: Value
    dims: list[str | int | None] | None
    """None: the rank is not declared."""
    fixed: tuple[Any, Any] | None = None
    """The contents at each binding, where not every number will do."""
    domain: tuple[int, int] | None = None
    """Integers: low <= number < high."""
    is_default: bool = False
    """An initializer of the same name gives its contents when nothing is fed."""


@dataclass
class Shared:
    """What all scopes of one model have together."""

    rng: np.random.Generator
    opset: int
    counter: int = 0
    inputs: list[Input] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    symbols: dict[str, tuple[int, int]] = field(default_factory=dict)
    planted: list[str] = field(default_factory=list)
    imports: dict[str, int] = field(default_factory=dict)


Rule = Callable[..., Shape]


def both(rule: Rule, *values: Value) -> Shapes:
    """The rule at each binding. Raises Unfit where it raises ValueError."""
    try:
        first, second = (tuple(int(d) for d in rule(*(v.shapes[i] for v in values))) for i in (0, 1))
    except ValueError as error:
        raise Unfit(str(error)) from None
    return first, second


def same_contents(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return bool(np.array_equal(a, b)) if a.dtype == object else a.tobytes() == b.tobytes()


def can_broadcast(a: Value, b: Value) -> bool:
    try:
        for i in (0, 1):
            np.broadcast_shapes(a.shapes[i], b.shapes[i])
    except ValueError:
        return False
    return True


def broadcast(*shapes: Shape) -> Shape:
    return np.broadcast_shapes(*shapes)


def trailing(x: Value, start: int) -> Shape | None:
    """The last dims, where they are the same at both bindings."""
    tail = x.shapes[0][start:]
    return tail if x.shapes[1][start:] == tail else None
