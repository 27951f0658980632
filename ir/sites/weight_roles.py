"""What weights tell of the dims that meet them: channels, experts, rows of tables of words."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Kind
from opgraft.ir.axes.origins import Origins
from opgraft.ir.axes.roles import Role, Roles
from opgraft.ir.program import is_op

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity", "Slice", "Split")


def experts(nodes: list[onnx_ir.Node], axes: AxisGraph, origins: Origins) -> Iterator[tuple[int, Roles]]:
    """A dim made by a linear layer, of which the largest few are taken."""
    for node in nodes:
        if not is_op(node, "TopK"):
            continue
        for number in axes.operand(node, 0) or ():
            mixed = any(r.kind is Kind.MIXED and r.node is node for r in axes.out_of[number])
            if mixed and origins.is_weight(number):
                yield number, (Role.EXPERT,)


def is_embedding(node: onnx_ir.Node, axes: AxisGraph) -> bool:
    """Whether the node looks up rows of a constant table by numbers that depend on the inputs."""
    if not is_op(node, "Gather") or node.inputs[0] not in axes.constant or node.inputs[1] in axes.constant:
        return False
    table = axes.operand(node, 0)
    axis = node.attributes.get("axis")
    return table is not None and len(table) >= 2 and (axis is None or axis.as_int() == 0)


def _looked_up_by_input(node: onnx_ir.Node) -> bool:
    """Whether the rows are asked for by numbers that the caller gives, as they are."""
    value = node.inputs[1]
    for _ in range(8):
        producer = value.producer() if value is not None else None
        if producer is None:
            return value is not None and value.is_graph_input()
        if not is_op(producer, "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"):
            return False
        value = producer.inputs[0]
    return False


def vocabulary(nodes: list[onnx_ir.Node], axes: AxisGraph) -> Iterator[tuple[int, Roles]]:
    """Rows of the tables that token ids index, and the scores that a product with the same table makes."""
    tables = set()
    for node in nodes:
        table = axes.operand(node, 0)
        if table is not None and is_embedding(node, axes) and _looked_up_by_input(node):
            yield table[0], (Role.VOCABULARY,)
            tables.add(_stored(node.inputs[0]))
    for node in nodes:
        outs = axes.of(node.outputs[0])
        if is_op(node, "MatMul", "Gemm") and outs and _stored(node.inputs[1]) in tables:
            yield outs[-1], (Role.VOCABULARY,)
            yield from ((r.source, (Role.VOCABULARY,)) for r in axes.into[outs[-1]])


def _stored(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """The initializer that a constant is a view of."""
    for _ in range(4):
        node = value.producer() if value is not None else None
        if node is None or not is_op(node, "Transpose", "Reshape", "Identity", "Cast"):
            break
        value = node.inputs[0]
    return value


def channels(nodes: list[onnx_ir.Node], axes: AxisGraph, origins: Origins) -> Iterator[tuple[int, Roles]]:
    """Dims that weights sum over and make, rows of looked-up tables, dims that normalizations scale."""
    channel = (Role.CHANNEL,)
    yield from ((n, channel) for n in filters(nodes, axes))
    weights = _looked_up(nodes, axes)
    for node in nodes:
        if is_embedding(node, axes):
            yield from ((n, channel) for n in (axes.operand(node, 0) or range(0))[1:])
        operands = [axes.operand(node, p) for p in range(len(node.inputs))]
        for position, numbers in enumerate(operands):
            value = node.inputs[position]
            is_weight = value in axes.constant or value in weights
            for number in numbers or ():
                for relation in axes.out_of[number]:
                    if relation.node is not node or relation.kind is not Kind.CONTRACTED:
                        continue
                    other = axes.axes[relation.detail].value
                    if is_weight or other in axes.constant or other in weights:
                        yield number, channel
                        if is_weight:
                            made = made_by(axes, node, numbers or range(0))
                            yield from ((n, channel) for n in made if value in axes.constant or origins.is_weight(n))
        if is_op(node, "LayerNormalization", "RMSNormalization"):
            yield from ((n, channel) for n in operands[1] or ())
        if is_op(node, "BatchNormalization", "InstanceNormalization", "GroupNormalization"):
            yield from ((n, channel) for n in operands[1] or ())


def _looked_up(nodes: list[onnx_ir.Node], axes: AxisGraph) -> set[onnx_ir.Value]:
    """Weights that the inputs choose, as those of the experts a router sends a token to."""
    found: set[onnx_ir.Value] = set()
    for node in nodes:
        chosen = is_op(node, "Gather", "GatherND") and node.inputs[0] in axes.constant
        moved = is_op(node, *_MOVES) and node.inputs[0] in found
        if chosen or moved:
            found.update(node.outputs)
    return found


def filters(nodes: list[onnx_ir.Node], axes: AxisGraph) -> Iterator[int]:
    """The channels that convolutions take and make."""
    for node in nodes:
        if is_op(node, "Conv", "ConvTranspose"):
            sides = (axes.operand(node, 0) or range(0), axes.of(node.outputs[0]) or range(0))
            yield from (numbers[1] for numbers in sides if len(numbers) > 1)


def made_by(axes: AxisGraph, node: onnx_ir.Node, weight: range) -> Iterator[int]:
    """Dims of a weight that become dims of the result, alone."""
    for number in weight:
        for relation in axes.out_of[number]:
            if relation.kind is Kind.SAME and relation.node is node:
                others = [r for r in axes.into[relation.target] if r.kind is Kind.SAME and r.source not in weight]
                if not others:
                    yield number


def projected(nodes: list[onnx_ir.Node], axes: AxisGraph) -> Iterator[int]:
    """The dims that linear layers make, with their bias."""
    pending = []
    for node in nodes:
        for position, value in enumerate(node.inputs):
            if is_op(node, "MatMul", "Gemm") and value in axes.constant:
                weight = axes.operand(node, position) or range(0)
                made = set(made_by(axes, node, weight))
                outs = axes.of(node.outputs[0]) or range(0)
                pending += [n for n in outs if any(r.source in made for r in axes.into[n])]
    for number in pending:
        yield number
        for relation in axes.out_of[number]:
            if relation.kind is Kind.SAME and is_op(relation.node, "Add", "Cast", "Identity"):
                yield relation.target
