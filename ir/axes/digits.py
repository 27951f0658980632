"""Dims as mixed-radix numbers: what a view splits, a later view may put together again.

A reshape is a change of radix. `digits_of` finds the digits that both sides share; `Digits` remembers which dims are
all the digits of another, through everything that keeps indices, so that splitting into heads and merging back is
known to give the same dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from opgraft.ir.dims import Size, floor_divide

# Residual sums and products of many branches would collect without end what only a few views ask for.
_MAX_KEPT = 6

Composition: TypeAlias = tuple[int, ...]
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Digit:
    """`(i // in_stride) % size == (o // out_stride) % size` for the indices i and o of two dims, by position."""

    source: int
    in_stride: Size
    target: int
    out_stride: Size
    size: Size


@dataclass(frozen=True, slots=True)
class _Place:
    """The dim is digit `position` of the `n_digits` that dim `whole` was split into by view number `split`."""

    split: int
    whole: int
    position: int
    n_digits: int


class Digits:
    """For every dim: what it is a digit of, and what it is composed of."""

    def __init__(self) -> None:
        self._places: dict[int, tuple[_Place, ...]] = {}
        self._compositions: dict[int, tuple[Composition, ...]] = {}
        self._n_splits = 0

    def inherit(self, source: int, target: int) -> None:
        """The target has the indices of the source."""
        places = self._places.get(source)
        if places is not None:
            self._places[target] = _joined(self._places.get(target, ()), places)
        compositions = self._compositions.get(source)
        if compositions is not None:
            self._compositions[target] = _joined(self._compositions.get(target, ()), compositions)

    def compositions(self, number: int) -> tuple[Composition, ...]:
        """Dims, the most significant first, that the dim was merged from."""
        return self._compositions.get(number, ())

    def split(self, whole: int, parts: Sequence[int]) -> None:
        self._n_splits += 1
        for position, part in enumerate(parts):
            place = _Place(self._n_splits, whole, position, len(parts))
            self._places[part] = _joined(self._places.get(part, ()), (place,))

    def merge(self, parts: Sequence[int], whole: int) -> list[int]:
        """Record a merge; returns the dims that it restores: those that had been split into just these parts."""
        reduced = self._reduce(tuple(parts))
        found = [c for c in dict.fromkeys((tuple(parts), *reduced)) if len(c) > 1]
        self._compositions[whole] = _joined(self._compositions.get(whole, ()), tuple(found))
        restored = [c[0] for c in reduced if len(c) == 1]
        for number in restored:
            self.inherit(number, whole)
        return restored

    def _reduce(self, parts: Composition) -> list[Composition]:
        """The composition with each run of digits replaced by the dim they are all of, to the end."""
        results: list[Composition] = []
        pending = [parts]
        while pending and len(results) < _MAX_KEPT:
            current = pending.pop()
            for start in range(len(current)):
                for place in self._places.get(current[start], ()):
                    end = start + place.n_digits
                    if place.position == 0 and end <= len(current) and self._is_run(current[start:end], place.split):
                        shorter = (*current[:start], place.whole, *current[end:])
                        if shorter not in results:
                            results.append(shorter)
                            pending.append(shorter)
        return results

    def _is_run(self, parts: Composition, split: int) -> bool:
        return all(
            any(p.split == split and p.position == position for p in self._places.get(part, ()))
            for position, part in enumerate(parts)
        )


def _joined(old: tuple[_T, ...], new: tuple[_T, ...]) -> tuple[_T, ...]:
    if not old:
        return new[:_MAX_KEPT]
    missing = tuple(item for item in new if item not in old)
    return (old + missing)[:_MAX_KEPT] if missing else old


def digits_of(ins: Sequence[Size], outs: Sequence[Size]) -> tuple[list[Digit], list[int], list[int]]:
    """The digits that two shapes of one number of elements share, and the positions on both sides without any.

    Worked out from the last dims backwards, then from the first forwards; what lies between has no common radix.
    Dims of size 1 have no digits and are paired where they stand at the same place.
    """
    digits, i_end, o_end = _from_the_right(ins, outs)
    if i_end < 0 and o_end < 0:
        return digits, [], []
    head, i_start, o_start = _from_the_left(ins[: i_end + 1], outs[: o_end + 1])
    return head + digits, list(range(i_start, i_end + 1)), list(range(o_start, o_end + 1))


def _from_the_right(ins: Sequence[Size], outs: Sequence[Size]) -> tuple[list[Digit], int, int]:
    """Digits, and the positions at which it ended: -1 at the front."""
    found: list[Digit] = []
    pending: list[Digit] = []
    i, o = len(ins) - 1, len(outs) - 1
    in_stride: Size = 1
    out_stride: Size = 1
    left = right = None
    start_i, start_o = i, o
    while i >= 0 or o >= 0:
        if left is None and right is None:
            # A boundary of both sides: all before is settled.
            found[:0] = pending
            pending = []
            start_i, start_o = i, o
            if i >= 0 and o >= 0 and ins[i] == outs[o] == 1:
                found.insert(0, Digit(i, 1, o, 1, 1))
                i, o = i - 1, o - 1
                continue
        if left is None:
            if i >= 0 and ins[i] == 1:
                i -= 1
                continue
            left = ins[i] if i >= 0 else None
        if right is None:
            if o >= 0 and outs[o] == 1:
                o -= 1
                continue
            right = outs[o] if o >= 0 else None
        if left is None or right is None:
            break
        size = _common(left, right)
        if size is None:
            break
        pending.insert(0, Digit(i, in_stride, o, out_stride, size))
        left, in_stride, i = _advance(left, size, in_stride, i)
        right, out_stride, o = _advance(right, size, out_stride, o)
    if left is None and right is None:
        found[:0] = pending
        return found, i, o
    return found, start_i, start_o


def _advance(rest: Size, size: Size, stride: Size, position: int) -> tuple[Size | None, Size, int]:
    if rest == size:
        return None, 1, position - 1
    return floor_divide(rest, size), stride * size, position


def _common(left: Size, right: Size) -> Size | None:
    """The smaller of two sizes where it divides the other."""
    if left == right:
        return left
    if left == 0 or right == 0:
        return None
    if floor_divide(left, right) * right == left:
        return right
    if floor_divide(right, left) * left == right:
        return left
    return None


def _from_the_left(ins: Sequence[Size], outs: Sequence[Size]) -> tuple[list[Digit], int, int]:
    """Leading dims that are the same on both sides, or whole products that are."""
    found: list[Digit] = []
    i = o = 0
    while i < len(ins) and o < len(outs):
        i_end, o_end = _equal_products(ins, outs, i, o)
        if i_end is None or o_end is None:
            break
        digits, i_left, o_left = _from_the_right(ins[i:i_end], outs[o:o_end])
        if i_left >= 0 or o_left >= 0:
            break
        found += [Digit(d.source + i, d.in_stride, d.target + o, d.out_stride, d.size) for d in digits]
        i, o = i_end, o_end
    return found, i, o


def _equal_products(ins: Sequence[Size], outs: Sequence[Size], i: int, o: int) -> tuple[int | None, int | None]:
    """The shortest runs from i and o with the same number of elements."""
    ends: dict[Size, int] = {}
    product: Size = 1
    for end in range(i, len(ins)):
        product = product * ins[end]
        ends.setdefault(product, end + 1)
    product = 1
    for end in range(o, len(outs)):
        product = product * outs[end]
        if product in ends:
            return ends[product], end + 1
    return None, None
