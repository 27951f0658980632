"""Sites that are not attention: linear layers and their chains, gated MLPs, embeddings, recurrences, routers.

From dataflow on decomposed graphs as on raised ones. Constant operands make a product a layer; what stands between
two products, along dims that keep their index, makes them a chain.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph, Direction, Kind
from opgraft.ir.axes.roles import Role
from opgraft.ir.program import is_op
from opgraft.ir.sites.assign_roles import RoleTable
from opgraft.ir.sites.weight_roles import is_embedding

_CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
_RECURRENT = ("LSTM", "GRU", "RNN", "Scan", "Loop")
_ELEMENTWISE_CHAIN = 24
_BLOCK_VALUES = 400


@dataclass(frozen=True)
class Linear:
    """`y = x W (+ b)`: a product of an activation and a constant, over the channel."""

    node: onnx_ir.Node
    source: onnx_ir.Value
    weight: onnx_ir.Value
    output: onnx_ir.Value
    """After the bias, if there is one."""


@dataclass(frozen=True)
class GatedMlp:
    """`down(act(gate(x)) * up(x))`."""

    gate: Linear
    up: Linear
    down: Linear
    product: onnx_ir.Node


@dataclass(frozen=True)
class Mlp:
    """`second(act(first(x)))` without a product of branches."""

    first: Linear
    second: Linear


@dataclass(frozen=True)
class Embedding:
    """Rows of a constant table, looked up by numbers that depend on the inputs."""

    node: onnx_ir.Node
    table: onnx_ir.Value
    output: onnx_ir.Value


@dataclass(frozen=True)
class Residual:
    """`y = x + f(x)`."""

    node: onnx_ir.Node
    stream: onnx_ir.Value
    branch: onnx_ir.Value


def find_linears(nodes: Iterable[onnx_ir.Node], axes: AxisGraph) -> Iterator[Linear]:
    for node in nodes:
        if not is_op(node, "MatMul", "Gemm", "Einsum") and node.op_type not in ("MatMulNBits", "FusedMatMul"):
            continue
        constant = [p for p in (0, 1) if p < len(node.inputs) and node.inputs[p] in axes.constant]
        if len(constant) != 1:
            continue
        weight, source = node.inputs[constant[0]], node.inputs[1 - constant[0]]
        if weight is not None and source is not None:
            yield Linear(node, source, weight, _with_bias(node, axes))


def _with_bias(node: onnx_ir.Node, axes: AxisGraph) -> onnx_ir.Value:
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and is_op(uses[0].node, "Add") and uses[0].node.inputs[1 - uses[0].idx] in axes.constant:
        return uses[0].node.outputs[0]
    return output


def find_embeddings(nodes: Iterable[onnx_ir.Node], axes: AxisGraph) -> Iterator[Embedding]:
    for node in nodes:
        if is_embedding(node, axes) and node.inputs[0] is not None:
            yield Embedding(node, node.inputs[0], node.outputs[0])


def find_mlps(linears: Iterable[Linear], axes: AxisGraph) -> Iterator[GatedMlp | Mlp]:
    """Layers whose input is made of one earlier layer through a nonlinearity, or of two through a product."""
    by_output: dict[onnx_ir.Value, Linear] = {}
    linears = list(linears)
    for linear in linears:
        by_output[linear.node.outputs[0]] = linear
    for linear in linears:
        product = _product_before(linear.source, axes)
        if product is not None:
            sides = [_layers_before(v, by_output, axes) for v in product.inputs if v is not None]
            if len(sides) == 2 and all(len(s) == 1 for s in sides):
                (first,), (second,) = sides
                gated = (
                    _is_activated(product.inputs[0], first[0], axes),
                    _is_activated(product.inputs[1], second[0], axes),
                )
                if gated[0] != gated[1]:
                    gate, up = (first[0], second[0]) if gated[0] else (second[0], first[0])
                    if gate is not up or first[1] != second[1]:
                        yield GatedMlp(gate, up, linear, product)
                        continue
        before = _layers_before(linear.source, by_output, axes)
        if len(before) == 1 and _is_activated(linear.source, before[0][0], axes):
            yield Mlp(before[0][0], linear)


def _product_before(value: onnx_ir.Value, axes: AxisGraph) -> onnx_ir.Node | None:
    for _ in range(4):
        node = value.producer()
        if node is None:
            return None
        if is_op(node, "Mul") and not any(v in axes.constant for v in node.inputs):
            return node
        if not is_op(node, "Cast", "Reshape", "Identity", "Dropout", "Transpose"):
            return None
        if node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return None


_SPLITTING = ("Split", "Slice", "Gather")


def _layers_before(
    value: onnx_ir.Value, by_output: dict[onnx_ir.Value, Linear], axes: AxisGraph
) -> list[tuple[Linear, str]]:
    """The layers that a value is computed from elementwise, each with the part of its output that is taken."""
    found: dict[tuple[int, str], tuple[Linear, str]] = {}
    pending = [(value, "")]
    seen = {value}
    while pending and len(seen) < _ELEMENTWISE_CHAIN:
        current, part = pending.pop()
        linear = by_output.get(current)
        if linear is not None:
            found[id(linear), part] = (linear, part)
            continue
        node = current.producer()
        if node is None or current in axes.constant:
            continue
        if not _is_pointwise(node, axes):
            return []
        if node.op_type in _SPLITTING:
            part = f"{node.name}{current.index()}"
        for position, before in enumerate(node.inputs):
            if before is None or before in seen or before in axes.constant or not _gives_elements(axes, node, position):
                continue
            seen.add(before)
            pending.append((before, part))
    return list(found.values())


def _gives_elements(axes: AxisGraph, node: onnx_ir.Node, position: int) -> bool:
    """Whether elements of the operand come into the result; of a shape or an index they do not."""
    return any(r.node is node for n in axes.operand(node, position) or () for r in axes.out_of[n])


def _is_pointwise(node: onnx_ir.Node, axes: AxisGraph) -> bool:
    """Whether every element of the result comes from the same element of each operand."""
    if node in axes.opaque:
        return False
    for position in range(len(node.inputs)):
        for number in axes.operand(node, position) or ():
            for relation in axes.out_of[number]:
                if relation.node is node and relation.kind not in (
                    Kind.SAME,
                    Kind.BROADCAST,
                    Kind.SLICED,
                    Kind.SELECTED,
                    Kind.PART,
                ):
                    return False
    return True


_LINEAR_OPS = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Identity",
    "Cast",
    "Reshape",
    "Transpose",
    "Split",
    "Slice",
    "Dropout",
    "Expand",
)


def _is_activated(value: onnx_ir.Value | None, linear: Linear, axes: AxisGraph) -> bool:
    """Whether something between the layer and the value is not linear."""
    pending = [value] if value is not None else []
    seen = set(pending)
    while pending and len(seen) < _ELEMENTWISE_CHAIN:
        current = pending.pop()
        if current is linear.node.outputs[0]:
            continue
        node = current.producer()
        if node is None or current in axes.constant:
            continue
        computed = [v for v in node.inputs if v is not None and v not in axes.constant]
        if not is_op(node, *_LINEAR_OPS, "Unsqueeze", "Squeeze", "Gather") or (
            is_op(node, "Mul", "Div") and len(computed) > 1
        ):
            return True
        for before in computed:
            if before not in seen:
                seen.add(before)
                pending.append(before)
    return False


def find_residuals(nodes: Iterable[onnx_ir.Node], axes: AxisGraph) -> Iterator[Residual]:
    """Sums of a value and something computed from it."""
    for node in nodes:
        if not is_op(node, "Add", "Sum") or len(node.inputs) != 2:
            continue
        left, right = node.inputs
        if left is None or right is None or left in axes.constant or right in axes.constant:
            continue
        if _is_computed_from(right, left):
            yield Residual(node, left, right)
        elif _is_computed_from(left, right):
            yield Residual(node, right, left)


def _is_computed_from(value: onnx_ir.Value, wanted: onnx_ir.Value) -> bool:
    """Whether one value is computed from another, within the reach of a block."""
    pending, seen = [value], {value}
    while pending and len(seen) < _BLOCK_VALUES:
        node = pending.pop(0).producer()
        for before in node.inputs if node is not None else ():
            if before is wanted:
                return True
            if before is not None and before not in seen and before.producer() is not None:
                seen.add(before)
                pending.append(before)
    return False


def find_convolutions(nodes: Iterable[onnx_ir.Node]) -> Iterator[onnx_ir.Node]:
    return (node for node in nodes if node.op_type in _CONVOLUTIONS)


def find_recurrences(nodes: Iterable[onnx_ir.Node], axes: AxisGraph) -> Iterator[onnx_ir.Node]:
    """Operators that carry state along a dim: recurrent layers, scans, sums so far."""
    for node in nodes:
        if is_op(node, *_RECURRENT):
            yield node
        elif is_op(node, "CumSum", "CumProd") and node.inputs[0] not in axes.constant:
            directed = any(
                r.kind is Kind.MIXED and r.detail is not Direction.BOTH and r.node is node
                for n in axes.operand(node, 0) or ()
                for r in axes.out_of[n]
            )
            computed = (
                node.inputs[0] is not None
                and node.inputs[0].dtype is not None
                and not node.inputs[0].dtype.is_integer()
            )
            if directed and computed:
                yield node


def find_routers(nodes: Iterable[onnx_ir.Node], roles: RoleTable) -> Iterator[onnx_ir.Node]:
    """Where the few experts of each token are chosen."""
    for node in nodes:
        found = roles.of_operand(node, 0) if is_op(node, "TopK") else None
        if found is not None and any(Role.EXPERT in r for r in found):
            yield node
