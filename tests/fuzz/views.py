"""Operators that move elements without reading them: views, cuts, copies."""

from __future__ import annotations

import math

import numpy as np

from fuzz.draw import MAX_RANK, Draw
from fuzz.kernels import FLOATS, INT64, numpy_type
from fuzz.registry import emits
from fuzz.values import Shape, Unfit, Value, both, broadcast

FAR = 2**63 - 1


@emits("Reshape")
def reshape(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=range(6))
    for _ in range(2 if d.chance(0.3) else 1):
        x = _reshaped(d, x)


def _reshaped(d: Draw, x: Value) -> Value:
    """To a target spelled with 0, -1 and numbers that is right at both bindings."""
    if d.chance(0.12):
        return _reshaped_by_shape(d, x)
    target = _regrouped(d, x)
    if x.is_static and d.chance(0.3):
        target = list(np.array(target, dtype=object))
    allow_zero = int(d.opset >= 14 and d.chance(0.1))
    spelled = []
    for axis, dim in enumerate(target):
        copies = axis < x.rank and all(dim[i] == x.shapes[i][axis] for i in (0, 1))
        if copies and d.chance(0.5) and not allow_zero:
            spelled.append(0)
        elif dim[0] == dim[1] and (dim[0] or allow_zero or copies):
            spelled.append(0 if not dim[0] else dim[0])
        else:
            spelled.append(-1 if -1 not in spelled and not x.is_empty and not allow_zero else 0)
    if -1 not in spelled and d.chance(0.4) and not x.is_empty and spelled and not allow_zero:
        spelled[d.integer(0, len(spelled))] = -1
    out = both(lambda s: reshape_rule(s, spelled, allow_zero), x)
    return d.node("Reshape", [x, d.ints(spelled)], [(x.dtype, out)], allowzero=allow_zero or None)[0]


def _regrouped(d: Draw, x: Value) -> list[tuple[int, int]]:
    dims = list(zip(*x.shapes, strict=True))
    for _ in range(d.integer(0, 3)):
        kind = d.integer(0, 4)
        at = d.integer(0, len(dims)) if dims else 0
        if kind == 0 and at + 1 < len(dims):
            dims[at : at + 2] = [(dims[at][0] * dims[at + 1][0], dims[at][1] * dims[at + 1][1])]
        elif kind == 1 and dims and len(dims) < MAX_RANK:
            factor = next((f for f in (2, 3, 1) if all(n % f == 0 for n in dims[at])), 1)
            dims[at : at + 1] = d.pick([[(dims[at][0] // factor, dims[at][1] // factor), (factor, factor)]])
        elif kind == 2 and len(dims) < MAX_RANK:
            dims.insert(d.integer(0, len(dims) + 1), (1, 1))
        elif kind == 3 and dims and dims[at] == (1, 1):
            del dims[at]
    return dims


def _reshaped_by_shape(d: Draw, x: Value) -> Value:
    """Its own dims, read by Shape, put together again."""
    if not 1 <= x.rank <= 4 or x.is_empty:
        raise Unfit("no dims")
    shape = d.node("Shape", [x], [(INT64, ((x.rank,), (x.rank,)))])[0]
    at = d.integer(0, x.rank)
    index = d.ints([at]) if d.chance(0.6) else d.ints(at)
    dim = d.node("Gather", [shape, index], [(INT64, index.shapes)])[0]
    if not index.rank:
        operands: list[Value | None] = [dim, d.ints([0])] if d.opset >= 13 else [dim]
        dim = d.node("Unsqueeze", operands, [(INT64, ((1,), (1,)))], axes=None if d.opset >= 13 else [0])[0]
    rest = d.ints([-1])
    target = d.node("Concat", [dim, rest], [(INT64, ((2,), (2,)))], axis=0)[0]
    out = both(lambda s: (s[at], math.prod(s[:at] + s[at + 1 :])), x)
    return d.node("Reshape", [x, target], [(x.dtype, out)])[0]


def reshape_rule(shape: Shape, target: list[int], allow_zero: int) -> Shape:
    dims = []
    for axis, dim in enumerate(target):
        if dim == 0 and not allow_zero:
            if axis >= len(shape):
                raise ValueError("0 beyond the rank")
            dim = shape[axis]
        dims.append(dim)
    total = math.prod(shape)
    if -1 in dims:
        known = math.prod(n for n in dims if n != -1)
        if not known or total % known:
            raise ValueError("-1 cannot be computed")
        dims[dims.index(-1)] = total // known
    if math.prod(dims) != total:
        raise ValueError("another number of elements")
    return tuple(dims)


@emits("Flatten")
def flatten(d: Draw, op: str) -> None:
    x = d.operand(op)
    axis = d.integer(0, x.rank + 1)
    out = both(lambda s: (math.prod(s[:axis]), math.prod(s[axis:])), x)
    d.node(op, [x], [(x.dtype, out)], axis=axis - x.rank if x.rank and axis < x.rank and d.chance(0.3) else axis)


@emits("Squeeze")
def squeeze(d: Draw, op: str) -> None:
    x = d.operand(op, where=lambda v: 1 in v.shape and v.rank > 0)
    ones = [i for i in range(x.rank) if x.shapes[0][i] == x.shapes[1][i] == 1]
    if d.chance(0.12):
        if any(1 in (a, b) and a != b for a, b in zip(*x.shapes, strict=True)):
            raise Unfit("the rank would depend on the sizes")
        d.node(op, [x], [(x.dtype, both(lambda s: tuple(n for n in s if n != 1), x))])
        return
    axes = d.some(ones)
    y = _with_axes(d, op, x, axes, both(lambda s: tuple(n for i, n in enumerate(s) if i not in axes), x))
    if d.chance(0.3):
        _unsqueezed(d, y)


@emits("Unsqueeze")
def unsqueeze(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=range(MAX_RANK - 1))
    for _ in range(2 if d.chance(0.3) else 1):
        x = _unsqueezed(d, x)


def _unsqueezed(d: Draw, x: Value) -> Value:
    rank = x.rank + d.integer(1, 3)
    if rank > MAX_RANK:
        raise Unfit("the rank")
    axes = d.some(range(rank), rank - x.rank, rank - x.rank)

    def rule(shape: Shape) -> Shape:
        dims = list(shape)
        for axis in axes:
            dims.insert(axis, 1)
        return tuple(dims)

    return _with_axes(d, "Unsqueeze", x, axes, both(rule, x), rank)


def _with_axes(d: Draw, op: str, x: Value, axes: list[int], out: tuple[Shape, Shape], rank: int | None = None) -> Value:
    spelled = [d.spelled(a, x.rank if rank is None else rank) for a in axes]
    if len(spelled) > 1 and d.chance(0.3):
        spelled.reverse()
    if d.opset >= 13:
        return d.node(op, [x, d.ints(spelled)], [(x.dtype, out)])[0]
    return d.node(op, [x], [(x.dtype, out)], axes=spelled)[0]


@emits("Transpose")
def transpose(d: Draw, op: str) -> None:
    x = d.operand(op)
    for _ in range(2 if d.chance(0.3) else 1):
        perm = [int(i) for i in d.rng.permutation(x.rank)]
        if d.chance(0.15) or not x.rank:
            x = d.node(op, [x], [(x.dtype, both(lambda s: s[::-1], x))])[0]
            continue
        if d.chance(0.2):
            perm = list(range(x.rank))
        x = d.node(op, [x], [(x.dtype, both(lambda s, p=tuple(perm): tuple(s[i] for i in p), x))], perm=perm)[0]


@emits("Concat")
def concat(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    axis = d.axis(x)

    def fits(v: Value) -> bool:
        return v.rank == x.rank and all(
            a[:axis] + a[axis + 1 :] == b[:axis] + b[axis + 1 :] for a, b in zip(v.shapes, x.shapes, strict=True)
        )

    others = [v for v in d.pool if v.dtype == x.dtype and not v.is_sequence and fits(v)]
    operands = [x, *(d.pick(others) for _ in range(d.integer(0, 3)))]
    if x.is_static and d.chance(0.25):
        operands.insert(d.integer(0, 2), d.weight(x.dtype, (*x.shape[:axis], d.integer(0, 3), *x.shape[axis + 1 :])))
    out = both(lambda *s: (*s[0][:axis], sum(n[axis] for n in s), *s[0][axis + 1 :]), *operands)
    y = d.node(op, operands, [(x.dtype, out)], axis=d.spelled(axis, x.rank))[0]
    if d.chance(0.2):
        out = both(lambda *s: (*s[0][:axis], s[0][axis] + s[1][axis], *s[0][axis + 1 :]), y, x)
        d.node(op, [y, x], [(x.dtype, out)], axis=axis)


@emits("Split")
def split(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    axis = d.axis(x)
    size, spelled = x.shapes[0][axis], d.spelled(axis, x.rank)
    if size != x.shapes[1][axis]:
        # The number of parts alone is right for every size that it divides: here one.
        if d.opset < 18:
            raise Unfit("the lengths of the parts would change")
        d.node(op, [x], [(x.dtype, x.shapes)], axis=spelled, num_outputs=1)
        return
    cuts = sorted(d.integer(0, size + 1) for _ in range(d.integer(0, 3)))
    lengths = [b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True)]
    outs = [(x.dtype, both(lambda s, n=n: (*s[:axis], n, *s[axis + 1 :]), x)) for n in lengths]
    if d.opset >= 13:
        d.node(op, [x, d.ints(lengths)], outs, axis=spelled)
    else:
        d.node(op, [x], outs, axis=spelled, split=lengths)


@emits("Slice")
def slice_(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4, 5))
    for _ in range(2 if d.chance(0.35) else 1):
        x = _sliced(d, x)


def _sliced(d: Draw, x: Value) -> Value:
    axes = d.some(range(x.rank), 1, 2)
    starts, ends, steps = [], [], []
    for axis in axes:
        size = x.shapes[0][axis]
        step = int(d.pick((1, 1, 1, 1, 2, 3, -1, -1, -2)))
        forward = (0, 0, 1, -size, -1, size, -FAR, 2)
        starts.append(int(d.pick(forward if step > 0 else (-1, size, FAR, 1, 0))))
        ends.append(int(d.pick((FAR, size, -1, size + 3, 2, 2**31 - 1) if step > 0 else (-FAR, 0, -size - 1, 1))))
        steps.append(step)

    def rule(shape: Shape) -> Shape:
        dims = list(shape)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            dims[axis] = len(range(shape[axis])[slice(start, end, step)])
        return tuple(dims)

    dtype = INT64 if max(map(abs, [*starts, *ends])) > 2**31 - 1 or d.chance(0.8) else 6
    operands: list[Value | None] = [x, d.ints(starts, dtype), d.ints(ends, dtype)]
    all_leading = axes == list(range(len(axes)))
    unit = all(s == 1 for s in steps)
    with_axes = not all_leading or d.chance(0.7)
    operands.append(d.ints([d.spelled(a, x.rank) for a in axes], dtype) if with_axes else None)
    operands.append(d.ints(steps, dtype) if not unit or d.chance(0.3) else None)
    return d.node("Slice", operands, [(x.dtype, both(rule, x))])[0]


@emits("Pad")
def pad(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4), where=lambda v: not v.is_empty)
    for _ in range(2 if d.chance(0.3) else 1):
        modes = ("constant", "constant", "edge", "reflect", *(["wrap"] if d.opset >= 19 else []))
        mode = d.pick(modes)
        axes = d.some(range(x.rank)) if d.opset >= 18 and d.chance(0.3) else list(range(x.rank))
        pads = [int(d.pick((0, 0, 1, 2, -1 if mode == "constant" else 1))) for _ in range(2 * len(axes))]
        if d.chance(0.15):
            pads = [0] * len(pads)

        def rule(shape: Shape, pads: list[int] = pads, axes: list[int] = axes, mode: str = mode) -> Shape:
            dims = list(shape)
            for i, axis in enumerate(axes):
                before, after = pads[i], pads[i + len(axes)]
                if mode in ("reflect", "wrap") and max(before, after) >= dims[axis]:
                    raise ValueError("no numbers to mirror")
                if min(before, 0) + min(after, 0) + dims[axis] < 1:
                    raise ValueError("nothing is left")
                dims[axis] += before + after
            return tuple(dims)

        value = None
        if mode == "constant" and d.chance(0.5):
            value = d.constant(np.array(d.pick((0, 1, -0.0))).astype(numpy_type(x.dtype)))
        places = None if len(axes) == x.rank else d.ints([d.spelled(a, x.rank) for a in axes])
        shown = None if mode == "constant" and d.chance(0.5) else mode
        x = d.node(op, [x, d.ints(pads), value, places], [(x.dtype, both(rule, x))], mode=shown)[0]


@emits("Expand")
def expand(d: Draw, op: str) -> None:
    x = d.operand(op)
    if d.chance(0.3):
        like = d.value(list({v.dtype for v in d.pool}), where=lambda v: v.rank >= 1)
        target = d.node("Shape", [like], [(INT64, ((like.rank,), (like.rank,)))])[0]
        y = d.node(op, [x, target], [(x.dtype, both(broadcast, x, like))])[0]
    else:
        sizes = [int(d.pick((a, 1, 1))) if a == b else 1 for a, b in zip(*x.shapes, strict=True)]
        stretches = [a == b == 1 for a, b in zip(*x.shapes, strict=True)]
        sizes = [d.integer(1, 4) if can else s for s, can in zip(sizes, stretches, strict=True)]
        sizes = [*(int(d.pick((1, 2))) for _ in range(d.integer(0, 2))), *sizes]
        if not sizes:
            raise Unfit("no dims")
        y = d.node(op, [x, d.ints(sizes)], [(x.dtype, both(lambda s: broadcast(s, tuple(sizes)), x))])[0]
    if y.dtype in FLOATS and d.chance(0.4):
        d.same(d.pick(("Neg", "Abs", "Relu", "Sigmoid")), [y]) if d.chance(0.5) else d.node(
            "Add", [y, other := d.partner(y)], [(y.dtype, both(broadcast, y, other))]
        )


@emits("Tile")
def tile(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    repeats = [int(d.pick((1, 1, 1, 2, 3, 0 if d.chance(0.1) else 1))) for _ in range(x.rank)]
    d.node(op, [x, d.ints(repeats)], [(x.dtype, both(lambda s: tuple(np.multiply(s, repeats)), x))])


@emits("Shape")
def shape(d: Draw, op: str) -> None:
    x = d.operand(op)
    if d.opset >= 15 and d.chance(0.5):
        start, end = d.integer(-2, x.rank + 1), d.integer(-1, x.rank + 2)
        n_dims = len(range(x.rank)[max(start, -x.rank) : end])
        kept = {"start": start, "end": end}
    else:
        n_dims, kept = x.rank, {}
    d.node(op, [x], [(INT64, ((n_dims,), (n_dims,)))], **kept)


@emits("Size")
def size(d: Draw, op: str) -> None:
    d.node(op, [d.operand(op)], [(INT64, ((), ()))])


@emits("DepthToSpace", "SpaceToDepth")
def depth(d: Draw, op: str) -> None:
    block = 2

    def fits(v: Value) -> bool:
        if op == "DepthToSpace":
            return all(s[1] % 4 == 0 and s[1] for s in v.shapes)
        return all(s[2] % 2 == 0 and s[3] % 2 == 0 and s[1] for s in v.shapes)

    x = d.operand(op, ranks=(4,), where=fits, make=((2, 4, 2, 4), (2, 4, 2, 4)))
    if op == "DepthToSpace":
        out = both(lambda s: (s[0], s[1] // 4, s[2] * 2, s[3] * 2), x)
        d.node(op, [x], [(x.dtype, out)], blocksize=block, mode=d.pick(("DCR", "CRD")))
    else:
        out = both(lambda s: (s[0], s[1] * 4, s[2] // 2, s[3] // 2), x)
        d.node(op, [x], [(x.dtype, out)], blocksize=block)


@emits("Trilu")
def trilu(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2, 3, 4))
    d.same(op, [x, d.ints(d.integer(-2, 3)) if d.chance(0.6) else None], upper=d.integer(0, 2))


@emits("CenterCropPad")
def center_crop_pad(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3), among=FLOATS)
    target = [d.integer(1, 5) for _ in range(x.rank)]
    d.node(op, [x, d.ints(target)], [(x.dtype, (tuple(target), tuple(target)))])
