"""Simplification on random graphs: the same bits before and after, on every opset form, with symbolic dims.

Each graph is a random chain of data movement, identities and clamps, drawn so that neighbours often cancel or merge.
The reference executor runs both sides on ordinary and special numbers (NaN, infinities, zeros of both signs), also
with other sizes of the symbolic dims than those the graph was drawn for, wherever the original takes them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper
import onnx.shape_inference
import pytest
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import same_bits
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._registry import builtin_modules, pass_class
from opgraft.passes._worklist import NodePass, run_group

sys.path.insert(0, str(Path(__file__).parent))
from golden import load, run_session

OPSETS = (9, 11, 13, 18, 21)
N_GRAPHS = 120
FAR = 2**63 - 1
FLOAT, HALF, DOUBLE, INT8, INT32, INT64, BOOL = 1, 10, 11, 3, 6, 7, 9
# Rounds otherwise; its golden and the peers' own cases check it within float32's error.
ROUNDS = ("fuse-div-mul", "eliminate-zero-bias")


class Draw:
    """A random graph under construction; `shape` of a value is what it has under the first binding."""

    def __init__(self, seed: int, opset: int) -> None:
        self.rng = np.random.default_rng([seed, opset])
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.counter = 0

    def pick(self, *options: object) -> object:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def integer(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high))

    def constant(self, array: np.ndarray) -> str:
        self.counter += 1
        name = f"c{self.counter}"
        self.constants.append(onnx.numpy_helper.from_array(array, name))
        return name

    def ints(self, values: object) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def node(
        self, op_type: str, inputs: list[str], shape: tuple[int, ...], n_outputs: int = 1, **attributes: object
    ) -> str:
        self.counter += 1
        outputs = [f"v{self.counter}" if i == 0 else f"v{self.counter}_{i}" for i in range(n_outputs)]
        self.nodes.append(oh.make_node(op_type, inputs, outputs, **attributes))
        self.shapes[outputs[0]] = shape
        return outputs[0]


def transpose(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if d.chance(0.2) or not shape:
        return d.node("Transpose", [x], shape[::-1])
    perm = [int(i) for i in d.rng.permutation(len(shape))]
    if d.chance(0.4) and len(shape) > 1:
        perm = list(range(len(shape)))
        i = d.integer(0, len(shape) - 1)
        perm[i], perm[i + 1] = perm[i + 1], perm[i]
    return d.node("Transpose", [x], tuple(shape[i] for i in perm), perm=perm)


def reshape(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    target = list(shape)
    kind = d.integer(0, 4)
    if kind == 1 and len(target) > 1:
        i = d.integer(0, len(target) - 1)
        target[i : i + 2] = [target[i] * target[i + 1]]
    elif kind == 2 and target:
        i = d.integer(0, len(target))
        factor = next((f for f in (2, 3, 1) if target[i] % f == 0), 1)
        target[i : i + 1] = [target[i] // factor, factor]
    elif kind == 3:
        target.insert(d.integer(0, len(target) + 1), 1)
    spelled = list(target)
    for i, dim in enumerate(target):
        if i < len(shape) and shape[i] == dim and d.chance(0.4):
            spelled[i] = 0
    if spelled and 0 not in target and d.chance(0.5):
        spelled[d.integer(0, len(spelled))] = -1
    if 0 in target and any(s == 0 and (i >= len(shape) or shape[i] != 0) for i, s in enumerate(target)):
        return x
    return d.node("Reshape", [x, d.ints(spelled)], tuple(target))


def flatten(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    axis = d.integer(0, len(shape) + 1)
    rows = int(np.prod(shape[:axis], dtype=np.int64))
    return d.node("Flatten", [x], (rows, int(np.prod(shape[axis:], dtype=np.int64))), axis=axis)


def _axes(
    d: Draw, op_type: str, x: str, axes: list[int], shape: tuple[int, ...], since: int = 13, **more: object
) -> str:
    if d.opset >= since:
        return d.node(op_type, [x, d.ints(axes)], shape, **more)
    return d.node(op_type, [x], shape, axes=axes, **more)


def _negative(d: Draw, axes: list[int], rank: int) -> list[int]:
    # Before opset 11 axes count from the front.
    return [a - rank if d.opset >= 11 and d.chance(0.3) else a for a in axes]


def unsqueeze(d: Draw, x: str) -> str:
    rank = len(d.shapes[x]) + d.integer(1, 3)
    if rank > 6:
        return x
    axes = sorted(int(a) for a in d.rng.choice(rank, rank - len(d.shapes[x]), replace=False))
    shape = list(d.shapes[x])
    for a in axes:
        shape.insert(a, 1)
    return _axes(d, "Unsqueeze", x, _negative(d, axes, rank), tuple(shape))


def squeeze(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    ones = [i for i, s in enumerate(shape) if s == 1]
    if not ones:
        return x
    if d.chance(0.15):
        return d.node("Squeeze", [x], tuple(s for s in shape if s != 1))
    axes = [a for a in ones if d.chance(0.6)] or ones[:1]
    return _axes(
        d, "Squeeze", x, _negative(d, axes, len(shape)), tuple(s for i, s in enumerate(shape) if i not in axes)
    )


def slice_(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if not shape:
        return x
    axes = sorted(int(a) for a in d.rng.choice(len(shape), d.integer(1, min(len(shape), 2) + 1), replace=False))
    starts, ends, steps, out = [], [], [], list(shape)
    for a in axes:
        step = 1 if d.opset < 10 else int(d.pick(1, 1, 1, 2, -1, -2))
        start = int(d.pick(0, 0, 1, -shape[a], -1, shape[a]) if step > 0 else d.pick(-1, shape[a], 1))
        end = int(d.pick(FAR, shape[a], -1, shape[a] + 3, 2) if step > 0 else d.pick(-FAR, 0, -shape[a] - 1))
        starts, ends, steps = [*starts, start], [*ends, end], [*steps, step]
        out[a] = len(range(shape[a])[slice(start, end, step)])
    if d.opset < 10:
        return d.node("Slice", [x], tuple(out), axes=axes, starts=starts, ends=ends)
    operands = [d.ints(starts), d.ints(ends), d.ints(_negative(d, axes, len(shape)))]
    if any(s != 1 for s in steps) or d.chance(0.5):
        operands.append(d.ints(steps))
    return d.node("Slice", [x, *operands], tuple(out))


def slices(d: Draw, x: str) -> str:
    """All parts of an axis, put together again in another order."""
    shape = d.shapes[x]
    if not shape:
        return x
    axis = d.integer(0, len(shape))
    cut = d.integer(0, shape[axis] + 1)
    parts = []
    for start, end in ((0, cut), (cut, int(d.pick(FAR, shape[axis])))):
        size = len(range(shape[axis])[start:end])
        out = (*shape[:axis], size, *shape[axis + 1 :])
        if d.opset < 10:
            parts.append(d.node("Slice", [x], out, axes=[axis], starts=[start], ends=[end]))
        else:
            parts.append(d.node("Slice", [x, d.ints([start]), d.ints([end]), d.ints([axis])], out))
    return d.node("Concat", parts[::-1], shape, axis=axis)


def concat(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if not shape or d.opset < 11:
        return x
    axis = d.integer(0, len(shape))
    others = [
        v
        for v, s in d.shapes.items()
        if len(s) == len(shape) and s[:axis] + s[axis + 1 :] == shape[:axis] + shape[axis + 1 :]
    ]
    operands = [x] + [others[d.integer(0, len(others))] for _ in range(d.integer(0, 3))]
    if len({d.shapes[v] for v in operands}) == 0 or sum(d.shapes[v][axis] for v in operands) > 24:
        return x
    size = sum(d.shapes[v][axis] for v in operands)
    return d.node(
        "Concat", operands, (*shape[:axis], size, *shape[axis + 1 :]), axis=_negative(d, [axis], len(shape))[0]
    )


def pad(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    rank = len(shape)
    if not rank or 0 in shape:
        return x
    mode = str(d.pick("constant", "constant", "edge"))
    pads = [int(d.pick(0, 0, 1, 2)) for _ in range(2 * rank)]
    if d.chance(0.2):
        pads = [0] * 2 * rank
    out = tuple(s + pads[i] + pads[rank + i] for i, s in enumerate(shape))
    if max(out) > 24:
        return x
    if d.opset < 11:
        return d.node("Pad", [x], out, pads=pads, mode=mode, value=float(d.pick(0.0, 1.0)))
    number = [d.constant(np.array(d.pick(0.0, -0.0, 1.0), dtype=np.float32))] if d.chance(0.5) else []
    return d.node("Pad", [x, d.ints(pads), *number], out, mode=mode)


def expand(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    target = [int(d.pick(s, 1)) if s != 1 else int(d.pick(1, 1, 3)) for s in shape]
    if d.chance(0.2):
        target.insert(0, int(d.pick(1, 2)))
    return d.node("Expand", [x, d.ints(target)], np.broadcast_shapes(shape, tuple(target)))


def expand_and_add(d: Draw, x: str) -> str:
    others = [v for v, s in d.shapes.items() if _broadcasts(s, d.shapes[x])]
    other = others[d.integer(0, len(others))]
    if d.chance(0.5):
        target = d.node("Shape", [x], (len(d.shapes[x]),))
        d.shapes.pop(target)
    else:
        target = d.ints(d.shapes[x])
    wide = d.node("Expand", [other, target], d.shapes[x])
    return d.node(str(d.pick("Add", "Mul", "Sub")), [wide, x] if d.chance(0.5) else [x, wide], d.shapes[x])


def _broadcasts(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) <= len(large) and all(a in (1, b) for a, b in zip(small[::-1], large[::-1], strict=False))


def gather(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if not shape:
        return x
    axis = d.integer(0, len(shape))
    order = np.arange(shape[axis]) if d.chance(0.6) else d.rng.permutation(shape[axis])
    return d.node("Gather", [x, d.ints(order)], shape, axis=axis)


def scatter(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    others = [v for v, s in d.shapes.items() if s == shape]
    if not shape or not shape[0] or d.opset < 11:
        return x
    rows = np.arange(shape[0]) if d.chance(0.7) else d.rng.permutation(shape[0])
    return d.node("ScatterND", [x, d.ints(rows[:, None]), others[d.integer(0, len(others))]], shape)


def clamp(d: Draw, x: str) -> str:
    if d.chance(0.3):
        return d.node("Relu", [x], d.shapes[x])
    low, high = (float(d.pick(-2, -1, -0.0, 0.0, 1)), float(d.pick(-0.0, 0.0, 1, 2, 6)))
    absent = d.integer(0, 3)
    if d.opset < 11:
        low, high = sorted((low, high))  # the runtime loads no other
        bounds = {k: v for i, (k, v) in enumerate((("min", low), ("max", high))) if i != absent}
        return d.node("Clip", [x], d.shapes[x], **bounds)
    given = [d.constant(np.array(v, dtype=np.float32)) if i != absent else "" for i, v in enumerate((low, high))]
    return d.node("Clip", [x, *given], d.shapes[x])


def extreme(d: Draw, x: str) -> str:
    bound = d.constant(np.array(d.pick(-1, -0.0, 0.0, 1, 3, np.inf), dtype=np.float32))
    return d.node(str(d.pick("Max", "Min")), [x, bound] if d.chance(0.5) else [bound, x], d.shapes[x])


def neutral(d: Draw, x: str) -> str:
    op_type, number = d.pick(("Mul", 1), ("Div", 1), ("Add", -0.0), ("Add", 0.0), ("Sub", 0.0), ("Pow", 1))  # type: ignore[misc]
    shape = d.pick((), (1,), d.shapes[x], (1, *d.shapes[x]))
    if len(shape) > 5:  # type: ignore[arg-type]
        shape = ()
    c = d.constant(np.full(shape, number, dtype=np.float32))  # type: ignore[arg-type]
    swap = op_type in ("Mul", "Add") and d.chance(0.5)
    return d.node(op_type, [c, x] if swap else [x, c], np.broadcast_shapes(shape, d.shapes[x]))  # type: ignore[arg-type]


def cast(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    for to in (int(d.pick(FLOAT, HALF, DOUBLE, BOOL)), int(d.pick(FLOAT, DOUBLE)), FLOAT):
        x = d.node("Cast", [x], shape, to=to)
        if to != FLOAT:
            d.shapes.pop(x)
    return x


def unary(d: Draw, x: str) -> str:
    op_type = str(d.pick("Neg", "Neg", "Abs", "Floor", "Ceil", "Identity", "Sign", "Dropout"))
    return d.node(op_type, [x], d.shapes[x])


def reduce(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if not shape or 0 in shape:
        return x
    axis, keepdims = d.integer(0, len(shape)), d.integer(0, 2)
    op_type = str(d.pick("ReduceSum", "ReduceMax", "ReduceMean"))
    out = tuple(s for i, s in enumerate(shape) if i != axis or keepdims)
    since = 13 if op_type == "ReduceSum" else 18
    out_name = _axes(
        d,
        op_type,
        x,
        _negative(d, [axis], len(shape)),
        (*shape[:axis], *[1] * keepdims, *shape[axis + 1 :]) if keepdims else out,
        since,
        keepdims=keepdims,
    )
    if keepdims:
        return _axes(d, "Squeeze", out_name, [axis], tuple(s for i, s in enumerate(shape) if i != axis))
    return _axes(d, "Unsqueeze", out_name, [axis], (*shape[:axis], 1, *shape[axis + 1 :]))


def variadic(d: Draw, x: str) -> str:
    return d.node(str(d.pick("Sum", "Max", "Min", "Mean")), [x], d.shapes[x])


def tile(d: Draw, x: str) -> str:
    return d.node("Tile", [x, d.ints([1] * len(d.shapes[x]))], d.shapes[x]) if d.shapes[x] else x


def split(d: Draw, x: str) -> str:
    shape = d.shapes[x]
    if not shape or not shape[-1]:
        return x
    if d.opset >= 13:
        return d.node("Split", [x, d.ints([shape[-1]])], shape, axis=len(shape) - 1)
    return d.node("Split", [x], shape, axis=len(shape) - 1, split=[shape[-1]])


def select(d: Draw, x: str) -> str:
    if d.opset < 11:
        return x
    others = [v for v, s in d.shapes.items() if s == d.shapes[x]]
    other = others[d.integer(0, len(others))]
    condition = d.node("Cast", [other], d.shapes[x], to=BOOL)
    d.shapes.pop(condition)
    negated = d.node("Not", [condition], d.shapes[x])
    d.shapes.pop(negated)
    return d.node("Where", [negated, x, other], d.shapes[x])


MOVES: tuple[Callable[[Draw, str], str], ...] = (
    *(transpose, transpose, reshape, reshape, flatten, unsqueeze, unsqueeze, squeeze, squeeze, slice_, slice_, slices),
    *(concat, concat, pad, expand, expand_and_add, gather, scatter, clamp, clamp, extreme, neutral, neutral, cast),
    *(unary, unary, reduce, variadic, tile, split, select),
)


def draw_model(seed: int, opset: int) -> tuple[onnx.ModelProto, list[dict[str, tuple[int, ...]]]]:
    """A random model and the input shapes to run it on; the first is the one it was drawn for."""
    d = Draw(seed, opset)
    names = ("N", "M", "K")
    sizes = {n: int(d.pick(1, 2, 3, 4)) for n in names}
    symbolic = d.chance(0.6)
    inputs, declared = [], {}
    for name in ("x", "z"):
        dims = [d.pick(*names, 1, 2, 4) for _ in range(d.integer(0, 4))]
        declared[name] = dims
        d.shapes[name] = tuple(sizes[i] if isinstance(i, str) else i for i in dims)  # type: ignore[misc]
        shown = dims if symbolic else d.shapes[name]
        inputs.append(oh.make_tensor_value_info(name, FLOAT, shown))
    last = "x"
    move = MOVES[d.integer(0, len(MOVES))]
    for _ in range(d.integer(3, 11)):
        if not d.chance(0.35):
            move = MOVES[d.integer(0, len(MOVES))]
        if int(np.prod(d.shapes[last])) > 4000 or len(d.shapes[last]) > 5:
            break
        last = move(d, last)
        if d.chance(0.25):
            last = list(d.shapes)[d.integer(0, len(d.shapes))]
    produced = [o for n in d.nodes for o in n.output[:1] if o in d.shapes]
    if not produced:
        return draw_model(seed + 100_000, opset)
    shown = {produced[-1], *(p for p in produced if d.chance(0.15))}
    outputs = [oh.make_tensor_value_info(o, FLOAT, None) for o in sorted(shown)]
    graph = oh.make_graph(d.nodes, "random", inputs, outputs, d.constants)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=8)
    bindings = [sizes]
    if symbolic:
        bindings += [
            dict.fromkeys(names, 1),
            dict.fromkeys(names, 0),
            {"N": 2, "M": 5, "K": 0},
            {"N": 1, "M": 4, "K": 3},
        ]
    if any(n.op_type.startswith("Reduce") for n in d.nodes):  # the runtime aborts on some empty reductions
        bindings = [b for b in bindings if 0 not in b.values()]
    shapes = [
        {k: tuple(b[i] if isinstance(i, str) else i for i in dims) for k, dims in declared.items()} for b in bindings
    ]
    return onnx.shape_inference.infer_shapes(model, data_prop=True), shapes


def draw_inputs(shapes: dict[str, tuple[int, ...]], seed: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1.5, -1.5, 1e-40, 70000.0], dtype=np.float32)
    return [
        {k: rng.standard_normal(s).astype(np.float32) * 3 for k, s in shapes.items()},
        {k: rng.choice(special, size=s) for k, s in shapes.items()},
    ]


def rules(*contracts: Contract) -> tuple[NodePass, ...]:
    classes = [pass_class(n) for n, m in builtin_modules().items() if m.startswith("opgraft.passes.simplify.")]
    return tuple(c() for c in classes if issubclass(c, NodePass) and c.contract in contracts and c().name not in ROUNDS)


FIRED: Counter[str] = Counter()


def simplified(model: onnx.ModelProto, passes: tuple[NodePass, ...]) -> bytes:
    program = capture_onnx(model.SerializeToString())
    context = PassContext(program)
    run_group(passes, program, context)
    FIRED.update(r.pass_name for r in context.rewrites)
    return model_bytes(program)


def unsigned_zeros(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: np.where(v == 0, np.zeros_like(v), v) for k, v in outputs.items()}


def check(model: onnx.ModelProto, shapes: list[dict[str, tuple[int, ...]]], seed: int, exact: bool) -> int:
    """The number of runs that both sides did with equal results."""
    passes = rules(Contract.EXACT) if exact else rules(Contract.EXACT, Contract.NUMERIC)
    original = load(model.SerializeToString())
    candidate = load(simplified(model, passes))
    n_runs = 0
    for bound in shapes:
        for inputs in draw_inputs(bound, seed):
            try:
                expected = run_session(original, inputs)
            except Exception:  # noqa: BLE001 - constants of the graph may not fit this binding
                continue
            actual = run_session(candidate, inputs)
            n_runs += 1
            if not exact:
                expected, actual = unsigned_zeros(expected), unsigned_zeros(actual)
            wrong = same_bits(expected, actual)
            assert not wrong, f"{wrong[0]} at {bound}\n{onnx.printer.to_text(model)}"
    return n_runs


@pytest.mark.parametrize("opset", OPSETS)
def test_exact_passes_keep_every_bit(opset: int) -> None:
    n_runs = 0
    for seed in range(N_GRAPHS):
        model, shapes = draw_model(seed, opset)
        n_runs += check(model, shapes, seed, exact=True)
    assert n_runs > N_GRAPHS


@pytest.mark.parametrize("opset", [11, 21])
def test_numeric_passes_keep_every_bit_but_the_sign_of_zero(opset: int) -> None:
    for seed in range(500, 500 + N_GRAPHS):
        # Where a zero's sign decides (1 / x) a changed sign would be another number: no such operator is drawn.
        model, shapes = draw_model(seed, opset)
        check(model, shapes, seed, exact=False)


TYPES = (FLOAT, HALF, DOUBLE, 16, INT8, 5, INT32, INT64, 2, 4, 12, 13, BOOL)


@pytest.mark.parametrize("source", TYPES)
def test_every_chain_of_two_casts(source: int) -> None:
    """All types between and after; special numbers, and integers at the ends of every range."""
    pairs = [(middle, target) for middle in TYPES for target in TYPES]
    nodes, outputs = [], []
    for i, (middle, target) in enumerate(pairs):
        nodes.append(oh.make_node("Cast", ["x"], [f"m{i}"], to=middle))
        nodes.append(oh.make_node("Cast", [f"m{i}"], [f"t{i}"], to=target))
        # The runtime returns no bfloat16 to numpy.
        last = f"t{i}"
        if target == 16:
            nodes.append(oh.make_node("Cast", [last], [last := f"b{i}"], to=FLOAT))
        outputs.append(oh.make_tensor_value_info(last, FLOAT if target == 16 else target, [None]))
    first = [oh.make_node("Cast", ["w"], ["x"], to=16)] if source == 16 else []
    given = oh.make_tensor_value_info("w" if first else "x", FLOAT if first else source, [None])
    info = [oh.make_tensor_value_info("x", source, [None])] if first else []
    graph = oh.make_graph([*first, *nodes], "casts", [given], outputs, value_info=info)
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 21)], ir_version=10)
    before = FIRED["compose-casts"]
    candidate = simplified(model, (pass_class("compose-casts")(),))  # type: ignore[arg-type]
    assert FIRED["compose-casts"] > before
    inputs = {given.name: _numbers_of(FLOAT if first else source)}
    expected = run_session(load(model.SerializeToString()), inputs)
    actual = run_session(load(candidate), inputs)
    wrong = [(pairs[int(d.output[1:])], str(d)) for d in same_bits(expected, actual)]
    assert not wrong, wrong


def _numbers_of(dtype: int) -> np.ndarray:
    kind = oh.tensor_dtype_to_np_dtype(dtype)
    if kind == np.bool_:
        return np.array([True, False])
    if kind.kind in "iu":
        ends = [np.iinfo(t).min for t in "bhiq"] + [np.iinfo(t).max for t in "bhiqBHIQ"]
        near = [e + d for e in ends for d in (-1, 0, 1)] + [0, 1, -1, 2**24 + 1, 2**53 + 1, 2049, 257, 65519, 65520]
        low, high = int(np.iinfo(kind).min), int(np.iinfo(kind).max)
        return np.array([n for n in near if low <= n <= high], dtype=kind)
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, 0.1, -0.1, 1e-40, -1e-310, 6e-8, 65504, 65520, 3.3e38, 1e300, 2049.0]
    with np.errstate(over="ignore"):
        return np.concatenate([np.array(special), rng.standard_normal(200) * 10.0 ** rng.integers(-9, 9, 200)]).astype(
            kind
        )
