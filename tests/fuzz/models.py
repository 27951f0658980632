"""Larger operators: quantization, recurrence, attention, signals, sequences."""

from __future__ import annotations

import numpy as np

from fuzz.draw import Draw
from fuzz.kernels import BOOL, FLOAT, FLOATS, INT8, INT32, INT64, UINT8, numpy_type
from fuzz.registry import emits
from fuzz.values import Unfit, Value, both

# -- quantization ----------------------------------------------------------------------------------------------------


def _parameters(d: Draw, dtype: int, channels: int | None) -> tuple[Value, Value]:
    shape = () if channels is None else (channels,)
    scale = d.constant(np.full(shape, d.pick((0.5, 0.1, 0.02)), np.float32))
    zero = d.constant(np.full(shape, 0 if dtype == INT8 else d.pick((0, 3, 128)), numpy_type(dtype)))
    return scale, zero


def _channel(d: Draw, x: Value) -> int | None:
    """A known axis for parameters per channel."""
    if d.opset < 13 or not d.chance(0.3):
        return None
    known = [i for i in range(x.rank) if x.shapes[0][i] == x.shapes[1][i]]
    return d.pick(known) if known else None


@emits("QuantizeLinear")
def quantize(d: Draw, op: str) -> None:
    x = d.value((FLOAT,))
    axis, dtype = _channel(d, x), d.pick((INT8, UINT8))
    scale, zero = _parameters(d, dtype, None if axis is None else x.shape[axis])
    q = d.same(op, [x, scale, zero], dtype, axis=axis)
    if d.chance(0.7):
        y = d.same("DequantizeLinear", [q, scale, zero], FLOAT, axis=axis)
        if d.chance(0.5):
            d.same(op, [y, scale, zero], dtype, axis=axis)


@emits("DequantizeLinear")
def dequantize(d: Draw, op: str) -> None:
    x = d.value((INT8, UINT8))
    axis = _channel(d, x)
    scale, zero = _parameters(d, x.dtype, None if axis is None else x.shape[axis])
    y = d.same(op, [x, scale, zero if d.chance(0.8) else None], FLOAT, axis=axis)
    if d.chance(0.5):
        d.same("QuantizeLinear", [y, scale, zero], x.dtype, axis=axis)


@emits("DynamicQuantizeLinear")
def dynamic_quantize(d: Draw, op: str) -> None:
    x = d.value((FLOAT,), where=lambda v: not v.is_empty)
    d.node(op, [x], [(UINT8, x.shapes), (FLOAT, ((), ())), (UINT8, ((), ()))])


# -- recurrence and attention ----------------------------------------------------------------------------------------


@emits("RNN", "GRU", "LSTM")
def recurrent(d: Draw, op: str) -> None:
    """x [T, B, C] -> y [T, directions, B, H], last [directions, B, H]"""

    def fits(v: Value) -> bool:
        return not v.is_empty and v.shapes[0][2] == v.shapes[1][2]

    x = d.operand(op, among=(FLOAT,), ranks=(3,), where=fits)
    gates, hidden = {"RNN": 1, "GRU": 3, "LSTM": 4}[op], d.integer(1, 4)
    direction = d.pick(("forward", "reverse", "bidirectional"))
    n = 2 if direction == "bidirectional" else 1
    w = d.weight(FLOAT, (n, gates * hidden, x.shape[2]))
    r = d.weight(FLOAT, (n, gates * hidden, hidden))
    bias = d.weight(FLOAT, (n, 2 * gates * hidden)) if d.chance(0.5) else None
    steps = both(lambda s: (s[0], n, s[1], hidden), x)
    last = both(lambda s: (n, s[1], hidden), x)
    results = [(FLOAT, steps), (FLOAT, last) if d.chance(0.5) else None]
    if op == "LSTM" and results[1] and d.chance(0.5):
        results.append((FLOAT, last))
    extra = {"linear_before_reset": d.integer(0, 2)} if op == "GRU" and d.chance(0.5) else {}
    d.node(op, [x, w, r, bias], results, hidden_size=hidden, direction=direction, **extra)


@emits("Attention")
def attention(d: Draw, op: str) -> None:
    def fits(v: Value) -> bool:
        return not v.is_empty

    q = d.operand(op, among=(FLOAT,), ranks=(4,), where=fits)
    k, v = d.like(q), d.like(q)
    mask = d.weight(FLOAT, (q.shape[2], q.shape[2])) if q.is_static and d.chance(0.4) else None
    d.same(op, [q, k, v, mask], is_causal=d.integer(0, 2) if mask is None else None)


@emits("RotaryEmbedding")
def rotary(d: Draw, op: str) -> None:
    def fits(v: Value) -> bool:
        return not v.is_empty and v.is_static and v.shape[3] % 2 == 0

    x = d.operand(op, among=(FLOAT,), ranks=(4,), where=fits, make=((2, 2, 3, 4), (2, 2, 3, 4)))
    n, _, length, width = x.shape
    cos, sin = d.weight(FLOAT, (5, width // 2)), d.weight(FLOAT, (5, width // 2))
    positions = d.ints(d.rng.integers(0, 5, (n, length)))
    d.same(op, [x, cos, sin, positions], interleaved=d.integer(0, 2))


# -- signals ---------------------------------------------------------------------------------------------------------


@emits("HannWindow", "HammingWindow", "BlackmanWindow")
def window(d: Draw, op: str) -> None:
    n = d.integer(1, 6)
    d.node(op, [d.ints(n)], [(FLOAT, ((n,), (n,)))], periodic=d.integer(0, 2))


@emits("DFT")
def fourier(d: Draw, op: str) -> None:
    n = d.integer(2, 6)
    shape = (1, n, 1)
    x = d.value((FLOAT,), ranks=(3,), where=lambda v: v.shapes == (shape, shape), make=(shape, shape))
    out = (1, n, 2)
    if d.opset >= 20:
        d.node(op, [x, None, d.ints(1)], [(FLOAT, (out, out))])
    else:
        d.node(op, [x], [(FLOAT, (out, out))], axis=1)


@emits("MelWeightMatrix")
def mel_weights(d: Draw, op: str) -> None:
    numbers = [d.ints(4), d.ints(16), d.ints(8192)]
    edges = [d.constant(np.array(v, np.float32)) for v in (0.0, 4096.0)]
    d.node(op, [*numbers, *edges], [(FLOAT, ((9, 4), (9, 4)))])


@emits("SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss")
def loss(d: Draw, op: str) -> None:
    x = d.operand(op, among=(FLOAT,), ranks=(2,), where=lambda v: not v.is_empty and v.is_static)
    target = d.constant(d.rng.integers(0, x.shape[1], x.shape[0]))
    reduction = d.pick(("none", "mean", "sum"))
    out = (x.shape[:1],) * 2 if reduction == "none" else ((), ())
    d.node(op, [x, target], [(FLOAT, out)], reduction=reduction)


# -- random numbers --------------------------------------------------------------------------------------------------


def random_twins(d: Draw) -> None:
    """Two nodes alike draw different numbers: that much can be compared, bit by bit."""
    op = d.pick(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"))
    if op.endswith("Like"):
        x = d.value((FLOAT,), where=lambda v: not v.is_empty)
        operands, shapes, shown = [x], x.shapes, {}
    else:
        operands, shapes, shown = [], ((2, 3), (2, 3)), {"shape": [2, 3]}
    first, second = (d.node(op, operands, [(FLOAT, shapes)], **shown)[0] for _ in range(2))
    d.node("Equal", [first, second], [(BOOL, shapes)])
    d.pool = [v for v in d.pool if v not in (first, second)]


# -- sequences -------------------------------------------------------------------------------------------------------


def _sequence(d: Draw) -> tuple[Value, list[Value]]:
    x = d.value((*FLOATS[:2], INT64, INT32))
    parts = [x, *(d.like(x) for _ in range(d.integer(0, 3)))]
    s = d.node("SequenceConstruct", parts, [(x.dtype, x.shapes)], sequence=True)[0]
    d.pool.remove(s)
    return s, parts


@emits("SequenceConstruct", "SequenceAt")
def sequence_at(d: Draw, op: str) -> None:
    s, parts = _sequence(d)
    at = d.integer(-len(parts), len(parts))
    d.node("SequenceAt", [s, d.ints(at)], [(s.dtype, parts[at].shapes)])


@emits("SequenceInsert", "SequenceErase")
def sequence_edit(d: Draw, op: str) -> None:
    s, parts = _sequence(d)
    if op == "SequenceErase":
        if len(parts) < 2:
            raise Unfit("too short")
        inputs: list[Value | None] = [s, d.ints(0)]
    else:
        inputs = [s, d.like(parts[0])]
    t = d.node(op, inputs, [(s.dtype, s.shapes)], sequence=True)[0]
    d.pool.remove(t)
    d.node("SequenceAt", [t, d.ints(-1)], [(s.dtype, s.shapes)])


@emits("SequenceLength")
def sequence_length(d: Draw, op: str) -> None:
    d.node(op, [_sequence(d)[0]], [(INT64, ((), ()))])


@emits("SequenceEmpty")
def sequence_empty(d: Draw, op: str) -> None:
    s = d.node(op, [], [(FLOAT, ((), ()))], sequence=True, dtype=FLOAT)[0]
    d.pool.remove(s)
    d.node("SequenceLength", [s], [(INT64, ((), ()))])


@emits("ConcatFromSequence")
def concat_from_sequence(d: Draw, op: str) -> None:
    s, parts = _sequence(d)
    if not parts[0].rank:
        raise Unfit("no axis")
    axis, n = d.integer(0, parts[0].rank), len(parts)
    out = both(lambda shape: (*shape[:axis], shape[axis] * n, *shape[axis + 1 :]), parts[0])
    d.node(op, [s], [(s.dtype, out)], axis=axis)


@emits("SplitToSequence")
def split_to_sequence(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3), where=lambda v: not v.is_empty)
    axis = d.axis(x)
    s = d.node(op, [x, d.ints(1)], [(x.dtype, x.shapes)], sequence=True, axis=axis)[0]
    d.pool.remove(s)
    out = both(lambda shape: (*shape[:axis], 1, *shape[axis + 1 :]), x)
    d.node("SequenceAt", [s, d.ints(0)], [(x.dtype, out)])
