"""Write down the shapes and types that follow from the inputs."""

from __future__ import annotations

from typing import ClassVar

from opgraft.ir.program import Program
from opgraft.ir.record_shapes import record_shapes
from opgraft.ir.shapes import analyze_shapes
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext


class InferShapes(Pass):
    """f(x[N, 4]) -> f(x[N, 4])[N, 4]

    For the passes that read them. A record that is missing or incomplete is completed; one that contradicts what
    follows from the inputs is corrected. Declared inputs and outputs stay as they are. Nothing is written where a
    branch cannot run with the shapes that follow: a runtime that knows them refuses the model.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    def run(self, program: Program, context: PassContext) -> int:
        if not context.allows(self.name):
            return 0
        facts = context.facts["shapes"] = analyze_shapes(program)
        if facts.conflict is not None:
            context.missed(
                self.name, NoMatch("what follows does not fit an operator that may never run", facts.conflict)
            )
            return 0
        changed = record_shapes(program, facts)
        if not changed:
            return 0
        context.applied(self, f"{changed} values")
        return 1
