"""Products: matrices, convolutions, contractions; their integer and quantized forms."""

from __future__ import annotations

import numpy as np

from fuzz.draw import Draw
from fuzz.kernels import INT8, INT32, UINT8, numpy_type
from fuzz.registry import emits
from fuzz.values import Shape, Unfit, Value, both


@emits("MatMul")
def matmul(d: Draw, op: str) -> None:
    # The runtime leaves a product over no elements as the memory was.
    x = d.operand(op, ranks=(1, 2, 3, 4), where=lambda v: not v.is_empty)
    y = d.node(op, [x, w := _right_operand(d, x)], [(x.dtype, both(matmul_rule, x, w))])[0]
    if d.chance(0.4):
        d.node("Add", [y, b := d.partner(y)], [(y.dtype, both(np.broadcast_shapes, y, b))])


def _right_operand(d: Draw, x: Value) -> Value:
    inner = x.shapes[0][-1]
    if inner != x.shapes[1][-1]:
        # Only a value of the same symbolic dim fits.
        return d.node("Transpose", [x], [(x.dtype, both(lambda s: s[::-1], x))])[0] if x.rank == 2 else _same(d, x)
    columns = d.integer(1, 5)
    shape: Shape = d.pick(
        ((inner, columns), (inner, columns), (inner,), (2, inner, columns) if x.rank < 3 else (inner, 3))
    )
    if d.chance(0.25) and len(shape) == 2:
        w = d.weight(x.dtype, shape[::-1])
        return d.node("Transpose", [w], [(x.dtype, (shape, shape))], perm=[1, 0])[0]
    return d.weight(x.dtype, shape) if d.chance(0.8) else d.input(x.dtype, (shape, shape))


def _same(d: Draw, x: Value) -> Value:
    if x.rank != 1:
        raise Unfit("no operand of this symbolic dim")
    return x


def matmul_rule(a: Shape, b: Shape) -> Shape:
    left, right = (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b
    if left[-1] != right[-2]:
        raise ValueError("inner dims")
    front = np.broadcast_shapes(left[:-2], right[:-2])
    return (*front, *(left[-2:-1] if len(a) > 1 else ()), *(right[-1:] if len(b) > 1 else ()))


@emits("Gemm")
def gemm(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2,), where=lambda v: not v.is_empty)
    trans_a, trans_b = d.integer(0, 2), d.integer(0, 2)
    inner = x.shapes[0][0 if trans_a else 1]
    if inner != x.shapes[1][0 if trans_a else 1]:
        raise Unfit("no weight for a symbolic dim")
    n = d.integer(1, 5)
    w = d.weight(x.dtype, (n, inner) if trans_b else (inner, n))
    out = both(lambda s: (s[1 if trans_a else 0], n), x)
    bias = d.weight(x.dtype, d.pick(((n,), (1, n), (), (1,)))) if d.chance(0.6) else None
    if bias is not None and d.chance(0.2):
        bias = d.constant(np.zeros(bias.shape, numpy_type(x.dtype)))
    scales = {"alpha": float(d.pick((1, 0.5, 2, 0))), "beta": float(d.pick((1, 0.5, 0)))} if d.chance(0.4) else {}
    shown = {"transA": trans_a or None, "transB": trans_b or None}
    d.node(op, [x, w, bias], [(x.dtype, out)], **shown, **scales)


@emits("Einsum")
def einsum(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2, 3), where=lambda v: not v.is_empty)
    letters = "abc"[: x.rank]
    inner = x.shapes[0][-1]
    if d.chance(0.3) or inner != x.shapes[1][-1]:
        out_letters = letters[::-1] if d.chance(0.5) else letters[:-1]
        out = both(lambda s: tuple(s[letters.index(c)] for c in out_letters), x)
        d.node(op, [x], [(x.dtype, out)], equation=f"{letters}->{out_letters}")
        return
    w = d.weight(x.dtype, (inner, d.integer(1, 4)))
    out = both(lambda s: (*s[:-1], w.shape[1]), x)
    d.node(op, [x, w], [(x.dtype, out)], equation=f"{letters}, {letters[-1]}z -> {letters[:-1]}z")


@emits("Det")
def det(d: Draw, op: str) -> None:
    x = d.operand(
        op, ranks=(2, 3), where=lambda v: v.shapes[0][-1] == v.shapes[0][-2] > 0 and v.is_static, make=_SQUARE
    )
    d.node(op, [x], [(x.dtype, both(lambda s: s[:-2], x))])


_SQUARE = ((3, 3), (3, 3))


# -- convolutions ----------------------------------------------------------------------------------------------------


class Window:
    """Kernel, strides, dilations and padding along the spatial dims of an operand, drawn so that something is left."""

    def __init__(self, d: Draw, x: Value, *, dilated: bool = True, auto: bool = True) -> None:
        n = x.rank - 2
        self.kernel = tuple(d.integer(1, min(s[i] for s in x.shapes for i in (2 + axis,)) + 1) for axis in range(n))
        self.kernel = tuple(min(k, 3) for k in self.kernel)
        self.strides = tuple(int(d.pick((1, 1, 2))) for _ in range(n)) if d.chance(0.5) else (1,) * n
        self.dilations = (1,) * n
        if dilated and d.chance(0.25):
            self.dilations = tuple(int(d.pick((1, 2))) for _ in range(n))
        self.auto_pad = d.pick(("SAME_UPPER", "SAME_LOWER", "VALID")) if auto and d.chance(0.2) else ""
        if self.auto_pad.startswith("SAME"):
            self.dilations = (1,) * n
        self.pads = (0,) * 2 * n
        if not self.auto_pad and d.chance(0.5):
            self.pads = tuple(d.integer(0, self.kernel[i % n]) for i in range(2 * n))

    def out(self, shape: Shape, *, ceil: bool = False) -> Shape:
        """The spatial dims of the result. Raises ValueError when nothing is left."""
        n, dims = len(self.kernel), []
        for i, size in enumerate(shape[2:]):
            if self.auto_pad.startswith("SAME"):
                dims.append(-(-size // self.strides[i]))
                continue
            room = size + self.pads[i] + self.pads[n + i] - self.dilations[i] * (self.kernel[i] - 1) - 1
            if room < 0:
                raise ValueError("the kernel is larger than its operand")
            count = -(-room // self.strides[i]) if ceil else room // self.strides[i]
            # A window that would start in the padding behind the data is dropped.
            if ceil and count * self.strides[i] >= size + self.pads[i]:
                count -= 1
            dims.append(count + 1)
        return tuple(dims)

    def attributes(self, d: Draw) -> dict[str, object]:
        n = len(self.kernel)
        found: dict[str, object] = {"auto_pad": self.auto_pad or None}
        if any(self.pads):
            found["pads"] = self.pads
        if self.strides != (1,) * n or d.chance(0.3):
            found["strides"] = self.strides
        if self.dilations != (1,) * n:
            found["dilations"] = self.dilations
        return found


def image(d: Draw, op: str, *, ranks: tuple[int, ...] = (3, 4, 4), among: tuple[int, ...] | None = None) -> Value:
    """An operand [N, C, spatial ...] with known channels."""

    def fits(v: Value) -> bool:
        return not v.is_empty and v.shapes[0][1] == v.shapes[1][1]

    n, c, size = d.integer(1, 3), int(d.pick((1, 2, 3, 4))), d.integer(3, 7)
    shape = (n, c, *(size + i for i in range(d.pick(ranks) - 2)))
    other = (*shape[:-1], shape[-1] + 1) if d.chance(0.3) else shape
    make = (shape, ((n + 1) if d.chance(0.3) else n, *other[1:]))
    more = {} if among is None else {"among": among}
    return d.operand(op, ranks=tuple(set(ranks)), where=fits, make=make, **more)


@emits("Conv")
def conv(d: Draw, op: str) -> None:
    x = image(d, op)
    if d.chance(0.2):
        pads = [0] * 4 + [int(d.pick((0, 1))) for _ in range(2 * x.rank - 4)]
        pads = [*pads[:2], *pads[4 : 2 + x.rank], *pads[2:4], *pads[2 + x.rank :]]
        out = both(lambda s: tuple(n + pads[i] + pads[x.rank + i] for i, n in enumerate(s)), x)
        x = d.node("Pad", [x, d.ints(pads)], [(x.dtype, out)])[0]
    window = Window(d, x)
    group = int(d.pick([g for g in (1, x.shape[1], 2) if x.shape[1] % g == 0])) if d.chance(0.4) else 1
    c_out = group * d.integer(1, 4)
    w = d.weight(x.dtype, (c_out, x.shape[1] // group, *window.kernel))
    bias = d.weight(x.dtype, (c_out,)) if d.chance(0.5) else None
    if d.chance(0.1):
        bias = d.constant(np.zeros(c_out, numpy_type(x.dtype)))
    out = both(lambda s: (s[0], c_out, *window.out(s)), x)
    shown = {"group": group if group > 1 else None, "kernel_shape": window.kernel if d.chance(0.5) else None}
    y = d.node(op, [x, w, bias], [(x.dtype, out)], **shown, **window.attributes(d))[0]
    if d.chance(0.4):
        affine(d, y)


def affine(d: Draw, y: Value) -> None:
    """What often follows a convolution: a factor or an offset per channel, or a normalization."""
    c = y.shape[1]
    if d.chance(0.4):
        operands = [d.weight(y.dtype, (c,), positive=i in (0, 3)) for i in range(4)]
        d.same("BatchNormalization", [y, *operands])
        return
    shape = d.pick(
        ((c, *[1] * (y.rank - 2)), (1, c, *[1] * (y.rank - 2)), (), (1,), (c,) if y.shapes[0][-1] == c else ())
    )
    k = d.weight(y.dtype, shape, positive=True)
    d.node(d.pick(("Mul", "Add", "Sub", "Div")), [y, k], [(y.dtype, both(np.broadcast_shapes, y, k))])


@emits("ConvTranspose")
def conv_transpose(d: Draw, op: str) -> None:
    x = image(d, op)
    n = x.rank - 2
    kernel = tuple(d.integer(1, 4) for _ in range(n))
    strides = tuple(int(d.pick((1, 1, 2))) for _ in range(n))
    group = x.shape[1] if d.chance(0.25) else 1
    c_out = group * d.integer(1, 3)
    pads = tuple(d.integer(0, 2) if d.chance(0.3) else 0 for _ in range(2 * n))

    def rule(s: Shape) -> Shape:
        dims = [strides[i] * (s[2 + i] - 1) + kernel[i] - pads[i] - pads[n + i] for i in range(n)]
        if min(dims) < 1:
            raise ValueError("nothing is left")
        return (s[0], c_out, *dims)

    w = d.weight(x.dtype, (x.shape[1], c_out // group, *kernel))
    bias = d.weight(x.dtype, (c_out,)) if d.chance(0.5) else None
    shown = {"group": group, "strides": strides, "pads": pads if any(pads) else None}
    y = d.node(op, [x, w, bias], [(x.dtype, both(rule, x))], **shown)[0]
    if d.chance(0.4):
        affine(d, y)


@emits("ConvInteger")
def conv_integer(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,))
    window = Window(d, x, dilated=False)
    w = d.weight(UINT8, (2, x.shape[1], *window.kernel))
    zero = d.constant(np.array(d.pick((0, 1)), numpy_type(x.dtype))) if d.chance(0.5) else None
    out = both(lambda s: (s[0], 2, *window.out(s)), x)
    d.node(op, [x, w, zero], [(INT32, out)], **window.attributes(d))


@emits("QLinearConv")
def q_linear_conv(d: Draw, op: str) -> None:
    x = image(d, op, ranks=(4,))
    window = Window(d, x, dilated=False)
    c_out = d.integer(1, 3)
    w = d.weight(INT8 if x.dtype == INT8 else UINT8, (c_out, x.shape[1], *window.kernel))
    scale = d.constant(np.array(0.25, np.float32))
    zeros = [d.constant(np.array(d.pick((0, 1)), numpy_type(t))) for t in (x.dtype, w.dtype, x.dtype)]
    bias = d.constant(d.numbers(INT32, (c_out,)) * d.integer(0, 2)) if d.chance(0.5) else None
    out = both(lambda s: (s[0], c_out, *window.out(s)), x)
    operands = [x, scale, zeros[0], w, scale, zeros[1], scale, zeros[2], bias]
    d.node(op, operands, [(x.dtype, out)], **window.attributes(d))


def _integer_right(d: Draw, x: Value) -> Value:
    if x.shapes[0][-1] != x.shapes[1][-1]:
        raise Unfit("no weight for a symbolic dim")
    return d.weight(UINT8 if x.dtype == UINT8 or d.chance(0.5) else INT8, (x.shape[-1], d.integer(1, 4)))


@emits("MatMulInteger")
def matmul_integer(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2, 3), where=lambda v: not v.is_empty)
    w = _integer_right(d, x)
    zero = d.constant(np.array(d.pick((0, 1, 3)), numpy_type(x.dtype))) if d.chance(0.6) else None
    d.node(op, [x, w, zero], [(INT32, both(matmul_rule, x, w))])


@emits("QLinearMatMul")
def q_linear_matmul(d: Draw, op: str) -> None:
    x = d.operand(op, ranks=(2, 3), where=lambda v: not v.is_empty)
    if x.shapes[0][-1] != x.shapes[1][-1]:
        raise Unfit("no weight for a symbolic dim")
    w = d.weight(x.dtype, (x.shape[-1], d.integer(1, 4)))
    scale = d.constant(np.array(0.5, np.float32))
    zero = d.constant(np.array(d.pick((0, 1)), numpy_type(x.dtype)))
    d.node(op, [x, scale, zero, w, scale, zero, scale, zero], [(x.dtype, both(matmul_rule, x, w))])
