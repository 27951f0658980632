"""Remove nodes, initializers and functions that no output depends on."""

from __future__ import annotations

from typing import ClassVar

import onnx_ir
from opgraft.ir.program import Program
from opgraft.passes._pass import Contract, Pass, PassContext
from opgraft.passes._rewriter import captured_values, is_dead, remove_dead


class EliminateDeadCode(Pass):
    """f(x) with no user -> nothing

    Graph inputs stay, used or not: they are the model's interface.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        if not context.allows(self.name):
            return 0
        removed = 0
        for graph in program.scopes():
            before = len(graph)
            for node in reversed(list(graph)):
                if node.graph is graph and is_dead(node):
                    remove_dead([node], graph)
            removed += before - len(graph)
        removed += _remove_unused_initializers(program)
        removed += _remove_unused_functions(program)
        if removed:
            context.applied(self, f"{removed} unused")
        return removed


def _remove_unused_initializers(program: Program) -> int:
    graphs = list(program.scopes())
    captured: set[onnx_ir.Value] = set()
    if len(graphs) > 1:
        for graph in graphs:
            for node in graph:
                if node.attributes:
                    captured.update(captured_values(node))
    removed = 0
    for graph in graphs:
        for name, value in list(graph.initializers.items()):
            if value.uses() or value.is_graph_output() or value.is_graph_input() or value in captured:
                continue
            del graph.initializers[name]
            removed += 1
    return removed


def _remove_unused_functions(program: Program) -> int:
    model = program.model
    if not model.functions:
        return 0
    used: set[tuple[str, str, str]] = set()
    pending: list[onnx_ir.Node] = list(model.graph.all_nodes())
    while pending:
        key = pending.pop().op_identifier()
        if key in model.functions and key not in used:
            used.add(key)
            pending.extend(model.functions[key].all_nodes())
    unused = [key for key in model.functions if key not in used]
    for key in unused:
        del model.functions[key]
    return len(unused)
