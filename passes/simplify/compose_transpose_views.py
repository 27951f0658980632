"""See through a view between two transposes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir
from opgraft.ir.program import static_shape
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass
from opgraft.passes.simplify._operands import is_single_use, producer
from opgraft.passes.simplify.compose_transposes import permutation


@dataclass(frozen=True)
class _Atom:
    """A factor of the element count that no step takes apart: its size and the axes it belongs to."""

    size: int
    source: int
    """Axis of x."""
    target: int
    """Axis of the result."""


class ComposeTransposeViews(NodePass):
    """Transpose(view(Transpose(x))) -> Reshape(x), Reshape(Transpose(x)) or Transpose(Reshape(x))

    All dims are split into the factors that the three steps move as wholes. Case 1: the factors end in the order they
    have in x. 2: those of each axis of x stay together. 3: those of each axis of the result come from one run of x.
    """

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Transpose",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        view = producer(node.inputs[0], node.graph, "Reshape", "Flatten", "Squeeze", "Unsqueeze")
        inner = producer(view.inputs[0], node.graph, "Transpose") if view is not None else None
        value = inner.inputs[0] if inner is not None else None
        if view is None or inner is None or value is None:
            return NoMatch("not a transpose of a view of a transpose", node)
        if not (is_single_use(view.outputs[0]) and is_single_use(inner.outputs[0])):
            return NoMatch("an inner result has other users", node)
        dims, middle = static_shape(value), static_shape(view.outputs[0])
        first, second = permutation(inner), permutation(node)
        if dims is None or middle is None or first is None or second is None or 0 in dims:
            return NoMatch("the shapes are not known numbers", node)
        atoms = _factor(dims, first, middle, second)
        if atoms is None:
            return NoMatch("the view mixes factors of its dims", node)
        return _rebuild(op, value, dims, [middle[i] for i in second], atoms, node)


def _factor(dims: Sequence[int], first: list[int], middle: Sequence[int], second: list[int]) -> list[_Atom] | None:
    """The factors in the order of the view; None when its dims have no common refinement with those below."""
    below = [(dims[axis], axis) for axis in first if dims[axis] != 1]
    above = [(size, second.index(axis)) for axis, size in enumerate(middle) if size != 1]
    atoms = []
    while below and above:
        (low, source), (high, target) = below.pop(0), above.pop(0)
        size = min(low, high)
        if low % size or high % size:
            return None
        atoms.append(_Atom(size, source, target))
        if low > size:
            below.insert(0, (low // size, source))
        if high > size:
            above.insert(0, (high // size, target))
    return None if below or above else atoms


def _rebuild(
    op: Rewriter, value: onnx_ir.Value, dims: Sequence[int], result: list[int], atoms: list[_Atom], node: onnx_ir.Node
) -> Replacement | NoMatch:
    before = sorted(range(len(atoms)), key=lambda i: (atoms[i].source, i))
    after = sorted(range(len(atoms)), key=lambda i: (atoms[i].target, i))
    if before == after:  # 1
        return [op.Reshape(value, _shape(op, result))]
    sources = _runs([atoms[i].source for i in after])
    ordered = [i for s in sources or [] for i in before if atoms[i].source == s]
    if sources is not None and ordered == after:  # 2
        perm = [*sources, *(axis for axis in range(len(dims)) if axis not in sources)]
        moved = op.op("Transpose", [value], perm=perm)[0]
        if value.type is not None:
            moved.type, moved.shape = value.type, onnx_ir.Shape([dims[a] for a in perm])
        return [op.Reshape(moved, _shape(op, result))]
    targets = _runs([atoms[i].target for i in before])
    gathered = [i for t in targets or [] for i in after if atoms[i].target == t]
    if targets is not None and gathered == before:  # 3
        order = [*targets, *(axis for axis in range(len(result)) if axis not in targets)]
        shape = [result[axis] for axis in order]
        split = op.op("Reshape", [value, _shape(op, shape)])[0]
        if value.type is not None:
            split.type, split.shape = value.type, onnx_ir.Shape(shape)
        return [op.Transpose(split, perm=[order.index(axis) for axis in range(len(result))])]
    return NoMatch("factors of one axis end apart", node)


def _runs(labels: list[int]) -> list[int] | None:
    """The labels without repetition; None when equal ones are not side by side."""
    runs = [label for i, label in enumerate(labels) if i == 0 or labels[i - 1] != label]
    return runs if len(set(runs)) == len(runs) else None


def _shape(op: Rewriter, dims: list[int]) -> onnx_ir.Value:
    return op.constant(np.array(dims, dtype=np.int64), "shape")
