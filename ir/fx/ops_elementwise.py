"""What emitted modules call for elementwise semantics of ONNX that torch has no single operator for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SIGN_BIT = -(1 << 63)


def widened(function: Callable[..., Tensor], *operands: Any, dtype: torch.dtype) -> Tensor:
    """`function` of unsigned integers that torch does not compute with, in int64 and back: additions, products and
    bit patterns wrap around alike."""
    results = function(*(o.to(torch.int64) if isinstance(o, Tensor) else o for o in operands))
    return results.to(dtype)


def signed_order(x: Tensor) -> Tensor:
    """uint64 as int64 in the same order."""
    return torch.bitwise_xor(x.to(torch.int64), _SIGN_BIT)


def compare(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Comparison of unsigned integers."""
    if a.dtype == torch.uint64:
        return function(signed_order(a), signed_order(b))
    return function(a.to(torch.int64), b.to(torch.int64))


def extreme(function: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Minimum or maximum of uint64."""
    return torch.bitwise_xor(function(signed_order(a), signed_order(b)), _SIGN_BIT).to(torch.uint64)


def divide_uint64(a: Tensor, b: Tensor) -> Tensor:
    """Quotient of uint64 in int64 arithmetic (Hacker's Delight, 9-3)."""
    n, d = a.to(torch.int64), b.to(torch.int64)
    safe = torch.where(d > 0, d, 1)
    half = torch.bitwise_right_shift(n, 1) & ~_SIGN_BIT
    quotient = torch.div(half, safe, rounding_mode="trunc") * 2
    rest = n - quotient * safe
    quotient = quotient + (torch.bitwise_xor(rest, _SIGN_BIT) >= torch.bitwise_xor(safe, _SIGN_BIT)).to(torch.int64)
    large = (torch.bitwise_xor(n, _SIGN_BIT) >= torch.bitwise_xor(d, _SIGN_BIT)).to(torch.int64)
    return torch.where(d > 0, quotient, large).to(torch.uint64)


def remainder_uint64(a: Tensor, b: Tensor) -> Tensor:
    quotient = divide_uint64(a, b).to(torch.int64)
    return (a.to(torch.int64) - quotient * b.to(torch.int64)).to(torch.uint64)


def shift_right_uint64(a: Tensor, count: Tensor) -> Tensor:
    n, c = a.to(torch.int64), count.to(torch.int64)
    # An arithmetic shift, then without the copies of the sign bit.
    kept = torch.where(c > 0, torch.bitwise_left_shift(torch.ones_like(c), 64 - c.clamp(min=1)) - 1, -1)
    return (torch.bitwise_right_shift(n, c) & kept).to(torch.uint64)


def power(x: Tensor, y: Any) -> Tensor:
    """The result has the type of the base."""
    if x.dtype.is_floating_point or (isinstance(y, Tensor) and not y.dtype.is_floating_point):
        return torch.pow(x, y).to(x.dtype)
    return torch.pow(x.to(torch.float64), y).to(x.dtype)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) everywhere; torch's own is x beyond a threshold."""
    return torch.logaddexp(x, torch.zeros_like(x))


def hard_sigmoid(x: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


def hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > alpha, x, 0)


def shrink(x: Tensor, lambd: float, bias: float) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0)).to(x.dtype)


def swish(x: Tensor, alpha: float) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def is_inf(x: Tensor, negative: bool, positive: bool) -> Tensor:
    if negative and positive:
        return torch.isinf(x)
    if positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if negative else torch.zeros_like(x, dtype=torch.bool)


def clip(x: Tensor, low: Any, high: Any) -> Tensor:
    """min(high, max(low, x)): high wins where the bounds cross."""
    if low is not None:
        x = torch.maximum(x, _like(low, x))
    return x if high is None else torch.minimum(x, _like(high, x))


def _like(bound: Any, x: Tensor) -> Tensor:
    return bound.reshape(()).to(x.dtype) if isinstance(bound, Tensor) else torch.full_like(x, bound)


def cast_to_small_integer(x: Tensor, low: int, high: int) -> Tensor:
    """To an integer of 2 or 4 bits, which wraps around; bytes hold it."""
    wide = x.to(torch.int64)
    return (torch.remainder(wide - low, high - low + 1) + low).to(torch.int8 if low < 0 else torch.uint8)


def cast_to_float8(x: Tensor, dtype: torch.dtype, saturate: bool) -> Tensor:
    """What is out of range becomes the largest finite number, or else infinity where the type has one and NaN."""
    limits = torch.finfo(dtype)
    wide = x.to(torch.float32)
    if saturate:
        return torch.clamp(wide, -limits.max, limits.max).to(dtype)
    step = limits.eps * 2.0 ** math.floor(math.log2(limits.max))
    # Half a step above the largest number: rounded to even, up where the last bit of that is odd.
    edge, is_odd = limits.max + step / 2, limits.max / step % 2 == 1
    beyond = torch.abs(wide) >= edge if is_odd else torch.abs(wide) > edge
    lost = torch.copysign(torch.full_like(wide, float("inf")), wide) if dtype == torch.float8_e5m2 else float("nan")
    return torch.where(beyond, lost, wide).to(dtype)


def floored_remainder(x: Tensor, y: Tensor) -> Tensor:
    """With the sign of the divisor, also where it is zero."""
    rest = torch.remainder(x, y)
    return torch.where(rest == 0, torch.copysign(rest, y), rest)


def dropout(x: Tensor, ratio: Any, training: Tensor) -> tuple[Tensor, Tensor]:
    """Whether anything is dropped is decided at run time."""
    kept = (torch.rand_like(x) >= ratio) | ~training
    scaled = torch.where(training, x / (1 - ratio), x)
    return torch.where(kept, scaled, 0), kept


def mean(*parts: Tensor) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total / len(parts)
