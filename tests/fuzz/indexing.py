"""Operators that pick elements by number, and those that make tensors from numbers."""

from __future__ import annotations

import numpy as np

from fuzz.draw import Draw
from fuzz.kernels import BOOL, FLOAT, INT32, INT64, numpy_type, supported
from fuzz.registry import emits
from fuzz.values import Shape, Unfit, Value, both

Dims = tuple[int, ...]


def indices(d: Draw, shape: Dims, size: int, *, negative: bool = True) -> np.ndarray:
    if size < 1:
        raise Unfit("nothing to index")
    return d.rng.integers(-size if negative and d.chance(0.4) else 0, size, size=shape)


def least(x: Value, axis: int) -> int:
    return min(s[axis] for s in x.shapes)


@emits("Gather")
def gather(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    axis = d.axis(x)
    n = least(x, axis)
    kind = d.integer(0, 5)
    dtype = d.pick((INT64, INT32))
    if kind == 0 and x.shapes[0][axis] == x.shapes[1][axis]:
        index = d.ints(np.arange(n), dtype)
    elif kind == 1 and n:
        index = d.input(dtype, ranks=(0, 1, 2), domain=(-n if d.chance(0.3) else 0, n))
    else:
        index = d.ints(indices(d, d.pick(((), (1,), (2,), (3,), (2, 2), (0,))), n), dtype)
    out = both(lambda s, i: (*s[:axis], *i, *s[axis + 1 :]), x, index)
    d.node(op, [x, index], [(x.dtype, out)], axis=d.spelled(axis, x.rank))


@emits("GatherElements")
def gather_elements(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3))
    axis = d.axis(x)
    shape = tuple(d.integer(1, 4) if i == axis else least(x, i) for i in range(x.rank))
    index = d.ints(indices(d, shape, least(x, axis)))
    d.node(op, [x, index], [(x.dtype, (shape, shape))], axis=d.spelled(axis, x.rank))


@emits("GatherND")
def gather_nd(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3, 4))
    depth = d.integer(1, x.rank + 1)
    batch = int(d.opset >= 12 and depth < x.rank and d.chance(0.3) and x.shapes[0][0] == x.shapes[1][0] > 0)
    front: Dims = (x.shape[0],) * batch + d.pick(((), (2,), (1, 2)))
    columns = [indices(d, front, least(x, batch + i)) for i in range(min(depth, x.rank - batch))]
    index = d.ints(np.stack(columns, axis=-1))
    out = both(lambda s: (*front, *s[batch + len(columns) :]), x)
    d.node(op, [x, index], [(x.dtype, out)], batch_dims=batch or None)


@emits("ScatterElements")
def scatter_elements(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3))
    axis = d.axis(x)
    n = d.integer(1, least(x, axis) + 1)
    shape = tuple(n if i == axis else least(x, i) for i in range(x.rank))
    # Without repeats: which of two updates wins is not defined.
    order = np.stack([d.rng.permutation(least(x, axis))[:n] for _ in range(int(np.prod(shape)) // n)] or [[]])
    index = np.moveaxis(order.reshape((*shape[:axis], *shape[axis + 1 :], n)), -1, axis)
    d.same(op, [x, d.ints(index), d.weight(x.dtype, shape)], axis=d.spelled(axis, x.rank))


@emits("ScatterND")
def scatter_nd(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3))
    n = least(x, 0)
    rows = np.arange(n) if d.chance(0.5) else d.rng.permutation(n)[: d.integer(1, n + 1)]
    if not len(rows):
        raise Unfit("no rows")
    if len(rows) == n == x.shapes[0][0] == x.shapes[1][0]:
        updates = d.like(x)
    else:
        if x.shapes[0][1:] != x.shapes[1][1:]:
            raise Unfit("no updates")
        updates = d.weight(x.dtype, (len(rows), *x.shape[1:]))
    d.same(op, [x, d.ints(rows[:, None]), updates])


@emits("OneHot")
def one_hot(d: Draw, op: str) -> None:
    x = d.value((INT64,), ranks=(1, 2, 3))
    n = d.integer(1, 5)
    axis = d.integer(0, x.rank + 1)
    values = d.constant(np.array(d.pick(((0, 1), (-1, 5))), np.float32))
    out = both(lambda s: (*s[:axis], n, *s[axis:]), x)
    shown = axis if d.chance(0.5) else axis - x.rank - 1
    d.node(op, [x, d.ints([n] if d.chance(0.5) else n), values], [(FLOAT, out)], axis=shown)


@emits("Compress")
def compress(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2, 3))
    axis = d.axis(x)
    chosen = d.rng.random(least(x, axis)) < 0.6
    out = both(lambda s: (*s[:axis], int(chosen.sum()), *s[axis + 1 :]), x)
    d.node(op, [x, d.constant(chosen)], [(x.dtype, out)], axis=d.spelled(axis, x.rank))


@emits("NonZero")
def non_zero(d: Draw, op: str) -> None:
    """Its number of columns depends on the contents: only sums of it go on."""
    x = d.operand(op, ranks=(1, 2, 3))
    y = d.node(op, [x], [(INT64, ((x.rank, 1), (x.rank, 1)))])[0]
    d.pool.remove(y)
    d.node("Shape", [y], [(INT64, ((2,), (2,)))])


@emits("Unique")
def unique(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(1, 2))
    y = d.node(op, [x], [(x.dtype, ((1,), (1,)))], sorted=1)[0]
    d.pool.remove(y)
    d.node("Size", [y], [(INT64, ((), ()))])


@emits("ReverseSequence")
def reverse_sequence(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2, 3), where=lambda v: not v.is_empty)
    batch = d.integer(0, 2)
    if x.shapes[0][batch] != x.shapes[1][batch]:
        raise Unfit("the number of lengths would change")
    lengths = d.ints([d.integer(1, least(x, 1 - batch) + 1) for _ in range(x.shape[batch])])
    d.same(op, [x, lengths], batch_axis=batch, time_axis=1 - batch)


@emits("Range")
def range_(d: Draw, op: str) -> None:
    dtype = d.pick([t for t in (INT64, INT32, FLOAT) if supported(op, d.opset, (t, t, t), (t,))])
    start, step = d.integer(-2, 3), int(d.pick((1, 1, 2, -1)))
    n = d.integer(0, 6)
    numbers = [d.constant(np.array(v, numpy_type(dtype))) for v in (start, start + n * step, step)]
    if d.chance(0.3) and dtype == INT64:
        x = d.value(list({v.dtype for v in d.pool}), ranks=(1, 2, 3))
        axis = d.axis(x)
        shape = d.node("Shape", [x], [(INT64, ((x.rank,), (x.rank,)))])[0]
        limit = d.node("Gather", [shape, d.ints(axis)], [(INT64, ((), ()))])[0]
        zero, one = d.constant(np.array(0)), d.constant(np.array(1))
        d.node(op, [zero, limit, one], [(INT64, both(lambda s: (s[axis],), x))])
        return
    d.node(op, numbers, [(dtype, ((n,), (n,)))])


@emits("ConstantOfShape")
def constant_of_shape(d: Draw, op: str) -> None:
    dtype = d.pick([t for t in (FLOAT, INT64, INT32, BOOL) if supported(op, d.opset, (INT64,), (t,))])
    value = {} if dtype == FLOAT and d.chance(0.3) else {"value": _one_number(d, dtype)}
    if d.chance(0.5):
        x = d.value(list({v.dtype for v in d.pool}), ranks=(1, 2, 3))
        shape = d.node("Shape", [x], [(INT64, ((x.rank,), (x.rank,)))])[0]
        out = x.shapes
    else:
        dims = tuple(d.integer(0, 4) for _ in range(d.integer(0, 4)))
        shape, out = d.ints(np.array(dims, dtype=np.int64)), (dims, dims)
    y = d.node(op, [shape], [(dtype, out)], **value)[0]
    if d.chance(0.3):
        d.same("Cast", [y], to=FLOAT, dtype=FLOAT)


def _one_number(d: Draw, dtype: int) -> object:
    import onnx.numpy_helper

    number = d.pick((0, 1, 2)) if dtype != FLOAT else d.pick((0.0, -0.0, 1.5, np.nan))
    return onnx.numpy_helper.from_array(np.array([number]).astype(numpy_type(dtype)))


@emits("EyeLike")
def eye_like(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2,))
    dtype = FLOAT if d.chance(0.5) else None
    d.node(op, [x], [(dtype or x.dtype, x.shapes)], k=d.integer(-1, 2), dtype=dtype)


@emits("Constant")
def constant(d: Draw, op: str) -> None:
    kind = d.integer(0, 5)
    if kind == 0 or d.opset < 12:
        import onnx.numpy_helper

        array = d.numbers(FLOAT, (2, 2), special=0.3)
        d.node(op, [], [(FLOAT, ((2, 2), (2, 2)))], value=onnx.numpy_helper.from_array(array))
    elif kind == 1:
        d.node(op, [], [(FLOAT, ((), ()))], value_float=float(d.pick((1.5, -0.0, 0.0))))
    elif kind == 2:
        d.node(op, [], [(FLOAT, ((2,), (2,)))], value_floats=[1.0, -2.5])
    elif kind == 3:
        d.node(op, [], [(INT64, ((), ()))], value_int=d.integer(-2, 3))
    else:
        d.node(op, [], [(INT64, ((3,), (3,)))], value_ints=[1, -1, 2])


@emits("TensorScatter")
def tensor_scatter(d: Draw, op: str) -> None:
    cache = d.operand(op, ranks=(3, 4), where=lambda v: not v.is_empty and v.is_static)
    axis = cache.rank - 2
    length = d.integer(1, cache.shape[axis] + 1)
    shape: Shape = (*cache.shape[:axis], length, *cache.shape[axis + 1 :])
    update = d.weight(cache.dtype, shape)
    at = d.ints(indices(d, (cache.shape[0],), cache.shape[axis] - length + 1, negative=False))
    d.same(op, [cache, update, at], axis=-2, mode="linear")
