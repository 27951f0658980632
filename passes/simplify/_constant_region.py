"""Which nodes of a graph compute the same in every run, and which of their results are worth keeping."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

import onnx_ir
from opgraft.ir.half_precision import HALF, MOVERS
from opgraft.ir.program import DEFAULT_DOMAINS, Program, constant_tensor, direct_subgraphs, is_op, static_shape
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._pass import NoMatch
from opgraft.passes._rewriter import captured_values, is_random

# Outputs of these can be much larger than their inputs: only where the size is known can they be judged.
_GROWING = frozenset(
    {
        "ConstantOfShape",
        "Expand",
        "Range",
        "Tile",
        "OneHot",
        "EyeLike",
        "Pad",
        "Resize",
        "Upsample",
        "CenterCropPad",
        "MatMul",
        "Gemm",
        "Einsum",
        "Gather",
        "GatherND",
        "GatherElements",
        "AffineGrid",
        "GridSample",
        "ConvTranspose",
        "MaxUnpool",
        "Col2Im",
        "HannWindow",
        "HammingWindow",
        "BlackmanWindow",
        "MelWeightMatrix",
        "DFT",
        "STFT",
        "Loop",
        "Scan",
    }
)
# ONNX Runtime has no Identity for types of less than a byte.
_NOT_COPIED = (
    onnx_ir.DataType.INT4,
    onnx_ir.DataType.UINT4,
    onnx_ir.DataType.INT2,
    onnx_ir.DataType.UINT2,
    onnx_ir.DataType.FLOAT4E2M1,
)
_MAX_SLICE_NODES = 1000


def is_pure(node: onnx_ir.Node, program: Program) -> bool:
    """Whether the node computes the same from the same inputs, in operators that the runtime is known to have."""
    if any(a.is_ref() for a in node.attributes.values()) or is_random(node):
        return False
    inner = [n for graph in direct_subgraphs(node) for n in graph]
    if node.domain not in DEFAULT_DOMAINS:
        function = program.model.functions.get(node.op_identifier())
        if function is None:
            return False
        inner += [n for n in function if not any(a.is_ref() for a in n.attributes.values())]
        if any(is_random(n) for n in function.all_nodes()):
            return False
    return all(n.domain in DEFAULT_DOMAINS or is_pure(n, program) for n in inner)


def size_in_bytes(value: onnx_ir.Value, facts: ShapeAnalysis) -> int | None:
    """Bytes of a constant, or of a value whose shape and type follow from constants or are recorded."""
    tensor = constant_tensor(value)
    if tensor is not None:
        return tensor.nbytes
    sizes, dtype = facts.sizes(value), facts.dtype(value)
    numbers = None if sizes is None else tuple(d for d in sizes if isinstance(d, int))
    shape = numbers if sizes is not None and numbers is not None and len(numbers) == len(sizes) else static_shape(value)
    if shape is None or dtype is None or dtype == onnx_ir.DataType.STRING:
        return None
    return prod(shape) * dtype.bitwidth // 8


@dataclass
class ConstantRegion:
    """The nodes of one graph that compute constants (in order), and their results that others read."""

    graph: onnx_ir.Graph
    facts: ShapeAnalysis
    nodes: dict[onnx_ir.Node, None] = field(default_factory=dict)
    outer: set[onnx_ir.Node] = field(default_factory=set)
    """Nodes of the same kind in the graphs around."""
    misses: list[NoMatch] = field(default_factory=list)
    max_output_bytes: int = 1 << 20

    def size(self, value: onnx_ir.Value) -> int | None:
        """Bytes of `value` where they are known beforehand."""
        return size_in_bytes(value, self.facts)

    def holds(self, value: onnx_ir.Value | None) -> bool:
        """Whether the value is the same in every run."""
        if value is None:
            return True
        producer = value.producer()
        if producer is None:
            return constant_tensor(value) is not None
        return producer in self.nodes or producer in self.outer or constant_tensor(value) is not None

    def collect(self, program: Program) -> None:
        """Find the nodes whose inputs are constant, in one walk in order."""
        for node in self.graph:
            if not all(map(self.holds, node.inputs)):
                continue
            if node.attributes and not all(map(self.holds, captured_values(node))):
                continue
            refused = self._refuse(node, program)
            if refused is None:
                self.nodes[node] = None
            elif refused.reason:
                self.misses.append(refused)

    def _refuse(self, node: onnx_ir.Node, program: Program) -> NoMatch | None:
        if constant_tensor(node.outputs[0]) is not None or not any(
            o.uses() or o.is_graph_output() for o in node.outputs
        ):
            return NoMatch("", node)
        if is_op(node, "DequantizeLinear"):
            return NoMatch("a quantized weight stays small", node)
        if is_op(node, "Identity") and node.outputs[0].is_graph_output():
            return NoMatch("a constant output needs its Identity", node)
        if any(o.is_graph_output() and self.facts.dtype(o) in _NOT_COPIED for o in node.outputs):
            return NoMatch("a constant output needs an Identity, which does not exist for its type", node)
        if any(self.facts.dtype(o) in HALF for o in node.outputs) and not is_op(node, *MOVERS):
            return NoMatch("the runtime may keep more than half precision between this node and the next", node)
        if not is_pure(node, program):
            return NoMatch("a random operator, or one of an unknown domain", node)
        return self._refuse_size(node)

    def _refuse_size(self, node: onnx_ir.Node) -> NoMatch | None:
        """What the node may allocate while it is evaluated."""
        sizes = [self.size(o) for o in node.outputs if o.name]
        inputs = sum(self.size(v) or 0 for v in node.inputs if v is not None)
        limit = max(self.max_output_bytes, inputs)
        if any(s is not None and s > limit for s in sizes):
            return NoMatch("the result is larger than {0} KiB", node, self.max_output_bytes >> 10)
        if any(s is None for s in sizes) and node.op_type in _GROWING:
            return NoMatch("the size of the result is not known", node)
        return None

    def frontier(self) -> list[onnx_ir.Value]:
        """Results that nodes outside the region, subgraphs, or the graph's caller read, in order."""
        return [
            output
            for node in self.nodes
            for output in node.outputs
            if output.is_graph_output() or any(use.node not in self.nodes for use in output.uses())
        ]

    def shrink(self) -> None:
        """Give up results that are large and would not replace constants of their size; then what only they used."""
        changed = True
        while changed:
            changed = False
            charged: set[onnx_ir.Value] = set()
            for value in reversed(self.frontier()):
                node = value.producer()
                if node is None or node not in self.nodes or self._is_affordable(value, charged):
                    continue
                self.misses.append(NoMatch("the result is larger than the constants it replaces", node))
                del self.nodes[node]
                changed = True

    def _is_affordable(self, value: onnx_ir.Value, charged: set[onnx_ir.Value]) -> bool:
        size = self.size(value)
        if not isinstance(value.type, onnx_ir.TensorType) and value.type is not None:
            return False
        if size is None or size <= self.max_output_bytes:
            return True
        dying = self._dying_constants(value) - charged
        if size > sum(self.size(v) or 0 for v in dying):
            return False
        charged |= dying
        return True

    def _dying_constants(self, value: onnx_ir.Value) -> set[onnx_ir.Value]:
        """Constants that only this region reads and `value` is computed from."""
        found: set[onnx_ir.Value] = set()
        seen: set[onnx_ir.Node] = set()
        pending = [value.producer()]
        while pending and len(seen) < _MAX_SLICE_NODES:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            for operand in node.inputs:
                if operand is None:
                    continue
                if operand.producer() in self.nodes:
                    pending.append(operand.producer())
                elif not operand.is_graph_output() and all(use.node in self.nodes for use in operand.uses()):
                    found.add(operand)
        return found
