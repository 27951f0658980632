"""FX rules of control flow, sequences, optionals and random numbers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from opgraft.ir.fx import ops_control as ops
from opgraft.ir.fx.call import Call, Output, Outputs, Rule
from opgraft.ir.fx.values import DataType, FxValue, Scalar, object_elements
from torch import fx

aten = torch.ops.aten
# Beyond this many copies of a body a loop stays a loop.
_MAX_UNROLLED = 256


def if_(call: Call) -> Outputs:
    then, otherwise = (call.attributes[name].as_graph() for name in ("then_branch", "else_branch"))
    condition = _truth(call, call.value(0))
    if isinstance(condition, bool):
        return list(call.scope.inline(then if condition else otherwise, []))
    bodies = call.scope.bodies([(then, []), (otherwise, [])])
    made = call.emit(ops.branch, condition, *bodies.modules, bodies.operands)
    return [
        _joined(call, call.emit(operator.getitem, made, i), [r[i] for r in bodies.results])
        for i in range(len(then.outputs))
    ]


def _joined(call: Call, node: fx.Node, ends: Sequence[FxValue]) -> FxValue:
    """What both sides of a branch say of its result."""
    made = call.result(node, ends[0].dtype)
    if all(e.sizes == ends[0].sizes for e in ends):
        made.sizes = ends[0].sizes
    return made


def _truth(call: Call, value: FxValue) -> Any:
    """A bool where it is the same in every run, a node of a Python bool for sizes, else the tensor."""
    elements = call.builder.elements(value)
    if elements is not None and elements.size == 1:
        found = elements.reshape(-1)[0]
        return bool(found) if isinstance(found, int) else found
    return call.builder.tensor(value)


# -- loops -------------------------------------------------------------------------------------------------------------


def loop(call: Call) -> Outputs:
    body = call.attributes["body"].as_graph()
    carried = [call.value(i) for i in range(2, len(call.inputs))]
    limit = call.scalar(0) if call.has(0) else None
    unrolled = _unrolled(call, body, limit, carried)
    return unrolled if unrolled is not None else _rolled(call, body, limit, carried)


def _unrolled(call: Call, body: onnx_ir.Graph, limit: Scalar | None, carried: list[FxValue]) -> list[Output] | None:
    """The body once per step, where the number of steps is known."""
    condition = _truth(call, call.value(1)) if call.has(1) else True
    if not isinstance(condition, bool) or (limit is not None and not isinstance(limit, int)):
        return None
    if limit is None or limit > _MAX_UNROLLED:
        if limit is None and not _may_stop(body):
            raise call.fail("the loop never ends")
        if limit is not None:
            return None
    if not _is_static(call, body, carried):
        return None
    collected: list[list[Any]] = [[] for _ in range(len(body.outputs) - 1 - len(carried))]
    step = 0
    while condition and (limit is None or step < limit):
        if step == _MAX_UNROLLED:
            raise call.fail(f"the loop has more than {_MAX_UNROLLED} steps")
        number = FxValue(call.builder, DataType.INT64, elements=object_elements([step], []), sizes=())
        truth = FxValue(call.builder, DataType.BOOL, elements=object_elements([True], []), sizes=())
        results = call.scope.inline(body, [number, truth, *carried])
        condition = _truth(call, results[0])
        if not isinstance(condition, bool):
            return None  # it depends on data after all
        carried = list(results[1 : 1 + len(carried)])
        for items, item in zip(collected, results[1 + len(carried) :], strict=True):
            items.append(call.builder.tensor(item))
        step += 1
    if not step and collected:
        return None
    return [*carried, *(call.emit(aten.stack.default, items) for items in collected)]


def _may_stop(body: onnx_ir.Graph) -> bool:
    return body.outputs[0] is not body.inputs[1]


def _is_static(call: Call, body: onnx_ir.Graph, carried: list[FxValue]) -> bool:
    """Whether the condition that the body computes can be followed: made of the step, numbers and sizes."""
    pending, seen = [body.outputs[0]], set()
    inner = set(body.inputs[:2])
    while pending:
        value = pending.pop()
        if value in seen or value in inner or value.is_initializer():
            continue
        seen.add(value)
        if value in body.inputs:
            given = carried[list(body.inputs).index(value) - 2]
            if call.builder.elements(given) is None:
                return False
            continue
        node = value.producer()
        if node is None or node.graph is not body:
            found = call.scope.find(value)
            if found is None or call.builder.elements(found) is None:
                return False
            continue
        pending += [v for v in node.inputs if v is not None]
    return True


def _rolled(call: Call, body: onnx_ir.Graph, limit: Scalar | None, carried: list[FxValue]) -> list[Output]:
    inputs = [("step", DataType.INT64), ("condition", DataType.BOOL)]
    typed: list[tuple[str, DataType | None, Any]] = [(name, dtype, ()) for name, dtype in inputs]
    # A carried value may change its shape on the way.
    typed += [(v.name or "", c.dtype, None) for v, c in zip(body.inputs[2:], carried, strict=True)]
    bodies = call.scope.bodies([(body, typed)])
    condition = _truth(call, call.value(1)) if call.has(1) else None
    tensors = [call.builder.tensor(v) for v in carried]
    blanks = [_no_steps(call, item) for item in bodies.results[0][1 + len(carried) :]]
    made = call.emit(ops.loop, limit, condition, bodies.modules[0], tensors, blanks, bodies.operands)
    types = [r.dtype for r in bodies.results[0][1:]]
    return [call.result(call.emit(operator.getitem, made, i), dtype) for i, dtype in enumerate(types)]


def _no_steps(call: Call, item: FxValue) -> tuple[list[int], torch.dtype]:
    """Shape and type of what a loop without a step collects: dims that only a step would tell are 0."""
    return [0, *(d if isinstance(d, int) else 0 for d in item.sizes or ())], call.torch_type(item.dtype)


def scan(call: Call) -> Outputs:
    if call.opset < 9:
        raise call.fail("Scan of opset 8 is not emitted", "upgrade the model's opset")
    body, n_inputs = call.attributes["body"].as_graph(), call.int_attribute("num_scan_inputs", 0)
    n_states = len(call.inputs) - n_inputs
    n_outputs = len(body.outputs) - n_states
    typed = [(v.name or "", call.dtype(i), None) for i, v in enumerate(body.inputs)]
    bodies = call.scope.bodies([(body, typed)])
    tensors = call.tensors()
    made = call.emit(
        ops.scan,
        *(bodies.modules[0], tensors[:n_states], tensors[n_states:]),
        *(
            call.ints_attribute("scan_input_axes") or [0] * n_inputs,
            call.ints_attribute("scan_input_directions") or [0] * n_inputs,
        ),
        *(
            call.ints_attribute("scan_output_axes") or [0] * n_outputs,
            call.ints_attribute("scan_output_directions") or [0] * n_outputs,
        ),
        bodies.operands,
    )
    types = [r.dtype for r in bodies.results[0]]
    return [call.result(call.emit(operator.getitem, made, i), dtype) for i, dtype in enumerate(types)]


# -- sequences and optionals -------------------------------------------------------------------------------------------


def sequence_construct(call: Call) -> Outputs:
    return call.emit(ops.make_list, *call.tensors())


def sequence_empty(call: Call) -> Outputs:
    return call.emit(ops.make_list)


def sequence_at(call: Call) -> Outputs:
    return call.result(call.emit(operator.getitem, call.tensor(0), call.scalar(1)), call.dtype(0))


def sequence_insert(call: Call) -> Outputs:
    return call.emit(ops.list_insert, call.tensor(0), call.tensor(1), call.scalar(2))


def sequence_erase(call: Call) -> Outputs:
    return call.emit(ops.list_erase, call.tensor(0), call.scalar(1))


def sequence_length(call: Call) -> Outputs:
    return call.result(call.emit(ops.list_length, call.tensor(0)), DataType.INT64)


def concat_from_sequence(call: Call) -> Outputs:
    return call.emit(
        ops.concatenate, call.tensor(0), call.int_attribute("axis", 0), bool(call.int_attribute("new_axis", 0))
    )


def split_to_sequence(call: Call) -> Outputs:
    sizes: Any = call.scalar(1) if call.known_rank(1) == 0 else call.scalars(1)
    return call.emit(ops.split_to_list, call.tensor(0), sizes, call.int_attribute("axis", 0), call.keeps_dims())


def sequence_map(call: Call) -> Outputs:
    """The body on the items of the first sequence and of every other one; tensors are the same in each step."""
    body = call.attributes["body"].as_graph()
    typed = [(v.name or "", v.dtype or call.dtype(i), None) for i, v in enumerate(body.inputs)]
    bodies = call.scope.bodies([(body, typed)])
    made = call.emit(ops.map_lists, bodies.modules[0], call.tensors(), len(body.outputs), bodies.operands)
    return [call.emit(operator.getitem, made, i) for i in range(len(body.outputs))]


def optional(call: Call) -> Outputs:
    if call.has(0):
        return call.value(0)
    raise call.fail("an empty optional has no torch form")


def optional_has_element(call: Call) -> Outputs:
    if not call.has(0):
        return np.array(False, dtype=object)
    return call.result(call.emit(ops.has_element, call.tensor(0)), DataType.BOOL)


# -- random numbers ----------------------------------------------------------------------------------------------------


def _random(draw: Callable[..., Any], low: str, high: str, *, like: bool) -> Rule:
    """`draw` gives numbers of mean 0 and deviation 1, or between 0 and 1."""

    def rule(call: Call) -> Outputs:
        dtype = call.type_attribute("dtype") or (call.dtype(0) if like else call.scope.widened(DataType.FLOAT))
        shape = [call.size(0, i) for i in range(call.rank())] if like else call.ints_attribute("shape")
        first, second = call.float_attribute(low, 0.0), call.float_attribute(high, 1.0)
        made = call.emit(draw, shape, dtype=call.torch_type(dtype))
        scaled = call.emit(aten.mul.Tensor, made, second - first if low == "low" else second)
        return call.result(call.emit(aten.add.Tensor, scaled, first), dtype)

    return rule


def bernoulli(call: Call) -> Outputs:
    dtype = call.type_attribute("dtype") or call.dtype(0)
    return call.result(
        call.emit(aten.to.dtype, call.emit(torch.bernoulli, call.tensor(0)), call.torch_type(dtype)), dtype
    )


CONTROL_RULES: dict[str, Rule] = {
    "Bernoulli": bernoulli,
    "ConcatFromSequence": concat_from_sequence,
    "If": if_,
    "Loop": loop,
    "Optional": optional,
    "OptionalGetElement": lambda call: call.value(0),
    "OptionalHasElement": optional_has_element,
    "RandomNormal": _random(torch.randn, "mean", "scale", like=False),
    "RandomNormalLike": _random(torch.randn, "mean", "scale", like=True),
    "RandomUniform": _random(torch.rand, "low", "high", like=False),
    "RandomUniformLike": _random(torch.rand, "low", "high", like=True),
    "Scan": scan,
    "SequenceAt": sequence_at,
    "SequenceConstruct": sequence_construct,
    "SequenceEmpty": sequence_empty,
    "SequenceErase": sequence_erase,
    "SequenceInsert": sequence_insert,
    "SequenceLength": sequence_length,
    "SequenceMap": sequence_map,
    "SplitToSequence": split_to_sequence,
}
