"""The named pipelines: plain lists of stages."""

from __future__ import annotations

from opgraft.passes._pipeline import Group, Stage, named_pipeline
from opgraft.passes._registry import builtin_modules, pass_class
from opgraft.passes._worklist import NodePass


def _simplification_rules() -> tuple[NodePass, ...]:
    """Every node pass of `passes/simplify`, in alphabetical order: their common fixpoint does not depend on it."""
    rules = []
    for name, module in builtin_modules().items():
        if module.startswith("opgraft.passes.simplify."):
            cls = pass_class(name)
            if issubclass(cls, NodePass):
                rules.append(cls())
    return tuple(rules)


@named_pipeline("simplify")
def simplify() -> list[Stage]:
    """Lossless simplification."""
    rules = Group(_simplification_rules())
    return [
        # Copies first: whatever comes later has less to look at.
        pass_class("eliminate-identity")(),
        pass_class("eliminate-dead-code")(),
        pass_class("lift-constants")(),
        # A branch that is never taken need not fit the shapes that become known.
        pass_class("inline-constant-if")(),
        pass_class("infer-shapes")(),
        pass_class("fold-constants")(),
        pass_class("deduplicate-initializers")(),
        rules,
        pass_class("merge-equal-shapes")(),
        pass_class("eliminate-common-subexpressions")(),
        pass_class("slices-to-split")(),
        # Shapes that became known make constants; those and merged nodes make new matches.
        pass_class("fold-constants")(),
        rules,
        pass_class("eliminate-dead-code")(),
    ]


@named_pipeline("optimize")
def optimize() -> list[Stage]:
    """The default: everything lossless that is on by default."""
    return list(simplify())
