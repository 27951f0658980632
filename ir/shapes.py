"""Shapes of all values and contents of shape tensors, as numbers and expressions of the model's dims.

Facts come from the declared shapes of the graph's inputs (which ONNX Runtime enforces where they are numbers), from
constants, and from the operators' rules. Dims of one name are one number, as the ONNX standard says of a graph
(IR.md, "Static tensor shapes"); ONNX Runtime does not check that: inputs that break it are broadcast, if they can be.
Sizes are taken to be below 2**31 - 1, which exporters write for "to the end".

Shapes recorded for other values are hearsay: exporters and editors leave wrong ones behind. They only fill in what no
rule tells, and only in a model none of whose records contradicts the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import onnx_ir
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.dims import Dim, Size
from opgraft.ir.element_types import has_type_of_first, infer_types
from opgraft.ir.integer_contents import MAX_ELEMENTS, Integers, Sizes, integers_of, unknown_integers
from opgraft.ir.integer_rules import follow
from opgraft.ir.program import DEFAULT_DOMAINS, Program, constant_tensor, direct_subgraphs, is_op
from opgraft.ir.sequence_part import sequence_part, split_axis, split_before
from opgraft.ir.shape_conflicts import find_conflict
from opgraft.ir.shape_rule import ShapeOperands, Unknowns, broadcast, is_opaque
from opgraft.ir.shape_rules import ELEMENTWISE, SAME_SHAPE, SHAPE_RULES, infer

__all__ = ["Extent", "Extents", "ShapeAnalysis", "analyze_shapes", "is_opaque"]

Extent: TypeAlias = "Size | None"
Extents: TypeAlias = "tuple[Extent, ...]"


class ShapeAnalysis:
    """Facts by value, each worked out when first asked for; rewrites keep values equal, so facts outlive them."""

    def __init__(
        self,
        program: Program,
        *,
        no_zeros: bool = False,
        trust_records: bool = False,
        conflict: onnx_ir.Node | None = None,
    ) -> None:
        self.no_zeros = no_zeros
        """Whether the facts are to hold only where no dim of any value is zero."""
        self.trust_records = trust_records
        """Whether recorded shapes fill in what the rules leave open."""
        self.conflict = conflict
        """A node that does not fit what follows, in a branch that may be taken: only inputs and constants are known."""
        self.contradictions: list[onnx_ir.Value] = []
        """Values whose recorded shape is not the one that follows from their inputs."""
        self._inputs = set(program.graph.inputs)
        self._straight = set(_straight_graphs(program.graph))
        self._unknowns = Unknowns()
        self._sizes: dict[onnx_ir.Value, Sizes | None] = {}
        self._integers: dict[onnx_ir.Value, Integers | None] = {}
        self._types: dict[onnx_ir.Value, onnx_ir.DataType | None] = {}
        # Sizes live as long as the facts, so that one object is asked of once: by identity, as dims hash slowly.
        self._interned: dict[tuple[int, ...], Sizes] = {}
        self._broadcast: dict[tuple[int, int], Sizes] = {}
        self._shapes: dict[int, Extents] = {}

    def sizes(self, value: onnx_ir.Value | None) -> Sizes | None:
        """The dims, or None when the rank is unknown. A size that nothing is known of has a name of its own, for
        which `is_opaque` holds: equal names are equal numbers all the same."""
        return None if value is None else self._find(value)

    def shape(self, value: onnx_ir.Value | None) -> Extents | None:
        """The dims in terms of the model's own names, None for those that are unknown."""
        sizes = self.sizes(value)
        if sizes is None:
            return None
        found = self._shapes.get(id(sizes))
        if found is None:
            found = self._shapes[id(sizes)] = tuple(None if is_opaque(d) else d for d in sizes)
        return found

    def integers(self, value: onnx_ir.Value | None) -> Integers | None:
        """The elements of a small integer tensor; sizes among them may be opaque."""
        if value is None:
            return None
        self._find(value)
        return self._integers.get(value)

    def content(self, value: onnx_ir.Value | None) -> Extents | None:
        """The elements of a small integer tensor in order, None for those that are unknown."""
        found = self.integers(value)
        if found is None:
            return None
        return tuple(None if e is None or is_opaque(e) else e for e in found.elements.reshape(-1).tolist())

    def static_content(self, value: onnx_ir.Value | None) -> list[int] | None:
        """The elements of a small integer tensor when all of them are numbers."""
        found = self.integers(value)
        return None if found is None else found.numbers()

    def dtype(self, value: onnx_ir.Value | None) -> onnx_ir.DataType | None:
        """The element type, recorded or inferred."""
        if value is None:
            return None
        self._find(value)
        return self._types.get(value, value.dtype)

    # -- working it out, without recursion: graphs are deeper than Python's stack ---------------------------------

    def _find(self, value: onnx_ir.Value) -> Sizes | None:
        if value not in self._sizes:
            self._visit(value)
        return self._sizes[value]

    def _visit(self, wanted: onnx_ir.Value) -> None:
        stack, sizes = [wanted], self._sizes
        while stack:
            value = stack[-1]
            if value in sizes:
                stack.pop()
                continue
            node = value.producer()
            if node is None or self.conflict is not None or _is_constant(node):
                self._start(value)
            else:
                missing = [v for v in _sources(node) if v is not None and v not in sizes]
                while missing and missing[-1].producer() is None:
                    self._start(missing.pop())
                if missing:
                    stack += missing
                    continue
                self._apply_rules(node)
            stack.pop()

    def _start(self, value: onnx_ir.Value) -> None:
        """A value that no operator computes: a constant, an input, or what a body is given."""
        tensor = constant_tensor(value)
        if tensor is not None:
            dims = tuple(tensor.shape.numpy())
            sizes = self._interned.setdefault(dims, dims)
            self._types[value] = tensor.dtype
            if tensor.size <= MAX_ELEMENTS and tensor.dtype in _FOLLOWED:
                self._integers[value] = integers_of(tensor.numpy(), tensor.dtype)
            self._sizes[value] = sizes
        elif value in self._inputs:
            self._sizes[value] = self._recorded(value)
        else:
            self._sizes[value] = None
        if value not in self._integers:
            self._integers[value] = unknown_integers(self._sizes[value], value.dtype)

    def _trusts(self, value: onnx_ir.Value) -> bool:
        """Bodies of functions and loops run with many shapes; what is recorded in them holds for one at most."""
        node = value.producer()
        return node is not None and node.graph in self._straight

    def _recorded(self, value: onnx_ir.Value) -> Sizes | None:
        if value.shape is None or not (value.type is None or isinstance(value.type, onnx_ir.TensorType)):
            return None
        return tuple(self._recorded_size(d) for d in value.shape)

    def _recorded_size(self, size: int | onnx_ir.SymbolicDim) -> Size:
        if isinstance(size, int):
            return size
        return parse_dim(size.value) if size.value else self._unknowns.fresh()

    def _apply_plain(self, node: onnx_ir.Node) -> bool:
        """The short way for the commonest nodes: elementwise on floats, of which no content is followed."""
        inputs, outputs = node.inputs, node.outputs
        n_inputs = len(inputs)
        if not 0 < n_inputs <= _PLAIN.get(node.op_type, 0) or len(outputs) != 1 or node.domain not in DEFAULT_DOMAINS:
            return False
        first, second = inputs[0], inputs[-1]
        if first is None or second is None:
            return False
        dtype = self._types.get(first) or first.dtype
        shape, other = self._sizes[first], self._sizes[second]
        if dtype is None or dtype in _FOLLOWED or shape is None or other is None:
            return False
        if n_inputs == 2:
            shape = self._broadcast.get((id(shape), id(other))) or self._join(shape, other)
        self._set(outputs[0], shape, outputs[0].dtype or dtype, None)
        return True

    def _join(self, left: Sizes, right: Sizes) -> Sizes:
        """The broadcast shape: the same object where it is one of the two, so that the next question is known."""
        joined = broadcast((left, right), self._unknowns)
        joined = left if joined == left else right if joined == right else joined
        self._broadcast[id(left), id(right)] = joined
        return joined

    def _apply_rules(self, node: onnx_ir.Node) -> None:
        if self._apply_plain(node):
            return
        outputs = node.outputs
        types: list[onnx_ir.DataType | None] = [None] * len(outputs)
        shapes: list[Sizes | None] = [None] * len(outputs)
        contents: list[Integers | None] = [None] * len(outputs)
        split = split_before(node) if is_op(node, "SequenceAt") else None
        if is_op(node, "If"):
            shapes, types = self._join_branches(node)
        elif split is not None and split.inputs[0] is not None:
            tensor = split.inputs[0]
            shapes, types = [_part_sizes(node, split, self._sizes[tensor])], [self._types.get(tensor)]
        elif node.op_type in SHAPE_RULES and node.domain in DEFAULT_DOMAINS and not _refers(node):
            inputs = list(node.inputs)
            types = infer_types(node, [None if v is None else self._types.get(v, v.dtype) for v in inputs])
            operands = ShapeOperands(
                node,
                [None if v is None else self._integers[v] for v in inputs],
                [None if v is None else self._sizes[v] for v in inputs],
                self._unknowns,
                self.no_zeros,
            )
            shapes = list(infer(operands))
            if types[0] is None or types[0] in _FOLLOWED:
                contents = follow(operands)
        for output, shape, dtype, content in zip(outputs, shapes, types, contents, strict=True):
            self._set(output, shape, output.dtype or dtype, content)

    def _set(
        self, value: onnx_ir.Value, shape: Sizes | None, dtype: onnx_ir.DataType | None, content: Integers | None
    ) -> None:
        if value.type is not None and not isinstance(value.type, onnx_ir.TensorType):
            shape = content = dtype = None  # `Value.dtype` of a sequence is that of its elements
        elif self.trust_records and self._trusts(value):
            shape = self._filled_in(shape, value)
        if content is not None:
            # The elements tell the shape, and more surely than the shape rule does.
            shape = tuple(content.elements.shape)
        self._sizes[value] = shape
        self._types[value] = dtype
        if content is None and dtype in _FOLLOWED:
            content = unknown_integers(shape, dtype)
        self._integers[value] = content

    def _filled_in(self, shape: Sizes | None, value: onnx_ir.Value) -> Sizes | None:
        recorded = self._recorded(value)
        if recorded is None or (shape is not None and len(shape) != len(recorded)):
            return shape
        if shape is None:
            return recorded
        return tuple(r if is_opaque(s) and not is_opaque(r) else s for s, r in zip(shape, recorded, strict=True))

    def _join_branches(self, node: onnx_ir.Node) -> tuple[list[Sizes | None], list[onnx_ir.DataType | None]]:
        branches = direct_subgraphs(node)
        shapes: list[Sizes | None] = []
        types: list[onnx_ir.DataType | None] = []
        for index in range(len(node.outputs)):
            ends = [b.outputs[index] for b in branches if index < len(b.outputs)]
            found = [self._sizes[v] for v in ends]
            first = found[0] if found else None
            known = [s for s in found if s is not None and first is not None and len(s) == len(first)]
            types.append(self._types.get(ends[0]) if ends else None)
            if first is None or len(known) != len(branches):
                shapes.append(None)
            else:
                shapes.append(
                    tuple(
                        d[0] if all(x == d[0] for x in d) else self._unknowns.fresh() for d in zip(*known, strict=True)
                    )
                )
        return shapes, types


def _straight_graphs(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Graph]:
    """The graph and the branches in it, whose nodes run once at most."""
    yield graph
    for node in graph:
        if node.attributes and is_op(node, "If"):
            for branch in direct_subgraphs(node):
                yield from _straight_graphs(branch)


_FOLLOWED = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL)


# Operators whose result has the type of the first operand and is as large as their operands broadcast: with how many.
_PLAIN = {
    **{name: 1 for name in SAME_SHAPE if has_type_of_first(name)},
    **{name: 2 for name in ELEMENTWISE if has_type_of_first(name)},
}


def _is_constant(node: onnx_ir.Node) -> bool:
    return node.op_type == "Constant" and constant_tensor(node.outputs[0]) is not None


def _sources(node: onnx_ir.Node) -> Sequence[onnx_ir.Value | None]:
    """What the shapes of a node's outputs follow from."""
    if is_op(node, "If"):
        return [*node.inputs, *(value for branch in direct_subgraphs(node) for value in branch.outputs)]
    if is_op(node, "SequenceAt"):
        split = split_before(node)
        return node.inputs if split is None else [*node.inputs, split.inputs[0]]
    return node.inputs


def _part_sizes(node: onnx_ir.Node, split: onnx_ir.Node, sizes: Sizes | None) -> Sizes | None:
    axis = split_axis(split, len(sizes)) if sizes is not None else None
    whole = sizes[axis] if sizes is not None and axis is not None else None
    if sizes is None or axis is None or not isinstance(whole, int):
        return None
    part = sequence_part(node, split, whole)
    if part is None:
        return None
    taken = () if part.is_squeezed else (part.end - part.start,)
    return (*sizes[:axis], *taken, *sizes[axis + 1 :])


def _refers(node: onnx_ir.Node) -> bool:
    return bool(node.attributes) and any(a.is_ref() for a in node.attributes.values())


def analyze_shapes(program: Program, *, no_zeros: bool = False) -> ShapeAnalysis:
    """Facts about every value of the program; values that passes make later are worked out when asked for.

    With `no_zeros` they hold where no dim of any value is zero, which tells more: `-1` of a Reshape that allows zeros
    stands for something else beside a zero, and slices end at zero. Good for asking what a graph means; rewrites hold
    for empty inputs too.

    Nothing is followed in a program with a branch that cannot run: what makes its shapes known to the runtime makes
    the runtime refuse it.
    """
    facts = _follow_all(program, no_zeros)
    conflict = find_conflict(program, facts)
    return facts if conflict is None else ShapeAnalysis(program, no_zeros=no_zeros, conflict=conflict)


def _follow_all(program: Program, no_zeros: bool) -> ShapeAnalysis:
    facts = ShapeAnalysis(program, no_zeros=no_zeros)
    open_records = False
    declared = {n for v in program.graph.inputs for d in facts.sizes(v) or () for n in _names(d)}
    answers: dict[tuple[int, int], tuple[bool, bool]] = {}
    for value in _computed_values(program):
        sizes = facts.sizes(value)
        recorded = value.shape
        if recorded is None:
            continue
        # The same sizes beside the same record, which many values share, are compared once; both stay as they are.
        key = id(sizes), id(recorded)
        found = answers.get(key)
        if found is None:
            found = answers[key] = _compare(sizes, recorded, declared)
        if found[0]:
            facts.contradictions.append(value)
        open_records |= found[1]
    if facts.contradictions or not open_records:
        return facts
    trusting = ShapeAnalysis(program, no_zeros=no_zeros, trust_records=True)
    for value in _computed_values(program):
        trusting.sizes(value)
    return trusting


def _computed_values(program: Program) -> Iterator[onnx_ir.Value]:
    for graph in program.scopes():
        for node in graph:
            yield from node.outputs


def _names(size: Size) -> Iterable[str]:
    return size.names if isinstance(size, Dim) else ()


def _tells(size: int | onnx_ir.SymbolicDim) -> bool:
    return isinstance(size, int) or bool(size.value)


def _compare(sizes: Sizes | None, recorded: onnx_ir.Shape, declared: set[str]) -> tuple[bool, bool]:
    """Whether a record contradicts the rules, and whether it tells what they leave open."""
    if _contradicts(sizes, recorded, declared):
        return True, False
    return False, sizes is None or any(is_opaque(s) and _tells(r) for s, r in zip(sizes, recorded, strict=True))


def _contradicts(sizes: Sizes | None, recorded: onnx_ir.Shape, declared: set[str]) -> bool:
    """Whether a record says something else than the rules: a number, or another of the inputs' own dims."""
    if sizes is None:
        return False
    if len(sizes) != len(recorded):
        return True
    for size, said in zip(sizes, recorded, strict=True):
        if is_opaque(size) or not _tells(said):
            continue
        if isinstance(said, int):
            if size != said:
                return True
        elif isinstance(size, Dim):
            other = parse_dim(said.value or "")
            if other != size and declared.issuperset(_names(other)):
                return True
    return False
