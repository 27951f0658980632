"""Exact arithmetic on elements of integer tensors that may be expressions of dims, or unknown."""

from __future__ import annotations

from typing import TypeAlias

from opgraft.ir.dims import Size, floor_divide, maximum, never_negative

Element: TypeAlias = "Size | None"


def divide(a: Size, b: Size) -> Element:
    """ONNX divides integers toward zero; the runtime fails on zero."""
    if isinstance(a, int) and isinstance(b, int):
        if b == 0:
            return None
        quotient = abs(a) // abs(b)
        return quotient if (a < 0) == (b < 0) else -quotient
    if b != 0 and never_negative(a) and never_negative(b):
        return floor_divide(a, b)
    if isinstance(b, int) and b > 0 and never_negative(a + b - 1):
        return maximum(0, floor_divide(a, b))  # -b < a, as in (rows - 1) / 4: toward zero is 0 where the floor is -1
    return None


def modulo(a: Size, b: Size) -> Element:
    """The sign of the divisor, as for fmod=0."""
    if b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if never_negative(a) and never_negative(b):
        return a - floor_divide(a, b) * b
    return None


def equal(a: Size, b: Size) -> Element:
    difference = a - b
    if isinstance(difference, int):
        return int(difference == 0)
    return 0 if never_negative(difference - 1) or never_negative(-difference - 1) else None


def less(a: Size, b: Size) -> Element:
    if never_negative(b - a - 1):
        return 1
    return 0 if never_negative(a - b) else None


def negate_truth(a: Element) -> Element:
    return None if a is None else 1 - a


def both(a: Element, b: Element) -> Element:
    if a == 0 or b == 0:
        return 0
    return None if a is None or b is None else 1


def either(a: Element, b: Element) -> Element:
    if a == 1 or b == 1:
        return 1
    return None if a is None or b is None else 0


def as_truth(a: Size) -> Element:
    return negate_truth(equal(a, 0))


def absolute(a: Size) -> Element:
    if isinstance(a, int):
        return abs(a)
    return a if never_negative(a) else None


def sign(a: Size) -> Element:
    if isinstance(a, int):
        return (a > 0) - (a < 0)
    return 1 if never_negative(a - 1) else None
