"""Bodies: If, Loop and Scan that read outer values, and calls of the model's own functions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, helper

from fuzz.draw import Draw
from fuzz.kernels import BOOL, FLOAT, FLOATS, INT64
from fuzz.registry import EMITTERS, emits
from fuzz.values import Unfit, Value, both

DOMAIN = "fuzz.functions"
_KEEP_SHAPE = ("Neg", "Abs", "Relu", "Sigmoid", "Identity", "Floor", "Add", "Mul", "Clip", "Where", "Max")
_MAX_DEPTH = 2


def random_steps(d: Draw, count: int) -> None:
    names = list(EMITTERS)
    for _ in range(count):
        op = d.pick(names)
        d.attempt(lambda scope, op=op: EMITTERS[op](scope, op))


def _depth(d: Draw) -> int:
    return 0 if d.outer is None else 1 + _depth(d.outer)


def _body(d: Draw, own: Sequence[Value] = ()) -> Draw:
    if _depth(d) >= _MAX_DEPTH:
        raise Unfit("deep enough")
    child = Draw(d.shared, d)
    child.pool += own
    return child


def _chain(d: Draw, x: Value) -> Value:
    """Some operators that keep the shape; what they read besides comes from anywhere, outer values included."""
    for _ in range(d.integer(1, 4)):
        op = d.pick(_KEEP_SHAPE if x.dtype in FLOATS else ("Identity", "Add", "Mul"))
        if op in ("Add", "Mul", "Max"):
            y = d.partner(x)
            if both(np.broadcast_shapes, x, y) == x.shapes:
                x = d.node(op, [x, y], [(x.dtype, x.shapes)])[0]
        elif op == "Where":
            condition = d.same("IsNaN", [x], BOOL)
            x = d.same(op, [condition, d.like(x), x], x.dtype) if d.chance(0.5) else x
        else:
            x = d.same(op, [x])
    return d.same("Identity", [x]) if not any(x.name in n.output for n in d.nodes) else x


def _graph(d: Draw, name: str, inputs: Sequence[Value], outputs: Sequence[Value]) -> GraphProto:
    return helper.make_graph(
        d.nodes, d.name(name), [_info(v) for v in inputs], [_info(v, d.chance(0.5)) for v in outputs], d.initializers
    )


def _info(value: Value, with_shape: bool = True) -> onnx.ValueInfoProto:
    dims = [a if a == b else None for a, b in zip(*value.shapes, strict=True)] if with_shape else None
    return helper.make_tensor_value_info(value.name, value.dtype, dims)


@emits("If")
def if_(d: Draw, op: str) -> None:
    kind = d.integer(0, 4)
    if kind == 0:
        condition = d.constant(np.array(d.chance(0.5)))
    elif kind == 1:
        x = d.value(FLOATS[:2], where=lambda v: not v.is_empty)
        total = d.node("ReduceMax", [x], [(x.dtype, ((), ()))], keepdims=0)[0]
        condition = d.node("Greater", [total, d.weight(x.dtype, ())], [(BOOL, ((), ()))])[0]
    else:
        condition = d.input(BOOL, ((), ()))
    x = d.value((*FLOATS[:2], INT64))
    branches, results = [], []
    for name in ("then", "else"):
        child = _body(d)
        random_steps(child, d.integer(0, 3))
        results = [_chain(child, x)]
        branches.append(_graph(child, name, [], results))
    outs = [(x.dtype, x.shapes)]
    d.node(op, [condition], outs, then_branch=branches[0], else_branch=branches[1])


@emits("Loop")
def loop(d: Draw, op: str) -> None:
    x = d.value((*FLOATS[:2], INT64))
    n_rounds = d.integer(1, 4)
    own = [Value(d.name("i"), INT64, ((), ())), Value(d.name("go"), BOOL, ((), ())), Value(d.name("s"), *_type(x))]
    child = _body(d, own)
    random_steps(child, d.integer(0, 3))
    carried = _chain(child, own[2])
    goes_on = child.same("Identity", [own[1]])
    stacked = [_chain(child, carried)] if d.chance(0.5) else []
    body = _graph(child, "body", own, [goes_on, carried, *stacked])
    count = d.ints(n_rounds) if d.chance(0.8) else d.input(INT64, ((), ()), domain=(n_rounds, n_rounds + 1))
    outs = [(x.dtype, x.shapes), *((v.dtype, both(lambda s: (n_rounds, *s), v)) for v in stacked)]
    d.node(op, [count, d.constant(np.array(True)), x], outs, body=body)


def _type(x: Value) -> tuple[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    return x.dtype, x.shapes


@emits("Scan")
def scan(d: Draw, op: str) -> None:
    x = d.value((FLOAT, INT64), ranks=(1, 2, 3), where=lambda v: not v.is_empty)
    row = Value(d.name("row"), x.dtype, both(lambda s: s[1:], x))
    state = Value(d.name("state"), x.dtype, row.shapes) if row.is_static else None
    own = [*([state] if state else []), row]
    child = _body(d, own)
    random_steps(child, d.integer(0, 2))
    results = [_chain(child, v) for v in own]
    body = _graph(child, "scan", own, results)
    outs = [*([(x.dtype, row.shapes)] if state else []), (x.dtype, x.shapes)]
    first = [d.weight(x.dtype, row.shape)] if state else []
    reverse = {"scan_output_directions": [1]} if d.chance(0.2) else {}
    d.node(op, [*first, x], outs, body=body, num_scan_inputs=1, **reverse)


# -- functions -------------------------------------------------------------------------------------------------------


@emits("call")
def call(d: Draw, op: str) -> None:
    """A new function of the model, called once or twice; numbers among its attributes may be parameters."""
    if _depth(d) >= _MAX_DEPTH:
        raise Unfit("deep enough")
    given = [d.value((FLOAT, FLOAT, INT64)) for _ in range(d.integer(1, 3))]
    scope = Draw(d.shared, d, is_function=True)
    inputs = [Value(d.name("a"), v.dtype, v.shapes) for v in given]
    scope.pool += inputs
    random_steps(scope, d.integer(2, 5))
    results = [v for v in scope.pool if any(v.name in n.output for n in scope.nodes) and not v.is_sequence][-2:]
    if not results or any(len(set(n.output)) != len(n.output) for n in scope.nodes):
        raise Unfit("an empty body")
    parameters = _parametrize(d, scope)
    name = d.name("Function")
    imports = [helper.make_opsetid("", d.opset)]
    if any(n.domain == DOMAIN for n in scope.nodes):
        imports.append(helper.make_opsetid(DOMAIN, 1))
    function = helper.make_function(
        DOMAIN, name, [v.name for v in inputs], [v.name for v in results], scope.nodes, imports, list(parameters)
    )
    d.shared.functions.append(function)
    d.shared.imports[DOMAIN] = 1
    outs = [_type(v) for v in results]
    d.node(name, given, outs, domain=DOMAIN, **parameters)
    if d.chance(0.2):
        d.node(name, given, outs, domain=DOMAIN, **parameters)


def _parametrize(d: Draw, scope: Draw) -> dict[str, object]:
    found: dict[str, object] = {}
    kinds = (AttributeProto.INT, AttributeProto.FLOAT, AttributeProto.INTS)
    for number, node in enumerate(scope.nodes):
        for attribute in node.attribute if node.op_type != "Constant" else ():
            if attribute.type in kinds and not attribute.ref_attr_name and d.chance(0.3):
                name = f"p{number}_{attribute.name}"
                found[name] = helper.get_attribute_value(attribute)
                attribute.CopyFrom(AttributeProto(name=attribute.name, type=attribute.type, ref_attr_name=name))
    return found
