"""Random models: operators from the whole table, and patterns that the passes look for, from one seed.

graph = generate(7, runner)                       anything
graph = generate(7, runner, focus="fuse-clips")   around the goldens of one pass
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
from backend_forms import is_random, nodes_of
from golden_mutations import declare_shapes
from onnx import ModelProto, helper
from opgraft.passes._registry import pass_class
from opgraft.passes.opset.schemas import NEWEST_OPSET

# Each registers its emitters.
import fuzz.control
import fuzz.elementwise
import fuzz.indexing
import fuzz.linear
import fuzz.models
import fuzz.spatial
import fuzz.views
from fuzz.draw import Draw
from fuzz.kernels import BFLOAT16, BOOL, FLOAT, FLOATS, INTEGERS, STRING, numpy_type
from fuzz.registry import EMITTERS
from fuzz.session import Feed, InProcess
from fuzz.splice import golden_opset, library, plant
from fuzz.values import Input, Shared, Value

OLDEST_OPSET = 11
# Where most goldens are written; the others follow evenly.
_MAIN_OPSET = 21
_IR_VERSION = 10
# What later versions of the standard wrote anew, or the runtime runs by other kernels, or none, at some.
_REVISED = (
    *("AveragePool", "BatchNormalization", "BlackmanWindow", "CastLike", "Celu", "Clip", "CumSum", "DFT", "Dropout"),
    *("Gelu", "GlobalLpPool", "GridSample", "GroupNormalization", "HammingWindow", "HardSwish", "LayerNormalization"),
    *("LogSoftmax", "LpPool", "Mish", "Pad", "RMSNormalization", "ReduceMax", "ReduceMean", "ReduceSum", "Resize"),
    *("RoiAlign", "ScatterElements", "Softmax", "Split", "Squeeze", "Swish", "TopK", "Unsqueeze"),
)
# Around goldens of older opsets: operators that have been as they are since opset 7.
_OLD_OPERATORS = tuple("Abs Neg Relu Floor Exp Add Mul Sub Identity Transpose Cast Softplus".split())  # noqa: SIM905


@dataclass
class Graph:
    """A model with what to feed, and what went into it."""

    seed: int
    focus: str
    model: ModelProto
    feeds: list[Feed]
    labels: list[str]
    planted: list[str]
    operators: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int] = field(default_factory=Counter)


def generate(seed: int, runner: InProcess, focus: str = "") -> Graph:
    """The model of this seed. `focus` is a pass around whose goldens it is built."""
    rng = np.random.default_rng([seed, *focus.encode()])
    opset = _draw_opset(rng, focus)
    d = Draw(Shared(rng, opset))
    passes = list(library())
    for _ in range(int(rng.integers(1, 3))):
        d.input(FLOAT if d.chance(0.7) else int(d.pick((*FLOATS, *INTEGERS[:4], BOOL))))
    n_steps = int(rng.integers(2, 8) if focus else rng.integers(4, 15))
    n_planted = int(rng.integers(2, 5) if focus else rng.integers(1, 4)) if focus or d.chance(0.75) else 0
    plan = [True] * n_planted + [False] * n_steps
    rng.shuffle(plan)
    for number, is_planted in enumerate(plan):
        name = focus if focus and (d.chance(0.8) or number == plan.index(True)) else str(d.pick(passes))
        if is_planted:
            mutated = d.chance(0.55)
            d.attempt(lambda s, n=name, m=mutated: plant(s, n, runner, mutated=m))
        else:
            _step(d, focus)
    looks_for_twins = focus == "eliminate-common-subexpressions"
    for _ in range(3 if looks_for_twins else 1):
        if d.chance(0.4 if looks_for_twins else 0.1):
            _repeat(d)
    if looks_for_twins and d.chance(0.2):
        d.attempt(fuzz.models.random_twins)
    return _finish(d, seed, focus)


def _draw_opset(rng: np.random.Generator, focus: str) -> int:
    if focus and rng.random() < 0.2:
        # Where the goldens are, and around the versions that changed operators before the oldest otherwise drawn.
        return int(rng.choice([9, 10, *(golden_opset(golden) for golden in library()[focus])]))
    if focus != "upgrade-opset" and rng.random() < (0.7 if focus else 0.45):
        return _MAIN_OPSET
    return int(rng.integers(OLDEST_OPSET, NEWEST_OPSET + 1))


def _looked_at(focus: str) -> tuple[str, ...]:
    if focus == "upgrade-opset":
        return _REVISED
    return tuple(op for op in getattr(pass_class(focus), "roots", ()) if op in EMITTERS) if focus else ()


def _step(d: Draw, focus: str) -> None:
    """One operator, each as likely as any other, or one that the pass looks at; a few tries until one fits."""
    looked_at = _looked_at(focus)
    for _ in range(6):
        usual = tuple(EMITTERS) if d.opset >= OLDEST_OPSET else _OLD_OPERATORS
        op = d.pick(looked_at if looked_at and d.opset >= OLDEST_OPSET and d.chance(0.5) else usual)
        if d.attempt(lambda scope, op=op: EMITTERS[op](scope, op)):
            return


def _repeat(d: Draw) -> None:
    """A node again, with the same operands: a common subexpression."""
    numbers = [i for i, n in enumerate(d.nodes) if n.output and all(n.output) and not _is_random(n)]
    if not numbers:
        return
    several = [i for i in numbers if len(d.nodes[i].output) > 1]
    node = d.nodes[d.pick(several if several and d.chance(0.3) else numbers)]
    known = {v.name: v for v in (*d.pool, *d.constants)}
    if any(o not in known or known[o].is_sequence for o in node.output):
        return
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = d.name("n") if node.name else ""
    for index, output in enumerate(node.output):
        twin.output[index] = d.name()
        d.pool.append(Value(twin.output[index], known[output].dtype, known[output].shapes))
    d.nodes.insert(d.nodes.index(node) + 1, twin)


def _is_random(node: onnx.NodeProto) -> bool:
    return is_random(node) or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)


# -- the model -------------------------------------------------------------------------------------------------------


def _finish(d: Draw, seed: int, focus: str) -> Graph:
    outputs = _outputs(d)
    used = {n for node in d.nodes for n in node.input} | {v.name for v in outputs}
    used |= _captured(d)
    inputs = [i for i in d.shared.inputs if i.value.name in used or i.is_default]
    _let_callers_override(d, inputs)
    graph = helper.make_graph(
        d.nodes, "fuzz", [_declared(i) for i in inputs], [_output_info(d, v) for v in outputs], d.initializers
    )
    imports = [helper.make_opsetid("", d.opset)]
    imports += [helper.make_opsetid(name, version) for name, version in d.shared.imports.items()]
    model = helper.make_model(graph, opset_imports=imports, functions=d.shared.functions, ir_version=_IR_VERSION)
    has_defaults = any(i.is_default for i in inputs)
    if d.chance(0.3) and not has_defaults:  # inference takes defaults as they are
        model = declare_shapes(model)
    labels, feeds = zip(*_feeds(d, inputs), strict=True)
    found = Graph(seed, focus, model, list(feeds), list(labels), d.shared.planted)
    for node in nodes_of(model):
        if node.domain in ("", "ai.onnx"):
            found.operators[node.op_type] += 1
    for value in (*d.pool, *d.constants):
        found.dtypes[onnx.TensorProto.DataType.Name(value.dtype)] += 1
        found.ranks[value.rank] += 1
    return found


def _captured(d: Draw) -> set[str]:
    """Names read inside bodies."""
    names: set[str] = set()
    pending = [a.g for n in d.nodes for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    while pending:
        graph = pending.pop()
        names |= {i for n in graph.node for i in n.input} | {v.name for v in graph.output}
        pending += [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return names


def _outputs(d: Draw) -> list[Value]:
    """Results that nobody reads, a few that somebody does, now and then an input; some results stay unused."""
    read = {n for node in d.nodes for n in node.input} | _captured(d)
    made = {o for node in d.nodes for o in node.output}
    candidates = [v for v in d.pool if v.name in made and not v.is_sequence]
    leaves = [v for v in candidates if v.name not in read]
    chosen = [v for v in leaves if d.chance(0.9)] + [v for v in candidates if v.name in read and d.chance(0.08)]
    if d.chance(0.05) and d.shared.inputs:
        value = d.pick(d.shared.inputs).value
        chosen += [value] if value.dtype != STRING else []
    if not chosen:
        chosen = (leaves or candidates)[-1:] or [d.same("Identity", [d.pool[0]])]
    by_name = {v.name: v for v in chosen}
    return [_readable(d, v) for v in by_name.values()]


def _readable(d: Draw, value: Value) -> Value:
    """The runtime's Python interface hands out bfloat16 only where there are no strings; else as float32."""
    has_strings = any(v.dtype == STRING for v in d.pool)
    if value.dtype != BFLOAT16 or not (has_strings or d.chance(0.5)):
        return value
    return d.same("Cast", [value], FLOAT, to=FLOAT)


def _let_callers_override(d: Draw, inputs: list[Input]) -> None:
    """An initializer becomes an input with a default, which is fed or not. Integers often are sizes: they stay."""
    numeric = [t for t in d.initializers if t.data_type == FLOAT and not any(i.value.name == t.name for i in inputs)]
    if not numeric or not d.chance(0.12):
        return
    tensor = d.pick(numeric)
    array = onnx.numpy_helper.to_array(tensor)
    other = (array * 2 + 1).astype(array.dtype) if d.chance(0.5) else None
    value = Value(tensor.name, tensor.data_type, (array.shape, array.shape))
    fixed = None if other is None else (other, other)
    inputs.append(Input(value, list(array.shape), fixed=fixed, is_default=True))


def _declared(given: Input) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(given.value.name, given.value.dtype, given.dims)


def _output_info(d: Draw, value: Value) -> onnx.ValueInfoProto:
    kind = d.integer(0, 3)
    dims = [a if a == b else None for a, b in zip(*value.shapes, strict=True)] if kind == 1 else None
    known = next((i for i in d.shared.inputs if i.value is value), None)
    return helper.make_tensor_value_info(value.name, value.dtype, known.dims if known is not None else dims)


# -- what is fed -----------------------------------------------------------------------------------------------------


def _feeds(d: Draw, inputs: list[Input]) -> list[tuple[str, Feed]]:
    """Named `style, binding`, as `ir.verify` reads them."""
    styles = (("random", 0), ("random", 1), ("not finite", 0), ("signed zeros", 1))
    found = []
    for style, binding in styles:
        feed: Feed = {}
        for given in inputs:
            array = _array(d, given, style, binding)
            if array is not None:
                feed[given.value.name] = array
        found.append((f"{style}, binding {binding}", feed))
    return found


def _array(d: Draw, given: Input, style: str, binding: int) -> Any:
    if given.fixed is not None:
        return given.fixed[binding]
    if given.is_default:
        return None
    shape, dtype = given.value.shapes[binding], given.value.dtype
    if given.domain is not None:
        return d.rng.integers(*given.domain, size=shape).astype(numpy_type(dtype))
    array = d.numbers(dtype, shape)
    if dtype in FLOATS and array.size and style != "random":
        flat = array.reshape(-1)
        special = (np.nan, np.inf, -np.inf, -0.0) if style == "not finite" else (0.0, -0.0)
        places = d.rng.permutation(flat.size)[: max(1, flat.size // 2 if style == "signed zeros" else len(special))]
        for number, place in enumerate(places):
            flat[place] = special[number % len(special)]
    return array
