"""Constants where the runtime keeps them: beside the graph, not in it."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import Program, constant_tensor, is_op, nested_graphs
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext


class LiftConstants(Pass):
    """Constant() -> initializer

    In the main graph and in the bodies of control flow. Function bodies have no initializers; a constant that is a
    graph output needs a node; a sparse one has no dense tensor to lift.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        before = len(context.rewrites)
        for graph in nested_graphs(program.graph):
            for node in list(graph):
                if not is_op(node, "Constant"):
                    continue
                miss = self._refuse(node)
                if miss is not None:
                    context.missed(self.name, miss)
                elif context.allows(self.name):
                    self._lift(node, graph, context)
        return len(context.rewrites) - before

    def _refuse(self, node: onnx_ir.Node) -> NoMatch | None:
        if constant_tensor(node.outputs[0]) is None:
            return NoMatch("no dense tensor", node)
        if node.outputs[0].is_graph_output():
            return NoMatch("a graph output needs a node", node)
        return None

    def _lift(self, node: onnx_ir.Node, graph: onnx_ir.Graph, context: PassContext) -> None:
        old = node.outputs[0]
        tensor = constant_tensor(old)
        if tensor is None:
            return
        value = onnx_ir.Value(
            name=old.name,
            type=onnx_ir.TensorType(tensor.dtype),
            shape=onnx_ir.Shape(tensor.shape.numpy()),
            const_value=tensor,
            metadata_props=dict(old.metadata_props),
        )
        token = context.recorder.before(node, [], [value]) if context.recorder is not None else None
        rewrite = context.applied(self, node.name or old.name or "Constant")
        old.name = None
        old.replace_all_uses_with(value)
        graph.remove(node, safe=True)
        graph.register_initializer(value)
        if context.recorder is not None and token is not None:
            context.recorder.after(token, rewrite)
