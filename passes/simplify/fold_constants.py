"""Compute what does not depend on the inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy.typing as npt
import onnx_ir
from opgraft.ir.integer_contents import MAX_ELEMENTS, Integers, Operands, integers_of
from opgraft.ir.integer_rules import follow, has_rule
from opgraft.ir.program import Program, constant_tensor
from opgraft.ir.shape_conflicts import find_conflict
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._pass import Contract, NoMatch, Pass, PassContext
from opgraft.passes._rewriter import Names, Rewriter, apply
from opgraft.passes.simplify._constant_model import ConstantModels, to_tensor
from opgraft.passes.simplify._constant_region import ConstantRegion
from opgraft.passes.simplify._moved_weight import move_lazily

Arrays = dict[onnx_ir.Value, npt.NDArray[Any]]
Tensors = dict[onnx_ir.Value, onnx_ir.TensorProtocol]
Contents = dict[onnx_ir.Value, Integers | None]


@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(constants) -> constant

    1. Arithmetic on small integer tensors is done here, with exact integers.
    2. Large weights that are only moved (transposed, reshaped, cut) are moved when the program is written.
    3. All else is computed by the reference executor, in one session for the whole program: the kernels that would
       compute it at run time give the same bits. What it refuses stays; the others are folded all the same.

    Never folded: random operators, initializers that the caller may override, operators of unknown domains,
    DequantizeLinear (a quantized weight stays small), and results above the limit that do not replace constants of
    their size. Nothing is folded where a branch cannot run with the results: a runtime that knows them refuses the
    model.
    """

    contract: ClassVar[Contract] = Contract.EXACT

    max_output_kib: int = 1024
    """Largest result in KiB that may be larger than the constants that go with it."""

    def __post_init__(self) -> None:
        if self.max_output_kib < 0:
            raise ValueError("max-output-kib must not be negative")

    def run(self, program: Program, context: PassContext) -> int:
        before = len(context.rewrites)
        # Only what constants tell: worked out where it is asked for, and no record is believed.
        facts = ShapeAnalysis(program)
        regions: list[ConstantRegion] = []
        known: Arrays = {}
        contents: Contents = {}
        folded: set[onnx_ir.Node] = set()
        graphs = list(program.scopes())
        for graph in graphs:
            region = ConstantRegion(graph, facts, outer=folded, max_output_bytes=self.max_output_kib << 10)
            region.collect(program)
            region.shrink()
            for miss in region.misses:
                context.missed(self.name, miss)
            if region.nodes:
                _compute_integers(region, known, contents)
                regions.append(region)
                folded.update(region.nodes)
        if not regions:
            return 0
        wanted = [(region, region.frontier()) for region in regions]
        results = self._compute(program, context, wanted, known)
        conflict = find_conflict(program, _Foreseen(program, results)) if len(graphs) > 1 else None
        if conflict is not None:
            context.missed(self.name, NoMatch("what is computed does not fit an operator that may never run", conflict))
            return 0
        names = context.facts.get("names") or context.facts.setdefault("names", Names(program.model))
        for region, values in wanted:
            self._replace(region, values, results, names, context)
        return len(context.rewrites) - before

    def _compute(
        self,
        program: Program,
        context: PassContext,
        wanted: Sequence[tuple[ConstantRegion, Sequence[onnx_ir.Value]]],
        known: Arrays,
    ) -> Tensors:
        results: Tensors = {}
        asked: list[onnx_ir.Value] = []
        for region, values in wanted:
            is_computable = _has_opsets_of(region.graph, program)
            for value in values:
                if value in known:
                    results[value] = to_tensor(known[value])
                elif (moved := move_lazily(value, region.nodes, region.facts)) is not None:
                    results[value] = moved
                elif is_computable:
                    asked.append(value)
        if context.evaluate is None or not asked:
            return results
        models = ConstantModels(program, context.evaluate, known)
        results.update((v, to_tensor(array)) for v, array in models.compute(asked).items())
        for value, reason in models.failures:
            context.missed(self.name, NoMatch("{0}", value.producer(), reason))
        return results

    def _replace(
        self,
        region: ConstantRegion,
        values: Sequence[onnx_ir.Value],
        results: Tensors,
        names: Names,
        context: PassContext,
    ) -> None:
        """Consumers before producers: then every other result of a node has lost its users when its turn comes."""
        frontier = set(values)
        for node in reversed(list(region.nodes)):
            used = [o for o in node.outputs if o.is_graph_output() or o.uses()]
            if node.graph is not region.graph or not used or not all(o in frontier and o in results for o in used):
                continue
            if not all(self._may_keep(o, results[o], region, context) for o in used):
                continue
            if not context.allows(self.name):
                return
            rewriter = Rewriter(region.graph, node)
            constants = {o: _constant(rewriter, o, results[o], names) for o in used}
            replacements = [constants.get(o) or onnx_ir.Value(name=None) for o in node.outputs]
            token = None
            if context.recorder is not None:
                token = context.recorder.before(node, rewriter.nodes, replacements)
            rewrite = context.applied(self, node.name or node.outputs[0].name or node.op_type)
            apply(rewriter, replacements, names)
            if context.recorder is not None and token is not None:
                context.recorder.after(token, rewrite)

    def _may_keep(
        self, value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol, region: ConstantRegion, context: PassContext
    ) -> bool:
        """Results whose size was not known before."""
        if tensor.nbytes <= self.max_output_kib << 10 or region.size(value) == tensor.nbytes:
            return True
        context.missed(self.name, NoMatch("the result is larger than {0} KiB", value.producer(), self.max_output_kib))
        return False


class _Foreseen(ShapeAnalysis):
    """The facts of the program once these values are constants."""

    def __init__(self, program: Program, results: Tensors) -> None:
        super().__init__(program)
        for value, tensor in results.items():
            constant = onnx_ir.Value(name=None, const_value=tensor)
            self._sizes[value], self._integers[value] = self.sizes(constant), self.integers(constant)
            self._types[value] = tensor.dtype


def _has_opsets_of(graph: onnx_ir.Graph, program: Program) -> bool:
    """Whether operators in `graph` mean what they mean in the model: a function may import other versions."""
    for function in program.model.functions.values():
        if graph is function.graph or any(graph is sub for sub in function.subgraphs()):
            imports = program.model.opset_imports
            return all(imports.get(d, v) == v for d, v in function.opset_imports.items())
    return True


def _compute_integers(region: ConstantRegion, known: Arrays, contents: Contents) -> None:
    for node in region.nodes:
        if not has_rule(node):
            continue
        for value in node.inputs:
            if value is not None and value not in contents:
                contents[value] = _read(value)
        operands = Operands(
            node,
            [None if v is None else contents.get(v) for v in node.inputs],
            [_shape_of(v, known) for v in node.inputs],
        )
        for output, content in zip(node.outputs, follow(operands), strict=True):
            contents[output] = content
            array = None if content is None else content.array()
            if array is not None:
                known[output] = array


def _read(value: onnx_ir.Value) -> Integers | None:
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > MAX_ELEMENTS or tensor.dtype == onnx_ir.DataType.STRING:
        return None
    return integers_of(tensor.numpy(), tensor.dtype)


def _shape_of(value: onnx_ir.Value | None, known: Arrays) -> tuple[int, ...] | None:
    """The shape of a constant; recorded shapes of computed values are not taken for granted here."""
    if value is None:
        return None
    if value in known:
        return known[value].shape
    tensor = constant_tensor(value)
    return None if tensor is None else tuple(d for d in tensor.shape if isinstance(d, int))


def _constant(rewriter: Rewriter, like: onnx_ir.Value, tensor: onnx_ir.TensorProtocol, names: Names) -> onnx_ir.Value:
    """An initializer; in function bodies, which have none, a Constant node."""
    if rewriter.graph not in names.function_graphs:
        return rewriter.constant(tensor, f"{like.name or 'constant'}_folded")
    shape = onnx_ir.Shape(tensor.shape.numpy())
    return rewriter.op("Constant", [], shape=shape, dtype=tensor.dtype, value=tensor)[0]
