"""One pass over the nodes in order, one rule per operator (`rules.py`): linear in the number of dims."""

from __future__ import annotations

import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.axes.rule import NodeAxes
from opgraft.ir.axes.rules import axis_rule
from opgraft.ir.axes.rules_control import CONTROL_AXIS_RULES
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.dims import Size, dim
from opgraft.ir.program import DEFAULT_DOMAINS, Program, constant_tensor, direct_subgraphs
from opgraft.ir.shape_rule import OPAQUE
from opgraft.ir.shapes import ShapeAnalysis, analyze_shapes


def inline_calls(program: Program) -> Program:
    """The program itself, or a copy with every call of a local function replaced by its body: what the analyses read.

    Each call of a function has dims of its own.
    """
    if not program.model.functions:
        return program
    from onnx_ir.passes.common import InlinePass

    flat = program.clone()
    InlinePass()(flat.model)
    return flat


def analyze_axes(program: Program, facts: ShapeAnalysis | None = None) -> AxisGraph:
    """The dim relations of all values of the main graph and of the subgraphs in it.

    Calls of local functions are opaque: analyze `inline_calls(program)` to see into them.
    """
    return _Analysis(program, facts or analyze_shapes(program, no_zeros=True)).run()


class _Analysis:
    def __init__(self, program: Program, facts: ShapeAnalysis) -> None:
        self.program = program
        self.facts = facts
        self.graph = AxisGraph(facts, program.opset)
        self._n_unknown = 0

    def run(self) -> AxisGraph:
        for value in self.program.graph.inputs:
            self._add_value(value)
        self._walk(self.program.graph)
        return self.graph

    def _walk(self, graph: onnx_ir.Graph) -> None:
        for node in graph:
            self._enter(node)
            for body in direct_subgraphs(node) if node.attributes else ():
                for value in body.inputs:
                    self._add_value(value)
                self._walk(body)
            self._relate(node)

    def _enter(self, node: onnx_ir.Node) -> None:
        """Dims of the node's uses of constants, and of its outputs."""
        for position, value in enumerate(node.inputs):
            if value is not None and value.producer() is None and constant_tensor(value) is not None:
                self.graph.constant.add(value)
                sizes = self._sizes(value)
                if sizes is not None:
                    self.graph.add_use(node, position, sizes)
        if _is_constant(node, self.graph.constant):
            self.graph.constant.update(node.outputs)
        for value in node.outputs:
            self._add_value(value)

    def _add_value(self, value: onnx_ir.Value) -> None:
        sizes = self._sizes(value)
        if sizes is not None:
            self.graph.add_value(value, sizes)

    def _sizes(self, value: onnx_ir.Value) -> tuple[Size, ...] | None:
        found = self.facts.sizes(value)
        if found is not None:
            return found
        if value.shape is None or not (value.type is None or isinstance(value.type, onnx_ir.TensorType)):
            return None
        return tuple(self._recorded(d) for d in value.shape)

    def _recorded(self, size: int | onnx_ir.SymbolicDim) -> Size:
        if isinstance(size, int):
            return size
        if size.value:
            return parse_dim(size.value)
        self._n_unknown += 1
        return dim(f"{OPAQUE}axis{self._n_unknown}")

    def _relate(self, node: onnx_ir.Node) -> None:
        n = NodeAxes(self.graph, self.facts, node)
        if any(a.is_ref() for a in node.attributes.values()):
            n.opaque("an attribute is a parameter of the function")
            return
        control = CONTROL_AXIS_RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
        rule = control or axis_rule(node.domain, node.op_type)
        if rule is None:
            n.opaque(f"no rule for {node.domain or 'ai.onnx'}::{node.op_type}")
            return
        try:
            rule(n)
        except (ValueError, IndexError):
            # Recorded shapes may be wrong; the runtime will say so.
            n.opaque("the shapes do not fit the operator")


def _is_constant(node: onnx_ir.Node, constant: set[onnx_ir.Value]) -> bool:
    if any(True for _ in direct_subgraphs(node)) or node.op_type.startswith("Random"):
        return False
    # CastLike takes but the type of its second operand.
    operands = node.inputs[:1] if node.op_type == "CastLike" else node.inputs
    return all(value is None or value in constant for value in operands)
