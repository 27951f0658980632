"""Operators on elements: unary, with broadcasting, variadic, reductions and what works along one axis."""

from __future__ import annotations

import numpy as np

from fuzz.draw import Draw
from fuzz.kernels import BOOL, DTYPES, FLOAT, FLOATS, INT64, STRING, numpy_type, supported
from fuzz.registry import emits
from fuzz.values import Shape, Value, both, broadcast

_SMOOTH = [
    "Abs",
    "Neg",
    "Sqrt",
    "Exp",
    "Log",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Tanh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Sigmoid",
    "Relu",
    "Erf",
]
_STEPS = [
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Reciprocal",
    "Softplus",
    "Softsign",
    "HardSwish",
    "Mish",
    "Identity",
    "Not",
    "BitwiseNot",
]


@emits(*_SMOOTH, *_STEPS)
def unary(d: Draw, op: str) -> None:
    x = d.operand(op)
    y = d.same(op, [x])
    if op in ("Not", "Neg", "BitwiseNot", "Relu", "Abs", "Floor", "Ceil", "Round", "Sign") and d.chance(0.25):
        d.same(op if d.chance(0.6) else d.pick(("Floor", "Ceil", "Round")) if op != "Not" else op, [y])


@emits("Elu", "LeakyRelu", "ThresholdedRelu", "Celu", "HardSigmoid", "Selu", "Gelu", "Shrink", "Swish")
def parametric(d: Draw, op: str) -> None:
    attributes: dict[str, object] = {}
    if op in ("HardSigmoid", "Selu") and d.chance(0.5):
        attributes = {"alpha": 0.3, "beta" if op == "HardSigmoid" else "gamma": 0.6}
    elif op == "Gelu":
        attributes = {"approximate": d.pick(("none", "tanh"))} if d.chance(0.6) else {}
    elif op == "Shrink":
        attributes = {"lambd": 0.4, "bias": d.pick((0.0, 0.2))} if d.chance(0.7) else {}
    elif d.chance(0.6):
        attributes = {"alpha": float(d.pick((0.1, 0.5, 1.0, 2.0)))}
    d.same(op, [d.operand(op)], **attributes)


@emits("IsNaN", "IsInf")
def classified(d: Draw, op: str) -> None:
    signs = {"detect_negative": d.integer(0, 2), "detect_positive": d.integer(0, 2)} if op == "IsInf" else {}
    d.same(op, [d.operand(op)], BOOL, **(signs if d.chance(0.5) else {}))


@emits("Clip")
def clip(d: Draw, op: str) -> None:
    x = d.operand(op)
    for _ in range(2 if d.chance(0.3) else 1):
        bounds: list[Value | None] = []
        signed = numpy_type(x.dtype).kind != "u"
        for number in ((-2, -1, 0) if signed else (0, 1), (0, 1, 2, 6)):
            bound = np.array(d.pick(number)).astype(numpy_type(x.dtype))
            bounds.append(d.constant(bound) if d.chance(0.75) else None)
        x = d.same(op, [x, *bounds])


@emits("Cast")
def cast(d: Draw, op: str) -> None:
    x = d.value([t for t in DTYPES if t != STRING])
    for _ in range(d.integer(1, 3)):
        to = d.pick([t for t in DTYPES if t != STRING]) if d.chance(0.6) else d.pick((FLOAT, INT64, x.dtype))
        x = d.same(op, [x], to, to=to)


@emits("CastLike")
def cast_like(d: Draw, op: str) -> None:
    x, like = d.value(FLOATS), d.value((FLOAT, INT64, BOOL))
    d.same(op, [x, like], like.dtype)


@emits("Dropout")
def dropout(d: Draw, op: str) -> None:
    x = d.operand(op)
    mask = (BOOL, x.shapes) if d.chance(0.3) else None
    if d.opset < 12:
        d.node(op, [x], [(x.dtype, x.shapes), mask], ratio=0.4)
        return
    ratio = d.constant(np.array(0.4, numpy_type(x.dtype))) if d.chance(0.6) else None
    training = d.constant(np.array(False)) if d.chance(0.4) else None
    d.node(op, [x, ratio, training], [(x.dtype, x.shapes), mask])


_BINARY = ["Add", "Sub", "Mul", "Div", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "PRelu"]
_COMPARISONS = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]


@emits(*_BINARY)
def binary(d: Draw, op: str) -> None:
    x = d.operand(op)
    # Division by an integer zero ends the process.
    y = d.partner(x, positive=op == "Div" and x.dtype not in FLOATS)
    if op == "PRelu":
        shape = x.shape[1:] if x.is_static and d.chance(0.5) else (1,) * min(x.rank, 1)
        y = d.weight(x.dtype, shape)
    pair = [x, y] if op in ("PRelu", "Div") or d.chance(0.6) else [y, x]
    z = d.node(op, pair, [(x.dtype, both(broadcast, x, y))])[0]
    if d.chance(0.15) and op != "PRelu" and op != "Div":
        d.node(op, [z, d.partner(z)], [(x.dtype, z.shapes)]) if z.shapes == both(broadcast, z, y) else None


@emits(*_COMPARISONS)
def comparison(d: Draw, op: str) -> None:
    x = d.operand(op)
    y = d.partner(x)
    d.node(op, [x, y], [(BOOL, both(broadcast, x, y))])


@emits("Pow")
def power(d: Draw, op: str) -> None:
    x = d.operand(op)
    exponent = d.constant(np.array(d.pick((1, 2, 3, 0)), numpy_type(x.dtype)))
    d.same(op, [x, exponent])


@emits("Mod")
def mod(d: Draw, op: str) -> None:
    x = d.operand(op)
    y = d.partner(x, positive=True)
    d.node(op, [x, y], [(x.dtype, both(broadcast, x, y))], fmod=1 if x.dtype in FLOATS else d.integer(0, 2))


@emits("BitShift")
def bit_shift(d: Draw, op: str) -> None:
    x = d.operand(op)
    y = d.constant(np.array(d.integer(0, 4), numpy_type(x.dtype)))
    d.same(op, [x, y], direction=d.pick(("LEFT", "RIGHT")))


@emits("Max", "Min", "Sum", "Mean")
def variadic(d: Draw, op: str) -> None:
    x = d.operand(op)
    operands = [x]
    for _ in range(d.integer(0, 4)):
        operands.append(d.partner(x))
    d.rng.shuffle(operands)  # type: ignore[arg-type]
    y = d.node(op, operands, [(x.dtype, both(broadcast, *operands))])[0]
    if op in ("Max", "Min") and d.chance(0.4):
        bounds = [d.constant(np.array(d.pick((0, 1, 3)), numpy_type(x.dtype))) for _ in range(2)]
        y = d.same(d.pick(("Max", "Min")), [y, bounds[0]])
        d.same(d.pick(("Max", "Min")), [y, bounds[1]])


@emits("Where")
def where(d: Draw, op: str) -> None:
    x = d.value([t for t in DTYPES if supported(op, d.opset, (BOOL, t, t), (t,))])
    if d.chance(0.25):
        condition = d.constant(np.full(d.pick(((), (1,))), d.chance(0.5)))
    else:
        condition = d.partner(x, BOOL)
    if d.chance(0.2) and condition.array is None:
        condition = d.same("Not", [condition])
    y = x if d.chance(0.1) else d.partner(x)
    pair = [x, y] if d.chance(0.5) else [y, x]
    d.node(op, [condition, *pair], [(x.dtype, both(broadcast, condition, x, y))])


# -- along axes ------------------------------------------------------------------------------------------------------

_REDUCTIONS = {
    f"Reduce{k}": 18 for k in ["Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare"]
} | {"ReduceSum": 13}


@emits(*_REDUCTIONS)
def reduction(d: Draw, op: str) -> None:
    x = d.operand(op, where=lambda v: not v.is_empty)
    axes = d.some(range(x.rank), 0) if x.rank else []
    keepdims = d.integer(0, 2)
    # No axes: all of them, or none when the operator is told so.
    noop = d.integer(0, 2) if d.opset >= _REDUCTIONS[op] and d.chance(0.2) else None
    reduced = axes if axes else ([] if noop else list(range(x.rank)))
    out = both(lambda s: _reduced(s, reduced, keepdims), x)
    spelled = [d.spelled(a, x.rank) for a in axes]
    shown = {"keepdims": keepdims if not keepdims or d.chance(0.5) else None, "noop_with_empty_axes": noop}
    if d.opset >= _REDUCTIONS[op]:
        y = d.node(op, [x, d.ints(spelled) if spelled else None], [(x.dtype, out)], **shown)[0]
    else:
        y = d.node(op, [x], [(x.dtype, out)], axes=spelled or None, **shown)[0]
    if axes and d.chance(0.3):
        inverse = "Squeeze" if keepdims else "Unsqueeze"
        after = both(lambda s: _reduced(s, reduced, not keepdims), x)
        operands: list[Value | None] = [y, d.ints(axes)] if d.opset >= 13 else [y]
        d.node(inverse, operands, [(x.dtype, after)], axes=None if d.opset >= 13 else axes)


def _reduced(shape: Shape, axes: list[int], keepdims: int | bool) -> Shape:
    if keepdims:
        return tuple(1 if i in axes else s for i, s in enumerate(shape))
    return tuple(s for i, s in enumerate(shape) if i not in axes)


@emits("ArgMax", "ArgMin")
def arg_extreme(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4), where=lambda v: not v.is_empty)
    axis, keepdims = d.axis(x), d.integer(0, 2)
    last = {"select_last_index": d.integer(0, 2)} if d.opset >= 12 and d.chance(0.4) else {}
    out = both(lambda s: _reduced(s, [axis], keepdims), x)
    d.node(op, [x], [(INT64, out)], axis=d.spelled(axis, x.rank), keepdims=keepdims, **last)


@emits("Softmax", "LogSoftmax", "Hardmax", "LpNormalization")
def normalized(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4), where=lambda v: not v.is_empty)
    axis = d.spelled(d.axis(x), x.rank) if d.chance(0.8) else None
    d.same(op, [x], axis=axis, **({"p": d.integer(1, 3)} if op == "LpNormalization" else {}))


@emits("CumSum", "CumProd")
def cumulative(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    axis = d.ints(d.spelled(d.axis(x), x.rank))
    d.same(op, [x, axis], exclusive=d.integer(0, 2), reverse=d.integer(0, 2))


@emits("StringConcat")
def string_concat(d: Draw, op: str) -> None:
    x = d.value([STRING])
    y = d.partner(x)
    d.node(op, [x, y], [(STRING, both(broadcast, x, y))])


@emits("TopK")
def top_k(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4), where=lambda v: not v.is_empty)
    axis = d.axis(x)
    k = d.integer(1, min(s[axis] for s in x.shapes) + 1)
    out = both(lambda s: (*s[:axis], k, *s[axis + 1 :]), x)
    largest = {"largest": d.integer(0, 2), "sorted": 1} if d.chance(0.5) else {}
    d.node(op, [x, d.ints([k])], [(x.dtype, out), (INT64, out)], axis=d.spelled(axis, x.rank), **largest)
