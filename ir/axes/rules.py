"""The relation of each operator's output dims to its input dims: one table, by operator."""

from __future__ import annotations

from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.axes.rules_attention import ATTENTION_AXIS_RULES, CONTRIB_ATTENTION_AXIS_RULES
from opgraft.ir.axes.rules_contraction import CONTRACTION_AXIS_RULES, CONTRIB_CONTRACTION_AXIS_RULES
from opgraft.ir.axes.rules_index import INDEX_AXIS_RULES
from opgraft.ir.axes.rules_mixing import MIXING_AXIS_RULES, relate_mixed
from opgraft.ir.axes.rules_spatial import SPATIAL_AXIS_RULES
from opgraft.ir.axes.rules_view import VIEW_AXIS_RULES
from opgraft.ir.shape_rules import ELEMENTWISE, SAME_SHAPE


def elementwise(n: NodeAxes) -> None:
    """Every output has the operands' indices, broadcast."""
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            if n.node.outputs[index].name:
                n.opaque("the rank is not known")
            continue
        for position in range(len(n.node.inputs)):
            n.broadcast(n.operand(position) or range(0), outs)


def _like_first(n: NodeAxes) -> None:
    """Other operands are scalars: limits, ratios, seeds."""
    ins = n.operand(0)
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if ins is not None and outs is not None and len(ins) == len(outs):
            n.all_same(ins, outs)


def _quantized(n: NodeAxes) -> None:
    """Scale and zero point lie along one axis of the data, if they are vectors."""
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque("the rank is not known")
        return
    n.all_same(ins, outs)
    axis = n.int_attribute("axis", 1)
    for position in (1, 2):
        numbers = n.operand(position) or range(0)
        if len(numbers) == 1 and len(outs):
            n.aligned(numbers[0], outs[axis % len(outs)])
        elif len(numbers) == len(outs):
            for source, target in zip(numbers, outs, strict=True):
                if n.size(source) == n.size(target):
                    n.same(source, target)
                else:
                    n.mixed(source, target)


def _dynamic_quantized(n: NodeAxes) -> None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque("the rank is not known")
        return
    # The scale comes from all elements.
    relate_mixed(n, ins, outs, range(len(ins)))


def _skip_normalization(n: NodeAxes) -> None:
    """com.microsoft Skip(Simplified)LayerNormalization: output 0 normalized, output 3 the sum."""
    ins = n.operand(0)
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None or ins is None or len(outs) != len(ins):
            continue
        for position in range(len(n.node.inputs)):
            numbers = n.operand(position) or range(0)
            n.broadcast(numbers[:-1], outs[:-1])
            for source in numbers[-1:]:
                if index == 0 and position < 2:
                    n.mixed(source, outs[-1])
                else:
                    n.aligned(source, outs[-1])


def _matmul_n_bits(n: NodeAxes) -> None:
    """com.microsoft MatMulNBits: data `[..., K]`, packed weight `[N, K / block, bytes]`."""
    ins, weight, outs = n.operand(0), n.operand(1), n.output()
    if not ins or weight is None or not outs:
        n.opaque("the rank is not known")
        return
    n.all_same(ins[:-1], outs[:-1])
    n.reduced(ins[-1])
    n.same(weight[0], outs[-1])


_ELEMENTWISE = {*ELEMENTWISE, *SAME_SHAPE}
AXIS_RULES: dict[str, AxisRule] = {
    **dict.fromkeys(_ELEMENTWISE, elementwise),
    **dict.fromkeys(("Clip", "Dropout", "Bernoulli", "EyeLike", "Trilu", "CastLike"), _like_first),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantized),
    "DynamicQuantizeLinear": _dynamic_quantized,
    **VIEW_AXIS_RULES,
    **CONTRACTION_AXIS_RULES,
    **SPATIAL_AXIS_RULES,
    **INDEX_AXIS_RULES,
    **MIXING_AXIS_RULES,
    **ATTENTION_AXIS_RULES,
}
"""Operators of the default domain."""

CONTRIB_AXIS_RULES: dict[str, AxisRule] = {
    **dict.fromkeys(("Gelu", "FastGelu", "BiasGelu", "QuickGelu", "BiasAdd"), elementwise),
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_normalization),
    "MatMulNBits": _matmul_n_bits,
    **CONTRIB_CONTRACTION_AXIS_RULES,
    **CONTRIB_ATTENTION_AXIS_RULES,
}
"""Operators of com.microsoft."""


def axis_rule(domain: str, op_type: str) -> AxisRule | None:
    if domain in ("", "ai.onnx"):
        return AXIS_RULES.get(op_type)
    return CONTRIB_AXIS_RULES.get(op_type) if domain == "com.microsoft" else None
