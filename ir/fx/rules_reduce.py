"""FX rules of operators along axes: reductions, softmax, sorting, running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from opgraft.ir.fx import ops_reduce as ops
from opgraft.ir.fx.call import Call, Outputs, Rule
from opgraft.ir.fx.values import WIDE_UNSIGNED
from torch import fx

aten = torch.ops.aten
_SOFTMAX_ALONG_ONE_AXIS = 13


def _reduction(make: Callable[[Call, fx.Node, Any, bool], fx.Node]) -> Rule:
    def rule(call: Call) -> Outputs:
        axes = [] if call.static_shape_of(1) == [0] else call.scalars_of("axes", 1)
        if not axes and call.int_attribute("noop_with_empty_axes", 0):
            return _of_each_element(call, make)
        return make(call, call.tensor(0), [] if axes is None else axes, call.keeps_dims())

    return rule


def _of_each_element(call: Call, make: Callable[[Call, fx.Node, Any, bool], fx.Node]) -> Outputs:
    """Reducing along no axis still squares or takes absolute values: along a new axis of size one."""
    return make(call, call.emit(aten.unsqueeze.default, call.tensor(0), -1), [-1], False)


def _sum(call: Call, x: fx.Node, axes: Any, keep: bool) -> fx.Node:
    if call.dtype(0) in WIDE_UNSIGNED:
        x = call.emit(aten.to.dtype, x, torch.int64)
        return call.emit(aten.to.dtype, call.emit(aten.sum.dim_IntList, x, axes, keep), call.torch_dtype(0))
    if call.is_integer():
        return call.emit(aten.sum.dim_IntList, x, axes, keep, dtype=call.torch_dtype(0))
    return call.emit(aten.sum.dim_IntList, x, axes, keep)


def _mean(call: Call, x: fx.Node, axes: Any, keep: bool) -> fx.Node:
    return call.emit(ops.reduce_mean if call.is_integer() else aten.mean.dim, x, axes, keep)


def _extreme(largest: bool) -> Callable[[Call, fx.Node, Any, bool], fx.Node]:
    def make(call: Call, x: fx.Node, axes: Any, keep: bool) -> fx.Node:
        shape = call.value(0).sizes
        if shape is None or 0 in shape or not shape or call.is_integer():
            return call.emit(ops.reduce_extreme, x, axes, keep, largest)
        return call.emit(aten.amax.default if largest else aten.amin.default, x, axes, keep)

    return make


def _l1(call: Call, x: fx.Node, axes: Any, keep: bool) -> fx.Node:
    return _sum(call, call.emit(aten.abs.default, x), axes, keep)


def _sum_square(call: Call, x: fx.Node, axes: Any, keep: bool) -> fx.Node:
    return _sum(call, call.emit(aten.mul.Tensor, x, x), axes, keep)


def _by(target: Callable[..., Any]) -> Rule:
    return _reduction(lambda call, x, axes, keep: call.emit(target, x, axes, keep))


def _arg(largest: bool) -> Rule:
    def rule(call: Call) -> Outputs:
        axis, keep = call.int_attribute("axis", 0), call.keeps_dims()
        last = bool(call.int_attribute("select_last_index", 0))
        return call.emit(ops.arg_extreme, call.tensor(0), axis, keep, largest, last)

    return rule


def _softmax(logarithm: bool) -> Rule:
    target = aten.log_softmax.int if logarithm else aten.softmax.int

    def rule(call: Call) -> Outputs:
        if call.opset >= _SOFTMAX_ALONG_ONE_AXIS:
            return call.emit(target, call.tensor(0), call.int_attribute("axis", -1))
        axis, rank = call.int_attribute("axis", 1), call.known_rank()
        if rank is not None and axis in (rank - 1, -1):
            return call.emit(target, call.tensor(0), -1)
        return call.emit(ops.softmax_from, call.tensor(0), axis, logarithm)

    return rule


def hardmax(call: Call) -> Outputs:
    if call.opset >= _SOFTMAX_ALONG_ONE_AXIS:
        return call.emit(ops.hardmax, call.tensor(0), call.int_attribute("axis", -1))
    return call.emit(ops.hardmax_from, call.tensor(0), call.int_attribute("axis", 1))


def top_k(call: Call) -> Outputs:
    k = call.scalar(1) if call.has(1) else call.int_attribute("k", 1)
    made = call.emit(
        ops.top_k, call.tensor(0), k, call.int_attribute("axis", -1), bool(call.int_attribute("largest", 1))
    )
    return call.outputs_of(made, 2)


def _cumulation(product: bool) -> Rule:
    def rule(call: Call) -> Outputs:
        axis, exclusive, reverse = call.scalar(1), call.int_attribute("exclusive", 0), call.int_attribute("reverse", 0)
        if not (exclusive or reverse or product or call.is_integer()):
            return call.emit(aten.cumsum.default, call.tensor(0), axis)
        return call.emit(ops.cumulate, call.tensor(0), axis, bool(exclusive), bool(reverse), product)

    return rule


REDUCE_RULES: dict[str, Rule] = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "CumProd": _cumulation(True),
    "CumSum": _cumulation(False),
    "Hardmax": hardmax,
    "LogSoftmax": _softmax(True),
    "ReduceL1": _reduction(_l1),
    "ReduceL2": _by(ops.reduce_l2),
    "ReduceLogSum": _by(ops.reduce_log_sum),
    "ReduceLogSumExp": _by(ops.reduce_log_sum_exp),
    "ReduceMax": _reduction(_extreme(True)),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(_extreme(False)),
    "ReduceProd": _by(ops.reduce_product),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_sum_square),
    "Softmax": _softmax(False),
    "TopK": top_k,
}
