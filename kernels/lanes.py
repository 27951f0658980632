"""Straight-line TIR text for some adjacent float32 elements, with transcendentals as polynomials.

TVM lowers a vector `T.exp` to one libm call per lane, so exp, tanh and erf are polynomials of our own. Their
coefficients are weighted least-squares fits on Chebyshev nodes, reweighted towards the minimax error; the
bound stands beside each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440e-4
# |error| <= 3.4e-9 relative to e^r on |r| <= 0.35.
_EXP_Q = (0.5, 0.16666512, 0.04166619, 0.0083696, 0.00139517)
# |error| <= 4.4e-9 relative on |x| <= 0.63.
_TANH_P = (-0.3333328, 0.13331425, -0.05373761, 0.02063041, -0.00569351)
# |error| <= 1.3e-9 relative on |x| <= 1.
_ERF_P = (1.12837911, -0.37612626, 0.112835914, -0.026854014, 5.1886132e-3, -8.01184156e-4, 7.85647353e-5)
# |error| <= 1.2e-9 of erf on [1, 4].
_ERFC_Q = (-3.1246498e-4, -1.1272023, -0.63796496, -0.10325623, 0.021906491, -2.9640098e-3, 1.8797208e-4)


class Lanes:
    """Writes TIR for `width` adjacent elements (1 in the tail of a row), one `let` per operation.

    Comparisons are written so that a NaN fails them and the operand that may be NaN is the one kept.
    """

    def __init__(self, width: int, prefix: str) -> None:
        self.width = width
        self.lines: list[str] = []
        self._prefix = prefix

    def let(self, expression: str) -> str:
        name = f"{self._prefix}{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        return name

    def constant(self, value: float) -> str:
        return self.spread(f"T.float32({float(np.float32(value))!r})")

    def spread(self, scalar: str) -> str:
        return scalar if self.width == 1 else f"T.Broadcast({scalar}, {self.width})"

    def select(self, condition: str, then: str, otherwise: str) -> str:
        return self.let(f"T.Select({condition}, {then}, {otherwise})")

    def at_least(self, x: str, bound: str) -> str:
        return self.select(f"{x} < {bound}", bound, x)

    def at_most(self, x: str, bound: str) -> str:
        return self.select(f"{bound} < {x}", bound, x)

    def horner(self, x: str, coefficients: Sequence[float]) -> str:
        """c[0] + c[1] x + c[2] x^2 + ..."""
        total = self.constant(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            total = self.let(f"{total} * {x} + {self.constant(coefficient)}")
        return total

    def power_of_two(self, exponent: str) -> str:
        """2^exponent for an int32 in [-126, 127], by writing the exponent field."""
        dtype, integer = "float32", "T.int32({})"
        if self.width > 1:
            dtype, integer = f"float32x{self.width}", f"T.Broadcast(T.int32({{}}), {self.width})"
        biased = f"T.shift_left({exponent} + {integer.format(127)}, {integer.format(23)})"
        return self.let(f"T.reinterpret('{dtype}', {biased})")

    def to_int(self, x: str) -> str:
        return self.let(f"T.Cast('int32{f'x{self.width}' if self.width > 1 else ''}', {x})")

    def exp(self, x: str) -> str:
        """e^x = 2^n (1 + r + r^2 q(r)), n = round(x / ln 2), |r| <= ln(2)/2."""
        # Beyond these bounds the result is 0 or infinity; inside them n lies in [-150, 129].
        bounded = self.at_most(self.at_least(x, self.constant(-104.0)), self.constant(89.0))
        # A NaN must not reach the integer conversion, whose result for it is undefined.
        finite = self.select(f"{self.constant(-104.0)} < {bounded}", bounded, self.constant(-104.0))
        n = self.let(f"T.floor({finite} * {self.constant(1 / math.log(2))} + {self.constant(0.5)})")
        # ln 2 in two parts (Cody and Waite): n * high is exact, so r keeps its low bits.
        r = self.let(f"{bounded} - {n} * {self.constant(_LN2_HIGH)} - {n} * {self.constant(_LN2_LOW)}")
        q = self.horner(r, _EXP_Q)
        series = self.let(f"{r} * {r} * {q} + {r} + {self.constant(1.0)}")
        # Two factors, since 2^n itself leaves the normal range before the result does.
        whole = self.to_int(n)
        half = self.let(f"T.shift_right({whole}, {self._integer(1)})")
        rest = self.let(f"{whole} - {half}")
        return self.let(f"{series} * {self.power_of_two(half)} * {self.power_of_two(rest)}")

    def _integer(self, value: int) -> str:
        return self.spread(f"T.int32({value})")

    def sigmoid(self, x: str) -> str:
        return self.let(f"{self.constant(1)} / ({self.constant(1)} + {self.exp(self.negate(x))})")

    def negate(self, x: str) -> str:
        # Times -1, not 0 - x: the sign of zero is kept.
        return self.let(f"{x} * {self.constant(-1)}")

    def absolute(self, x: str) -> str:
        # On the bits, so that -0.0 becomes 0.0 and a NaN stays one.
        bits, dtype = "int32", "float32"
        if self.width > 1:
            bits, dtype = f"int32x{self.width}", f"float32x{self.width}"
        masked = f"T.bitwise_and(T.reinterpret('{bits}', {x}), {self._integer(0x7FFFFFFF)})"
        return self.let(f"T.reinterpret('{dtype}', {masked})")

    def tanh(self, x: str) -> str:
        """x + x^3 p(x^2) below 0.625, sign(x) (1 - 2 / (e^(2|x|) + 1)) above."""
        size = self.absolute(x)
        square = self.let(f"{x} * {x}")
        near = self.let(f"{x} * {square} * {self.horner(square, _TANH_P)} + {x}")
        grown = self.exp(self.let(f"{size} * {self.constant(2)}"))
        far = self.let(f"{self.constant(1)} - {self.constant(2)} / ({grown} + {self.constant(1)})")
        return self._odd(x, size, 0.625, near, far)

    def erf(self, x: str) -> str:
        """x p(x^2) below 1, sign(x) (1 - e^(q(|x|))) above, where q is fitted to log(erfc) on [1, 4]."""
        size = self.absolute(x)
        square = self.let(f"{x} * {x}")
        near = self.let(f"{x} * {self.horner(square, _ERF_P)}")
        # 1 - erf(4) = 1.5e-8 rounds to 0 beside 1.
        far = self.let(f"{self.constant(1)} - {self.exp(self.horner(self.at_most(size, self.constant(4)), _ERFC_Q))}")
        return self._odd(x, size, 1.0, near, far)

    def _odd(self, x: str, size: str, split: float, near: str, far: str) -> str:
        signed = self.select(f"{x} < {self.constant(0)}", self.negate(far), far)
        # Written as `split < size`, so that a NaN takes the polynomial and comes out as NaN.
        return self.select(f"{self.constant(split)} < {size}", signed, near)
