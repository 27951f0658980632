"""Wrong rewrites on purpose, one per kind of mistake that optimizers have made. Verification must catch each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import constant_array, constant_ints, is_op
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass

MARK = "planted"


@dataclass(frozen=True)
class Planted(NodePass):
    """f(x) -> something else"""

    contract: ClassVar[Contract] = Contract.NUMERIC

    def wrong(self, node: onnx_ir.Node, op: Rewriter) -> onnx_ir.Value | None:
        raise NotImplementedError

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        if MARK in node.meta:
            return NoMatch("done already", node)
        value = self.wrong(node, op)
        if value is None:
            return NoMatch("not the planted site", node)
        for made in op.nodes:
            made.meta[MARK] = True
        return [value]


PLANTED: dict[str, type[Planted]] = {}

Wrong = Callable[[onnx_ir.Node, Rewriter], "onnx_ir.Value | None"]


def plant(*roots: str, contract: Contract = Contract.NUMERIC) -> Callable[[Wrong], Wrong]:
    """Make a pass of a function; its name is the function's."""

    def register(function: Wrong) -> Wrong:
        name = "".join(part.capitalize() for part in function.__name__.split("_"))
        body = {
            "__doc__": f"{roots[0]}(x) -> wrong",
            "wrong": lambda self, node, op: function(node, op),
            "roots": roots,
            "contract": contract,
        }
        PLANTED[function.__name__] = dataclass(frozen=True)(type(name, (Planted,), body))  # type: ignore[assignment]
        return function

    return register


def again(op: Rewriter, node: onnx_ir.Node, inputs: list[onnx_ir.Value | None], **changed: object) -> onnx_ir.Value:
    """The same node with other inputs or attributes."""
    attributes = {k: a.value for k, a in node.attributes.items()} | changed
    return op.op(node.op_type, inputs, domain=node.domain, n_outputs=len(node.outputs), **attributes)[0]


def after(op: Rewriter, node: onnx_ir.Node, value: onnx_ir.Value) -> onnx_ir.Value:
    value.type, value.shape = node.outputs[0].type, node.outputs[0].shape
    return value


def inputs_of(node: onnx_ir.Node) -> list[onnx_ir.Value | None]:
    return list(node.inputs)


def attribute(node: onnx_ir.Node, name: str) -> object:
    found = node.attributes.get(name)
    return None if found is None else found.value


def is_float(value: onnx_ir.Value | None) -> bool:
    return value is not None and value.dtype == onnx_ir.DataType.FLOAT


def producer(value: onnx_ir.Value | None) -> onnx_ir.Node | None:
    return value.producer() if value is not None else None


@plant("Softmax")
def softmax_over_the_wrong_axis(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, again(op, node, inputs_of(node), axis=-2))


@plant("Add")
def mask_dropped(node, op):  # type: ignore[no-untyped-def]
    uses = node.outputs[0].uses()
    if not any(is_op(use.node, "Softmax") for use in uses):
        return None
    return op.Identity(node.inputs[0])


@plant("Sub", "Div")
def operands_swapped(node, op):  # type: ignore[no-untyped-def]
    if not is_float(node.inputs[0]):
        return None
    return after(op, node, again(op, node, inputs_of(node)[::-1]))


@plant("Slice")
def slice_off_by_one(node, op):  # type: ignore[no-untyped-def]
    ends = constant_ints(node.inputs[2]) if len(node.inputs) > 2 else None
    starts = constant_ints(node.inputs[1])
    if ends is None or starts is None or not is_float(node.inputs[0]):
        return None
    if starts[0] == 0:
        moved = op.constant(np.array([1], np.int64))
        until = op.constant(np.array([ends[0] + 1], np.int64))
    else:
        moved = op.constant(np.array([starts[0] - 1], np.int64))
        until = op.constant(np.array([starts[0] * 2 - 1], np.int64))
    return after(op, node, op.op("Slice", [node.inputs[0], moved, until, *node.inputs[3:]])[0])


@plant("Add")
def bias_broadcast_along_the_wrong_axis(node, op):  # type: ignore[no-untyped-def]
    bias = constant_array(node.inputs[1]) if is_float(node.inputs[1]) else None
    if bias is None or bias.ndim != 1 or bias.size < 2:
        return None
    return after(op, node, op.Add(node.inputs[0], op.constant(np.full_like(bias, bias[0]))))


@plant("MatMul", "Conv", "Gemm")
def shared_initializer_edited(node, op):  # type: ignore[no-untyped-def]
    weight = node.inputs[1]
    if weight is None or weight.const_value is None or weight.is_graph_input():
        return None
    original = weight.const_value.numpy()
    scaled = op.constant((original * np.float32(0.5)).astype(original.dtype))
    half = again(op, node, [node.inputs[0], scaled, *node.inputs[2:]])
    return after(op, node, half)


@plant("MatMul")
def narrowed_to_half_precision(node, op):  # type: ignore[no-untyped-def]
    half = op.Cast(node.inputs[0], to=int(onnx_ir.DataType.FLOAT16))
    return after(op, node, op.MatMul(op.Cast(half, to=int(onnx_ir.DataType.FLOAT)), node.inputs[1]))


@plant("Softmax")
def attention_scaled_by_eleven_tenths(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, again(op, node, [op.Mul(node.inputs[0], op.constant(np.float32(1.1)))]))


@plant("And")
def padding_ignored(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, op.Or(node.inputs[0], op.Not(node.inputs[0])))


@plant("Softmax", "Sigmoid", "Gelu")
def every_row_takes_the_first_of_the_batch(node, op):  # type: ignore[no-untyped-def]
    first = op.Slice(node.inputs[0], op.constant(np.array([0])), op.constant(np.array([1])), op.constant(np.array([0])))
    expanded = op.Expand(first, op.Shape(node.inputs[0]))
    return after(op, node, again(op, node, [expanded]))


@plant("Shape")
def length_of_the_example_baked_in(node, op):  # type: ignore[no-untyped-def]
    # Right for the length that the first inputs have, wrong for every other.
    if attribute(node, "start") != 1:
        return None
    return after(op, node, op.constant(np.array([8], np.int64)))


@plant("Relu", "Sigmoid", "MaxPool", contract=Contract.EXACT)
def nan_becomes_zero(node, op):  # type: ignore[no-untyped-def]
    clean = op.Where(op.IsNaN(node.inputs[0]), op.constant(np.float32(0)), node.inputs[0])
    return after(op, node, again(op, node, [clean]))


@plant("Transpose", "Reshape", "Concat", contract=Contract.EXACT)
def negative_zero_becomes_zero(node, op):  # type: ignore[no-untyped-def]
    if not is_float(node.inputs[0]):
        return None
    return after(op, node, op.Add(again(op, node, inputs_of(node)), op.constant(np.float32(0))))


@plant("Gather")
def last_word_of_the_vocabulary_lost(node, op):  # type: ignore[no-untyped-def]
    table = node.inputs[0]
    if table is None or table.const_value is None or len(table.const_value.shape) != 2:
        return None
    last = op.constant(np.array(int(table.const_value.shape[0]) - 2, np.int64))
    return after(op, node, again(op, node, [table, op.Min(node.inputs[1], last)]))


@plant("Add")
def bias_dropped(node, op):  # type: ignore[no-untyped-def]
    bias = constant_array(node.inputs[1]) if is_float(node.inputs[1]) else None
    return None if bias is None or bias.ndim != 1 else op.Identity(node.inputs[0])


@plant("LayerNormalization")
def another_epsilon(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, again(op, node, inputs_of(node), epsilon=1e-3))


@plant("Sqrt")
def epsilon_dropped_under_the_root(node, op):  # type: ignore[no-untyped-def]
    inner = producer(node.inputs[0])
    if not is_op(inner, "Add"):
        return None
    return after(op, node, op.Sqrt(inner.inputs[0]))


@plant("Transpose")
def permutation_of_equal_sizes(node, op):  # type: ignore[no-untyped-def]
    perm = attribute(node, "perm")
    if perm != (0, 2, 1, 3) and perm != [0, 2, 1, 3]:
        return None
    swapped = op.Transpose(node.inputs[0], perm=[0, 2, 1, 3])
    reversed_heads = op.Slice(
        swapped,
        op.constant(np.array([-1])),
        op.constant(np.array([-(2**31)])),
        op.constant(np.array([1])),
        op.constant(np.array([-1])),
    )
    return after(op, node, reversed_heads)


@plant("Concat")
def concatenated_in_the_other_order(node, op):  # type: ignore[no-untyped-def]
    if len(node.inputs) != 2 or not is_float(node.inputs[0]):
        return None
    return after(op, node, again(op, node, inputs_of(node)[::-1]))


@plant("Relu")
def activation_dropped(node, op):  # type: ignore[no-untyped-def]
    return op.Identity(node.inputs[0])


@plant("Gelu")
def tanh_instead_of_erf(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, again(op, node, inputs_of(node), approximate="tanh"))


@plant("Conv")
def padding_shifted(node, op):  # type: ignore[no-untyped-def]
    pads = attribute(node, "pads")
    if not pads or not any(pads):
        return None
    return after(op, node, again(op, node, inputs_of(node), pads=[2, 0, 0, 2]))


@plant("ReduceMean", "ReduceSum")
def mean_of_one_element_less(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, op.Mul(again(op, node, inputs_of(node)), op.constant(np.float32(1.0625))))


@plant("LessOrEqual")
def causal_mask_off_by_one(node, op):  # type: ignore[no-untyped-def]
    return after(op, node, op.Less(node.inputs[0], node.inputs[1]))


@plant("Neg")
def rotation_without_its_sign(node, op):  # type: ignore[no-untyped-def]
    return op.Identity(node.inputs[0])


@plant("MatMul")
def weights_rounded_to_three_digits(node, op):  # type: ignore[no-untyped-def]
    weight = constant_array(node.inputs[1])
    if weight is None:
        return None
    return after(op, node, op.MatMul(node.inputs[0], op.constant(np.round(weight, 3))))


@plant("Range")
def positions_start_at_one(node, op):  # type: ignore[no-untyped-def]
    one = op.constant(np.array(1, np.int64))
    return after(op, node, op.Add(again(op, node, inputs_of(node)), one))


@plant("MaxPool")
def average_instead_of_maximum(node, op):  # type: ignore[no-untyped-def]
    kept = {k: a.value for k, a in node.attributes.items() if k in ("kernel_shape", "strides", "pads", "auto_pad")}
    return after(op, node, op.op("AveragePool", inputs_of(node), **kept)[0])
