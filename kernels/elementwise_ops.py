"""The elementwise operators a fused kernel can hold: a NumPy reference and a TIR lowering for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from opgraft.kernels.lanes import Lanes

Array: TypeAlias = NDArray[Any]
Attribute: TypeAlias = float | str
Attributes: TypeAlias = Mapping[str, Attribute]


class Term(NamedTuple):
    """An operand in TIR text; `literal` is its value where it is a constant of the region."""

    text: str
    literal: float | None = None


Reference: TypeAlias = Callable[[Sequence[Array | None], Attributes], Array]
Emit: TypeAlias = Callable[[Lanes, Sequence[Term | None], Attributes], str]


@dataclass(frozen=True)
class ElementwiseOp:
    """One standard operator on float32: what it computes (NumPy, in the dtype given) and how TIR says it."""

    reference: Reference
    emit: Emit
    n_inputs: tuple[int, int] = (1, 1)
    """Fewest and most inputs."""
    defaults: Attributes = field(default_factory=dict)
    """Every attribute the operator may carry, with the standard's default."""


def _unary(reference: Callable[[Array], Array], emit: Callable[[Lanes, str], str]) -> ElementwiseOp:
    return ElementwiseOp(lambda x, _: reference(_present(x[0])), lambda lanes, x, _: emit(lanes, _text(x[0])))


def _scaled(reference: Callable[..., Array], emit: Callable[..., str], **defaults: Attribute) -> ElementwiseOp:
    return ElementwiseOp(
        lambda x, attributes: reference(_present(x[0]), **attributes),
        lambda lanes, x, attributes: emit(lanes, _text(x[0]), **attributes),
        defaults=defaults,
    )


def _binary(symbol: str, reference: Callable[[Array, Array], Array]) -> ElementwiseOp:
    return ElementwiseOp(
        lambda x, _: reference(_present(x[0]), _present(x[1])),
        lambda lanes, x, _: lanes.let(f"{_text(x[0])} {symbol} {_text(x[1])}"),
        n_inputs=(2, 2),
    )


def _folded(reference: Callable[[Array, Array], Array], emit: Callable[[Lanes, str, str], str]) -> ElementwiseOp:
    def refer(x: Sequence[Array | None], _: Attributes) -> Array:
        total = _present(x[0])
        for other in x[1:]:
            total = reference(total, _present(other))
        return total

    def write(lanes: Lanes, x: Sequence[Term | None], _: Attributes) -> str:
        total = _text(x[0])
        for other in x[1:]:
            total = emit(lanes, total, _text(other))
        return total

    return ElementwiseOp(refer, write, n_inputs=(2, 8))


def _present(x: Array | None) -> Array:
    if x is None:
        raise ValueError("a required input is absent")
    return x


def _text(x: Term | None) -> str:
    if x is None:
        raise ValueError("a required input is absent")
    return x.text


def _emit_extremum(lanes: Lanes, a: str, b: str, smaller: bool) -> str:
    kept = lanes.select(f"{a} < {b}" if smaller else f"{b} < {a}", a, b)
    # `kept` is b when either is NaN; a NaN in a has to win as well, and only a NaN fails both of these.
    ordered = f"T.Or({a} < {b}, {b} <= {a})" if lanes.width == 1 else f"({a} < {b}) | ({b} <= {a})"
    return lanes.select(ordered, kept, lanes.let(f"{a} + {b}"))


def _emit_clip(lanes: Lanes, x: Sequence[Term | None], _: Attributes) -> str:
    y = _text(x[0])
    if len(x) > 1 and x[1] is not None:
        y = lanes.at_least(y, x[1].text)
    if len(x) > 2 and x[2] is not None:
        y = lanes.at_most(y, x[2].text)
    return y


def _clip(x: Sequence[Array | None], _: Attributes) -> Array:
    y = _present(x[0])
    if len(x) > 1 and x[1] is not None:
        y = np.maximum(y, x[1])
    if len(x) > 2 and x[2] is not None:
        y = np.minimum(y, x[2])
    return y


def _emit_power(lanes: Lanes, x: Sequence[Term | None], _: Attributes) -> str:
    exponent = x[1].literal if x[1] is not None else None
    if exponent not in POWERS:
        raise ValueError(f"Pow needs a constant exponent out of {POWERS}, not {exponent}")
    base = _text(x[0])
    return lanes.let(" * ".join([base] * int(exponent)))


def _emit_gelu(lanes: Lanes, x: str, *, approximate: Attribute) -> str:
    if approximate == "tanh":  # 0.5 (1 + tanh u) = sigmoid(2 u)
        cube = lanes.let(f"{x} * {x} * {x} * {lanes.constant(0.044715)} + {x}")
        inner = lanes.let(f"{cube} * {lanes.constant(2 * math.sqrt(2 / math.pi))}")
        return lanes.let(f"{x} * {lanes.sigmoid(inner)}")
    inner = lanes.let(f"{x} * {lanes.constant(math.sqrt(0.5))}")
    return lanes.let(f"{x} * {lanes.constant(0.5)} * ({lanes.erf(inner)} + {lanes.constant(1)})")


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[x.dtype])(x) if x.size else x


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _gelu(x: Array, *, approximate: Attribute) -> Array:
    if approximate == "tanh":
        return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))
    return np.asarray(0.5 * x * (1 + _erf(x * math.sqrt(0.5))))


def _emit_hard_sigmoid(lanes: Lanes, x: str, *, alpha: Attribute, beta: Attribute) -> str:
    line = lanes.let(f"{x} * {lanes.constant(float(alpha))} + {lanes.constant(float(beta))}")
    return lanes.at_most(lanes.at_least(line, lanes.constant(0)), lanes.constant(1))


def _emit_leaky_relu(lanes: Lanes, x: str, *, alpha: Attribute) -> str:
    scaled = lanes.let(f"{x} * {lanes.constant(float(alpha))}")
    return lanes.select(f"{x} < {lanes.constant(0)}", scaled, x)


def _emit_swish(lanes: Lanes, x: str, *, alpha: Attribute) -> str:
    inner = lanes.let(f"{x} * {lanes.constant(float(alpha))}")
    return lanes.let(f"{x} * {lanes.sigmoid(inner)}")


POWERS = (2.0, 3.0)

OPS: Mapping[str, ElementwiseOp] = {
    "Add": _binary("+", np.add),
    "Sub": _binary("-", np.subtract),
    "Mul": _binary("*", np.multiply),
    "Div": _binary("/", np.divide),
    "Pow": ElementwiseOp(lambda x, _: _present(x[0]) ** _present(x[1]), _emit_power, n_inputs=(2, 2)),
    "Max": _folded(np.maximum, lambda lanes, a, b: _emit_extremum(lanes, a, b, smaller=False)),
    "Min": _folded(np.minimum, lambda lanes, a, b: _emit_extremum(lanes, a, b, smaller=True)),
    "Sum": _folded(np.add, lambda lanes, a, b: lanes.let(f"{a} + {b}")),
    "Clip": ElementwiseOp(_clip, _emit_clip, n_inputs=(1, 3)),
    "Neg": _unary(np.negative, Lanes.negate),
    "Abs": _unary(np.abs, Lanes.absolute),
    "Reciprocal": _unary(np.reciprocal, lambda lanes, x: lanes.let(f"{lanes.constant(1)} / {x}")),
    "Sqrt": _unary(np.sqrt, lambda lanes, x: lanes.let(f"T.sqrt({x})")),
    "Exp": _unary(np.exp, Lanes.exp),
    "Sigmoid": _unary(_sigmoid, Lanes.sigmoid),
    "Tanh": _unary(np.tanh, Lanes.tanh),
    "Erf": _unary(_erf, Lanes.erf),
    "Relu": _unary(lambda x: np.maximum(x, 0), lambda lanes, x: lanes.at_least(x, lanes.constant(0))),
    "LeakyRelu": _scaled(lambda x, alpha: np.where(x < 0, x * x.dtype.type(alpha), x), _emit_leaky_relu, alpha=0.01),
    "HardSigmoid": _scaled(
        lambda x, alpha, beta: np.clip(x * x.dtype.type(alpha) + x.dtype.type(beta), 0, 1),
        _emit_hard_sigmoid,
        alpha=0.2,
        beta=0.5,
    ),
    "Gelu": _scaled(_gelu, _emit_gelu, approximate="none"),
    "Swish": _scaled(lambda x, alpha: x * _sigmoid(x * x.dtype.type(alpha)), _emit_swish, alpha=1.0),
}
