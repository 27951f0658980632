"""Proofs about shapes: which dims are equal, what broadcasts to what, which constants spell a shape.

A dim is an int, a name, or None when nothing is known. Equal names are equal dims; a named dim may be 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir

Extent = int | str | None


def extents(value: onnx_ir.Value | None) -> list[Extent] | None:
    """The dims of a value; None when its rank is not known."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def rank_of(value: onnx_ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def are_equal(left: Sequence[Extent] | None, right: Sequence[Extent] | None) -> bool:
    """Whether two shapes are equal at every run."""
    if left is None or right is None or len(left) != len(right):
        return False
    return all(a is not None and a == b for a, b in zip(left, right, strict=True))


def have_same_shape(left: onnx_ir.Value | None, right: onnx_ir.Value | None) -> bool:
    return left is right or are_equal(extents(left), extents(right))


def have_same_elements(left: Sequence[Extent], right: Sequence[Extent]) -> bool:
    """Whether shapes of equal element count are equal: all dims are, but one, and the others are not 0."""
    if len(left) != len(right):
        return False
    open_axes = [i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a is None or a != b]
    if not open_axes:
        return True
    others = [d for i, d in enumerate(left) if i != open_axes[0]]
    known = left[open_axes[0]], right[open_axes[0]]
    if isinstance(known[0], int) and isinstance(known[1], int):
        return False
    return len(open_axes) == 1 and all(isinstance(d, int) and d > 0 for d in others)


def is_absorbed(operand: Sequence[Extent] | None, target: Sequence[Extent] | None) -> bool:
    """Whether broadcasting an operand of this shape against `target` gives `target`."""
    if operand is not None and not operand:
        return True
    if operand is None or target is None or len(operand) > len(target):
        return False
    tail = target[len(target) - len(operand) :]
    return all(a == 1 or (a is not None and a == b) for a, b in zip(operand, tail, strict=True))


def spell_reshape(source: Sequence[Extent] | None, target: Sequence[Extent]) -> list[int] | None:
    """The constant with which Reshape (allowzero = 0) takes `source` to `target`, also when a named dim is 0."""
    spelled: list[int | None] = []
    for i, dim in enumerate(target):
        copied = source is not None and i < len(source) and dim is not None and source[i] == dim
        if isinstance(dim, int) and dim > 0:
            spelled.append(dim)
        elif copied:
            spelled.append(0)
        else:
            spelled.append(-1 if not isinstance(dim, int) else None)
    if None in spelled or spelled.count(-1) > 1:
        return None
    # The runtime cannot divide by a zero product to find the -1.
    if -1 in spelled and 0 in spelled:
        return None
    return [int(s) for s in spelled if s is not None]
