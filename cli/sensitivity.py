"""Which rewrites could end-to-end verification have seen? On random weights it is blind to many of them.

A value that a rewrite made is made wrong by one percent; where no output moves by more than ten times the tolerance,
the evidence end to end says nothing of that rewrite, and only its region speaks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir
from opgraft.ir.compare import max_abs_error
from opgraft.ir.errors import ExecutionError, OutputError
from opgraft.ir.external import all_tensors
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import Contract, Rewrite

if TYPE_CHECKING:
    from opgraft.cli.driver import Driver
    from opgraft.ir.verify import Verifier

_FACTOR = 1.01
_TIMES_TOLERANCE = 10.0
# Sites are alike within a pass; the first, the last and one between them stand for all.
_SITES_PER_PASS = 3
_MAX_RUNS = 24
# Each site costs a serialized copy of the model.
_MAX_WEIGHT_BYTES = 256 << 20


@dataclass
class _SiteRecorder:
    """Remembers the values that rewrites of the NUMERIC kind put into the graph."""

    made: dict[str, list[onnx_ir.Value]] = field(default_factory=dict)

    def before(
        self, root: onnx_ir.Node, new_nodes: Sequence[onnx_ir.Node], replacements: Sequence[Any]
    ) -> Sequence[Any]:
        return [v for v in replacements if isinstance(v, onnx_ir.Value) and v.producer() is not None]

    def after(self, token: Sequence[onnx_ir.Value], rewrite: Rewrite) -> None:
        if rewrite.contract is Contract.NUMERIC:
            self.made.setdefault(rewrite.pass_name, []).extend(token)


def find_unobservable(driver: Driver, verifier: Verifier) -> list[str]:
    """Names of the NUMERIC passes that fired at a site whose errors do not reach an output."""
    case = verifier.ordinary_case()
    if case is None or sum(t.nbytes for _, t in all_tensors(driver.original.model)) > _MAX_WEIGHT_BYTES:
        return []
    thresholds = {name: _TIMES_TOLERANCE * t for name, t in verifier.tolerances(case).items()}
    sites = _SiteRecorder()
    program = driver.attempt(recorder=sites).program
    try:
        base = driver.executor.run_once(model_bytes(program), case.arrays)
        hidden, n_runs = [], 0
        for pass_name, values in sites.made.items():
            for value in _some(_perturbable(program, values)):
                n_runs += 1
                moved = driver.executor.run_once(_perturbed(program, value.name or ""), case.arrays)
                if not _moves(base, moved, thresholds):
                    hidden.append(pass_name)
                    break
                if n_runs >= _MAX_RUNS:
                    return hidden
    except (ExecutionError, OutputError):
        return []
    return hidden


def _perturbable(program: Program, values: Sequence[onnx_ir.Value]) -> list[onnx_ir.Value]:
    """Float values that are still in the main graph."""
    present = []
    for value in values:
        producer = value.producer()
        in_graph = producer is not None and producer.graph is program.graph
        if in_graph and value.dtype == onnx_ir.DataType.FLOAT and (value.uses() or value.is_graph_output()):
            present.append(value)
    return present


def _some(values: list[onnx_ir.Value]) -> list[onnx_ir.Value]:
    if len(values) <= _SITES_PER_PASS:
        return values
    return [values[0], values[len(values) // 2], values[-1]]


def _perturbed(program: Program, name: str) -> bytes:
    """A copy of the program in which the value `name` is one percent too large."""
    copy = program.clone()
    node, value = next((n, o) for n in copy.graph for o in n.outputs if o.name == name)
    tensor = onnx_ir.tensor(np.float32(_FACTOR), name=f"{name}_factor")
    factor = onnx_ir.Value(name=tensor.name, type=onnx_ir.TensorType(tensor.dtype), const_value=tensor)
    factor.shape = onnx_ir.Shape(())
    copy.graph.register_initializer(factor)
    scaled = onnx_ir.node("Mul", [value, factor])
    scaled.outputs[0].name, scaled.outputs[0].type, scaled.outputs[0].shape = f"{name}_scaled", value.type, value.shape
    outputs = [i for i, output in enumerate(copy.graph.outputs) if output is value]
    for user, index in [(u.node, u.idx) for u in value.uses()]:
        if user is not scaled:
            user.replace_input_with(index, scaled.outputs[0])
    copy.graph.insert_after(node, scaled)
    for index in outputs:
        # The interface keeps its name.
        value.name, scaled.outputs[0].name = f"{name}_unscaled", name
        copy.graph.outputs[index] = scaled.outputs[0]
    return model_bytes(copy)


def _moves(base: Mapping[str, Any], moved: Mapping[str, Any], thresholds: Mapping[str, float]) -> bool:
    """Whether any output differs by more than its threshold; integers have none."""
    return any(
        isinstance(value, np.ndarray) and max_abs_error(value, moved.get(name)) > thresholds.get(name, 0.0)
        for name, value in base.items()
    )
