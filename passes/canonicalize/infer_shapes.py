"""Write down what the operators say of shapes and types, for the passes that read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opgraft.ir.program import Program
from opgraft.ir.shapes import analyze_shapes, record_shapes
from opgraft.passes._pass import Contract, Pass, PassContext


@dataclass(frozen=True)
class InferShapes(Pass):
    """f(x) without a recorded shape -> f(x) with it

    Changes what is said of values, no node. A record that contradicts the operators' rules is dropped.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        if not context.allows(self.name):
            return 0
        facts = analyze_shapes(program)
        context.facts["shapes"] = facts
        changed = record_shapes(program, facts)
        if not changed:
            return 0
        context.applied(self, f"{changed} values")
        return 1
