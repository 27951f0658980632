"""Shape operands spelled as constants: the target of Reshape with `0` and `-1`, that of Expand with `1`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir
from opgraft.ir.dims import Dim, Size, dim, floor_divide, multiply_all, never_negative
from opgraft.ir.integer_elements import Element
from opgraft.ir.program import Program, is_op
from opgraft.ir.shapes import ShapeAnalysis
from opgraft.passes._pass import NoMatch


def allows_zero(node: onnx_ir.Node) -> bool:
    attribute = node.attributes.get("allowzero")
    return attribute is not None and attribute.as_int() != 0


def nonempty_dims(program: Program, facts: ShapeAnalysis) -> frozenset[str]:
    """Dims that no run can have at 0: a Reshape without allowzero fails where a 0 stands beside its -1."""
    found: set[str] = set()
    for node in program.graph:
        if not is_op(node, "Reshape") or len(node.inputs) < 2 or allows_zero(node):
            continue
        target, data = facts.integers(node.inputs[1]), facts.sizes(node.inputs[0])
        elements = [] if target is None else target.elements.reshape(-1).tolist()
        if -1 not in elements:
            continue
        for index, element in enumerate(elements):
            if element == 0 and data is not None and index < len(data):
                element = data[index]
            elif isinstance(element, Dim) and (data is None or index >= len(data) or data[index] != element):
                continue  # at 0 it would copy the input's dim, which may be another number
            if isinstance(element, Dim):
                found.update(_factors(element))
    return frozenset(found)


def _factors(size: Dim) -> Iterator[str]:
    """The dims of a product; none of another expression."""
    if is_product(size):
        yield from size.names


def is_product(size: Dim) -> bool:
    """Whether the size is a number times dims, each once."""
    product = multiply_all(dim(name) for name in size.names)
    factor = floor_divide(size, product)
    return isinstance(factor, int) and factor * product == size


def is_nonempty(size: Size, nonempty: frozenset[str]) -> bool:
    """Whether the size is not 0 in any run that succeeds."""
    if isinstance(size, int):
        return size != 0
    return never_negative(size - 1) or (size.names <= nonempty and is_product(size))


def spell_reshape(
    data: Sequence[Size] | None,
    target: Sequence[Element],
    result: Sequence[Size] | None,
    *,
    zero_is_zero: bool,
    nonempty: frozenset[str],
) -> list[int] | NoMatch:
    """`target` for a Reshape without allowzero: 0 where it is the dim of `data` at the same place, at most one -1.

    A -1 of ours must not stand beside a dim that can be 0, where the runtime could not infer it; nor may one that was
    inferred under allowzero, which ONNX Runtime does leaving zeros out of both sides.
    """
    spelled: list[int] = []
    must_be_inferred = False
    for index, element in enumerate(target):
        same = data[index] if data is not None and index < len(data) else None
        wanted: Element = result[index] if element == -1 and result is not None else element
        if wanted is not None and same is not None and wanted == same and same != 0:
            spelled.append(same if isinstance(same, int) else 0)
        elif isinstance(wanted, int) and wanted > 0:
            spelled.append(wanted)
        elif element == 0:
            if zero_is_zero:
                return NoMatch("the target has a 0 that is no copy")
            spelled.append(0)
        else:
            must_be_inferred |= element != -1 or zero_is_zero
            spelled.append(-1)
    if spelled.count(-1) > 1:
        return NoMatch("{0} dims of the target are not known", None, spelled.count(-1))
    for index, number in enumerate(spelled if must_be_inferred else ()):
        copied = data[index] if number == 0 and data is not None and index < len(data) else number
        if not is_nonempty(copied, nonempty):
            return NoMatch("the dim {0} beside the unknown one may be 0", None, copied)
    return spelled


def spell_expand(data: Sequence[Size], target: Sequence[Element]) -> list[int] | NoMatch:
    """`target` for an Expand: 1 where `data` has the size already."""
    spelled: list[int] = []
    for index, element in enumerate(target):
        position = index - len(target) + len(data)
        size: Size = data[position] if position >= 0 else 1
        if element is not None and element == size:
            spelled.append(1)
        elif isinstance(element, int):
            if element < 0:
                return NoMatch("a negative size")
            spelled.append(element)
        elif isinstance(size, int) and size > 1:
            spelled.append(1)  # 1 and the size itself are all that can stand here
        else:
            return NoMatch("the size {0} at axis {1} is not that of the input", None, element, index)
    return spelled
