"""For a target that is another machine: roofline times of both programs, named an estimate."""

from __future__ import annotations

from typing import Any

from opgraft.ir.cost import ModelCost, cost_of
from opgraft.ir.errors import OpgraftError
from opgraft.ir.inputs import UnsupportedInput, required_inputs
from opgraft.ir.program import Program
from opgraft.ir.record_shapes import record_shapes
from opgraft.ir.shapes import analyze_shapes
from opgraft.ir.target import Target

# Sizes of free dims: one sample, and a middling length of text.
_BATCH, _OTHER = 1, 128


def estimate(before: Program, after: Program, target: Target) -> dict[str, Any]:
    """Milliseconds before and after, the sizes assumed, and what is left out; `reason` where there is no estimate."""
    costs = {"before": program_cost(before), "after": program_cost(after)}
    try:
        sizes = _sizes(before)
        missing = sorted((costs["before"].dims | costs["after"].dims) - set(sizes))
        if missing:
            return {"reason": f"the sizes of {', '.join(missing[:4])} follow from no input"}
        found: dict[str, Any] = {"target": target.name, "sizes": sizes}
        for side, cost in costs.items():
            found[side] = _roofline(cost, target, sizes)
    except (OpgraftError, UnsupportedInput) as error:
        return {"reason": str(error)}
    return found


def program_cost(program: Program) -> ModelCost:
    """The cost, with what files do not record of shapes and follows from the inputs; `program` stays as it is.

    Exporters leave out the shapes of attention scores, which cost most where sequences are long.
    """
    completed = program.clone()
    record_shapes(completed, analyze_shapes(completed))
    return cost_of(completed.model)


def _roofline(cost: ModelCost, target: Target, sizes: dict[str, int]) -> dict[str, Any]:
    found = cost.roofline(target, sizes)
    return {
        "ms": found.seconds * 1e3,
        "ms_by_constraint": {name: seconds * 1e3 for name, seconds in sorted(found.by_constraint().items())},
        "n_unknown": found.n_unknown,
    }


def _sizes(program: Program) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for value in required_inputs(program):
        for axis, dim in enumerate(value.shape or ()):
            if not isinstance(dim, int) and dim.value:
                is_batch = axis == 0 and len(value.shape or ()) > 1
                sizes.setdefault(dim.value, _BATCH if is_batch else _OTHER)
    return sizes
