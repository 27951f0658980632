"""Compare the outputs of two programs: bit by bit, or within what float32 itself costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_NUMPY_FLOATS = tuple(np.dtype(t) for t in ("float16", "float32", "float64", "complex64", "complex128"))
# A rewrite may round differently from the original; it may not be less accurate by more than this factor.
TOLERANCE_FACTOR = 4.0


@dataclass(frozen=True)
class Difference:
    """How an output of the candidate differs from the original's."""

    output: str
    kind: str
    max_abs_error: float
    tolerance: float

    def __str__(self) -> str:
        if self.kind == "numbers":
            return f"output {self.output!r}: error {self.max_abs_error:.3g}, allowed {self.tolerance:.3g}"
        return f"output {self.output!r}: {self.kind}"


Outputs = Mapping[str, Any]


def same_bits(original: Outputs, candidate: Outputs) -> list[Difference]:
    """Differences under the EXACT contract. All NaN are one value; zeros of different sign are two."""
    found = []
    for name, left in original.items():
        if name not in candidate:
            found.append(Difference(name, "is missing", np.inf, 0.0))
            continue
        found += _compare_bits(name, left, candidate[name])
    return found


def _compare_bits(name: str, left: Any, right: Any) -> list[Difference]:
    if isinstance(left, (list, tuple)):
        if not isinstance(right, (list, tuple)) or len(left) != len(right):
            return [Difference(name, "another number of elements", np.inf, 0.0)]
        return [
            d for i, (a, b) in enumerate(zip(left, right, strict=True)) for d in _compare_bits(f"{name}[{i}]", a, b)
        ]
    if left is None or right is None:
        return [] if left is right else [Difference(name, "present in one only", np.inf, 0.0)]
    form = _form_difference(name, left, right)
    if form is not None:
        return [form]
    if _bits_equal(left, right):
        return []
    error = max_abs_error(left, right)
    return [Difference(name, "numbers" if error > 0 else "sign of zero or NaN differs", error, 0.0)]


def _form_difference(name: str, left: np.ndarray, right: np.ndarray) -> Difference | None:
    if left.dtype != right.dtype:
        return Difference(name, f"type {right.dtype} instead of {left.dtype}", np.inf, 0.0)
    if left.shape != right.shape:
        return Difference(name, f"shape {list(right.shape)} instead of {list(left.shape)}", np.inf, 0.0)
    return None


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind in "fc" or (array.dtype.kind == "V" and "float" in array.dtype.name)


def _bits_equal(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype == object or not _is_float(left):
        return bool(np.array_equal(left, right))
    if left.dtype not in _NUMPY_FLOATS:
        # Exact, and what numpy knows little of (bfloat16, float8) becomes what it knows all of.
        left, right = left.astype(np.float32), right.astype(np.float32)
    nan = np.isnan(left)
    if not np.array_equal(nan, np.isnan(right)):
        return False
    if left.dtype.kind == "c":
        return bool(np.array_equal(left[~nan], right[~nan]))
    return bool(
        np.array_equal(left[~nan], right[~nan]) and np.array_equal(np.signbit(left[~nan]), np.signbit(right[~nan]))
    )


def max_abs_error(left: Any, right: Any) -> float:
    """Largest difference over elements that are finite in both; infinite when one only is not."""
    a, b = np.asarray(left), np.asarray(right)
    if a.shape != b.shape:
        return np.inf
    if a.dtype == object or a.dtype.kind in "bSU":
        return 0.0 if np.array_equal(a, b) else np.inf
    if not a.size:
        return 0.0
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    x, y = a.astype(wide), b.astype(wide)
    finite = np.isfinite(x) & np.isfinite(y)
    odd = ~finite & ~((x == y) | (np.isnan(x) & np.isnan(y)))
    if odd.any():
        return np.inf
    return float(np.abs(x[finite] - y[finite]).max()) if finite.any() else 0.0


def float32_error(original: Outputs, float64: Outputs) -> dict[str, float]:
    """Per output, the original's own error against the same program in float64."""
    return {
        name: max_abs_error(_where_both_finite(value, float64[name]), _where_both_finite(float64[name], value))
        for name, value in original.items()
        if name in float64 and isinstance(value, np.ndarray) and _is_float(value)
    }


def _where_both_finite(value: Any, other: Any) -> np.ndarray:
    """Overflow is no rounding error: elements beyond float32's range in one of the two are left out."""
    a, b = np.asarray(value), np.asarray(other)
    if a.shape != b.shape:
        return a
    keep = np.isfinite(a.astype(np.float64)) & np.isfinite(b.astype(np.float64))
    return a[keep]


def tolerance_of(error: float, values: np.ndarray) -> float:
    """Four times the original's own error, and one unit in the last place of its largest number: where the original
    happens to be exact, a result that is rounded otherwise is still off by that."""
    eps = float(ml_dtypes.finfo(values.dtype).eps)  # type: ignore[no-untyped-call]
    return TOLERANCE_FACTOR * error + largest_finite(values) * eps


def largest_finite(values: np.ndarray) -> float:
    """The largest magnitude among finite elements; 0 when there are none."""
    wide = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    finite = wide[np.isfinite(wide)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def within_tolerance(original: Outputs, candidate: Outputs, errors: Mapping[str, float]) -> list[Difference]:
    """Differences under the NUMERIC contract; what is not a float must be equal."""
    found = []
    for name, left in original.items():
        if name not in candidate:
            found.append(Difference(name, "is missing", np.inf, 0.0))
            continue
        right = candidate[name]
        if not isinstance(left, np.ndarray) or not _is_float(left):
            found += _compare_bits(name, left, right)
            continue
        form = _form_difference(name, left, right)
        if form is not None:
            found.append(form)
            continue
        tolerance = tolerance_of(errors.get(name, 0.0), left)
        error = max_abs_error(left, right)
        if not error <= tolerance:
            found.append(Difference(name, "numbers", error, tolerance))
    return found
