"""Normalizations, as operators and decomposed: statistics along some dims, and what is divided by their root."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.program import constant_array, is_op

_NORMS = (
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "GroupNormalization"),
    *("InstanceNormalization", "BatchNormalization", "LpNormalization", "SkipLayerNormalization"),
    "SkipSimplifiedLayerNormalization",
)


@dataclass(frozen=True)
class Norm:
    """Statistics along some dims, and the activation divided by their root."""

    kind: str
    """layer, rms, group, instance, batch or l2."""
    source: onnx_ir.Value
    output: onnx_ir.Value
    nodes: tuple[onnx_ir.Node, ...]


def find_norms(nodes: Iterable[onnx_ir.Node], axes: AxisGraph) -> Iterator[Norm]:
    for node in nodes:
        if node.op_type in _NORMS and node.inputs[0] is not None:
            kind = node.op_type.removesuffix("Normalization").removeprefix("Skip").lower()
            yield Norm({"simplifiedlayer": "rms", "lp": "l2"}.get(kind, kind), node.inputs[0], node.outputs[0], (node,))
        elif is_op(node, "ReduceL2") and node.inputs[0] is not None:
            for use in _divisions(node, node.inputs[0]):
                yield Norm("l2", node.inputs[0], use.outputs[0], (node, use))
                break
        elif is_op(node, "Sqrt", "Pow"):
            found = _decomposed_norm(node, axes)
            if found is not None:
                yield found


def _decomposed_norm(root: onnx_ir.Node, axes: AxisGraph) -> Norm | None:
    """`d / sqrt(mean(d^2) + eps)`, with `d = x - mean(x)` (layer) or `d = x` (rms)."""
    mean = _before(root.inputs[0], ("Add", "Clip", "Max", "Cast"), axes)
    if mean is None or not is_op(mean, "ReduceMean", "ReduceSum") or mean.inputs[0] is None:
        return None
    square = mean.inputs[0].producer()
    if square is None or not _is_square(square):
        return None
    deviation = square.inputs[0]
    if deviation is None:
        return None
    centre = _before(deviation, ("Cast",), axes, through_first=False)
    source = deviation
    if is_op(centre, "Sub") and centre is not None and centre.inputs[0] is not None and centre.inputs[1] is not None:
        subtracted = centre.inputs[1].producer()
        if (
            is_op(subtracted, "ReduceMean")
            and subtracted is not None
            and _alike(subtracted.inputs[0], centre.inputs[0])
        ):
            source = centre.inputs[0]
    for use in _divisions(root, deviation):
        kind = "rms" if is_op(mean, "ReduceMean") else "l2"
        return Norm("layer" if source is not deviation else kind, source, use.outputs[0], (square, mean, root, use))
    return None


def _before(
    value: onnx_ir.Value | None, passed: tuple[str, ...], axes: AxisGraph, *, through_first: bool = True
) -> onnx_ir.Node | None:
    """The producer of a value, looking through operators that add or clip by a constant."""
    for _ in range(4):
        node = value.producer() if value is not None else None
        if node is None or not is_op(node, *passed):
            return node
        value = next((v for v in node.inputs if v is not None and v not in axes.constant), None)
        if not through_first and value is None:
            return node
    return None


def _is_square(node: onnx_ir.Node) -> bool:
    if is_op(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    exponent = constant_array(_uncast(node.inputs[1]), limit=1) if is_op(node, "Pow") else None
    return exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) == 2.0


def _uncast(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """A constant behind changes of its type."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and is_op(node, "Cast", "CastLike", "Identity") else value


def _alike(left: onnx_ir.Value | None, right: onnx_ir.Value | None, depth: int = 3) -> bool:
    """Whether both are the same value, or the same operators of the same values: exporters repeat themselves."""
    if left is right:
        return True
    one, other = (v.producer() if v is not None else None for v in (left, right))
    if not depth or one is None or other is None or one.op_type != other.op_type or one.attributes != other.attributes:
        return False
    return len(one.inputs) == len(other.inputs) and all(
        _alike(a, b, depth - 1) for a, b in zip(one.inputs, other.inputs, strict=True)
    )


def _divisions(root: onnx_ir.Node, deviation: onnx_ir.Value) -> Iterator[onnx_ir.Node]:
    """Where the deviation is divided by the root, or multiplied with its reciprocal."""
    pending = [root.outputs[0]]
    for _ in range(4):
        following: list[onnx_ir.Value] = []
        for value in pending:
            for use in value.uses():
                if is_op(use.node, "Div", "Mul") and any(_alike(deviation, v) for v in use.node.inputs):
                    yield use.node
                elif is_op(use.node, "Reciprocal", "Cast", "Div", "Expand", "Max", "Clip", "Add"):
                    following.append(use.node.outputs[0])
        pending = following
