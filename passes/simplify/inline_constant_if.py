"""Take the branch that is always taken."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify.fold_shapes import shape_facts


class InlineConstantIf(NodePass):
    """If(true){ then: f(x), else: g(x) } -> f(x)

    The condition is a constant, or follows from the shapes. Inlined names are made unique; what the branch reads from
    outside stays as it is.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("If",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        condition = shape_facts(context).static_content(node.inputs[0])
        if condition is None or len(condition) != 1:
            return NoMatch("the condition is not known", node)
        attribute = node.attributes.get("then_branch" if condition[0] else "else_branch")
        if attribute is None or attribute.is_ref():
            return NoMatch("the branch is a parameter of the function", node)
        branch = attribute.as_graph()
        if branch.inputs:
            return NoMatch("the branch has inputs", node)
        copy = branch.clone(allow_outer_scope_values=True)
        outputs = list(copy.outputs)
        copy.outputs.clear()
        for value in list(copy.initializers.values()):
            del copy.initializers[value.name or ""]
            op.initializers.append(value)
        for inner in list(copy):
            copy.remove(inner)
            op.nodes.append(inner)
        return outputs
