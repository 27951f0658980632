"""Relations of operators that mix along whole dims: reductions, softmax, normalizations, scans and recurrences."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from opgraft.ir.axes.graph import Direction
from opgraft.ir.axes.rule import AxisRule, NodeAxes

_UNKNOWN = "the shape is not known"


def relate_mixed(n: NodeAxes, ins: Sequence[int], outs: Sequence[int], axes: Collection[int]) -> None:
    """The same dims on both sides, mixed along those at positions `axes`."""
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        if index in axes:
            n.mixed(source, target)
        else:
            n.same(source, target)


def _reduce(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axes = n.ints("axes", 1)
    if axes is None and len(n.node.inputs) > 1 and n.node.inputs[1] is not None:
        n.opaque("the reduced axes are not known")
        return
    if not axes and n.int_attribute("noop_with_empty_axes", 0):
        n.all_same(ins, outs)
        return
    _end_dims(n, ins, outs, {a % len(ins) for a in axes} if axes else set(range(len(ins))))


def _arg(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    _end_dims(n, ins, outs, {n.int_attribute("axis", 0) % len(ins)})


def _end_dims(n: NodeAxes, ins: range, outs: range, axes: set[int]) -> None:
    keeps = len(ins) == len(outs) and bool(n.int_attribute("keepdims", 1))
    position = 0
    for index, source in enumerate(ins):
        if index in axes:
            n.reduced(source)
            if keeps:
                n.created(outs[position], "a dim of size 1")
        else:
            n.same(source, outs[position])
        position += keeps or index not in axes


def _softmax(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    if not len(ins):
        return
    old = 0 < n.graph.opset < 13
    axis = n.int_attribute("axis", 1 if old else -1) % len(ins)
    # Before opset 13 everything from the axis on is one row.
    relate_mixed(n, ins, outs, range(axis, len(ins)) if old else (axis,))


def _along_axis(default: int) -> AxisRule:
    def rule(n: NodeAxes) -> None:
        ins, outs = n.operand(0), n.output()
        if ins is None or outs is None:
            n.opaque(_UNKNOWN)
            return
        relate_mixed(n, ins, outs, {n.int_attribute("axis", default) % len(ins)} if len(ins) else ())

    return rule


def _from_axis(n: NodeAxes) -> None:
    """LayerNormalization and RMSNormalization: mixed from `axis` on; scale and bias lie along the mixed dims."""
    ins = n.operand(0)
    if ins is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", -1) % len(ins)
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            continue
        if index == 0:
            relate_mixed(n, ins, outs, range(axis, len(ins)))
            for position in (1, 2):
                n.broadcast(n.operand(position) or range(0), outs)
        else:
            n.all_same(ins[:axis], outs[:axis])
            for source, target in zip(ins[axis:], outs[axis:], strict=True):
                n.reduced(source)
                n.created(target, "a dim of size 1")


def _normalize_spatial(n: NodeAxes) -> None:
    """InstanceNormalization: every channel of every sample on its own."""
    _normalize(n, mixes_channels=False)


def _normalize_groups(n: NodeAxes) -> None:
    _normalize(n, mixes_channels=True)


def _normalize(n: NodeAxes, *, mixes_channels: bool) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None or len(ins) < 2:
        n.opaque(_UNKNOWN)
        return
    relate_mixed(n, ins, outs, range(1 if mixes_channels else 2, len(ins)))
    for position in (1, 2):
        for source in n.operand(position) or ():
            n.aligned(source, outs[1])


def _batch_normalization(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    trains = bool(n.int_attribute("training_mode", 0))
    relate_mixed(n, ins, outs, [i for i in range(len(ins)) if i != 1] if trains else ())
    if len(outs) > 1:
        for position in range(1, 5):
            for source in n.operand(position) or ():
                n.same(source, outs[1])


def _across_channels(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    relate_mixed(n, ins, outs, {1})


def _all_mixed(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    relate_mixed(n, ins, outs, range(len(ins)))


def _cumulative(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    axis = n.numbers(1)
    if ins is None or outs is None or not axis:
        n.opaque("the axis is not known")
        return
    direction = Direction.BACKWARD if n.int_attribute("reverse", 0) else Direction.FORWARD
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        if index == axis[0] % len(ins):
            n.mixed(source, target, direction)
        else:
            n.same(source, target)


def _reverse_sequence(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    relate_mixed(n, ins, outs, {n.int_attribute("time_axis", 0)})


_DIRECTIONS = {"forward": Direction.FORWARD, "reverse": Direction.BACKWARD}


def _recurrent(n: NodeAxes) -> None:
    """LSTM, GRU, RNN: X `[T, B, C]`, W `[D, G * H, C]`, R `[D, G * H, H]`; Y `[T, D, B, H]`, last `[D, B, H]`."""
    ins, weight, recurrent = n.operand(0), n.operand(1), n.operand(2)
    if ins is None or weight is None or recurrent is None or n.int_attribute("layout", 0):
        n.opaque("batch first" if ins is not None else _UNKNOWN)
        return
    direction = _DIRECTIONS.get(n.text_attribute("direction", "forward"), Direction.BOTH)
    n.contracted(ins[2], weight[2])
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            continue
        if index == 0:
            n.mixed(ins[0], outs[0], direction)
        elif n.node.outputs[index].name:
            n.reduced(ins[0])
        n.same(ins[1], outs[-2])
        for numbers in (weight, recurrent):
            n.same(numbers[0], outs[-3])
        n.mixed(recurrent[2], outs[-1])
        n.scrambled(weight[1], outs[-1])
        for position in (5, 6):
            for source, target in zip(n.operand(position) or (), outs[-3:], strict=False):
                n.mixed(source, target)


MIXING_AXIS_RULES: dict[str, AxisRule] = {
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    "LpNormalization": _along_axis(-1),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"), _from_axis),
    "InstanceNormalization": _normalize_spatial,
    "GroupNormalization": _normalize_groups,
    "BatchNormalization": _batch_normalization,
    "LRN": _across_channels,
    "MeanVarianceNormalization": _all_mixed,
    **dict.fromkeys(("CumSum", "CumProd"), _cumulative),
    "ReverseSequence": _reverse_sequence,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(("ArgMax", "ArgMin"), _arg),
    **dict.fromkeys(
        (
            *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
            *("ReduceProd", "ReduceSum", "ReduceSumSquare"),
        ),
        _reduce,
    ),
}
