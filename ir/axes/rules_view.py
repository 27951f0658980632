"""Relations of operators that move elements without changing them, by shape."""

from __future__ import annotations

from collections.abc import Sequence

from opgraft.ir.axes.graph import STRETCHED, Part
from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.axes.views import relate_view
from opgraft.ir.dims import Size, floor_divide

_UNKNOWN = "the shape is not known"


def _ranks(n: NodeAxes) -> tuple[range, range] | None:
    ins, outs = n.operand(0), n.output()
    if ins is None or outs is None:
        n.opaque(_UNKNOWN)
        return None
    return ins, outs


def _reshape(n: NodeAxes) -> None:
    if (found := _ranks(n)) is not None:
        relate_view(n, *found)


def _unsqueeze(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    axes = n.ints("axes", 1)
    if axes is None:
        relate_view(n, ins, outs)
        return
    new = {a % len(outs) for a in axes}
    n.all_same(ins, [target for index, target in enumerate(outs) if index not in new])
    for index in sorted(new):
        n.created(outs[index], "a dim of size 1")


def _squeeze(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    axes = n.ints("axes", 1)
    if axes is None and len(n.node.inputs) > 1 and n.node.inputs[1] is not None:
        relate_view(n, ins, outs)
        return
    gone = {a % len(ins) for a in axes} if axes is not None else {i for i, d in enumerate(ins) if n.size(d) == 1}
    n.all_same([source for index, source in enumerate(ins) if index not in gone], outs)
    for index in sorted(gone):
        n.selected(ins[index], 0)


def _transpose(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    order = n.ints_attribute("perm") or list(reversed(range(len(ins))))
    for target, source in zip(outs, order, strict=True):
        n.same(ins[source], target)


def _expand(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    n.broadcast(ins, outs)
    for target in outs[: len(outs) - len(ins)]:
        n.created(target, STRETCHED)


def _tile(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    for source, target in zip(*found, strict=True):
        if n.size(source) == n.size(target):
            n.same(source, target)
        elif n.size(source) == 1:
            n.aligned(source, target)
        else:
            _repeat(n, source, target)


def _repeat(n: NodeAxes, source: int, target: int) -> None:
    """Repetitions one after the other: the index is the least significant digit."""
    size = n.size(source)
    n.part(source, target, Part(1, 1, size))
    repeats = floor_divide(n.size(target), size) if size != 0 else 0
    if repeats * size == n.size(target):
        atom = n.graph.add_digit(n.graph.axes[target].value, repeats)
        n.created(atom, STRETCHED)
        n.part(atom, target, Part(1, size, repeats))
        n.digits.merge((atom, source), target)


def _concat(n: NodeAxes) -> None:
    outs = n.output()
    if outs is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", 0) % len(outs) if len(outs) else 0
    offset: Size = 0
    for position in range(len(n.node.inputs)):
        ins = n.operand(position)
        if ins is None or len(ins) != len(outs):
            n.opaque(_UNKNOWN)
            return
        for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
            if index == axis:
                n.placed(source, target, offset)
            else:
                n.same(source, target)
        offset = offset + n.size(ins[axis])


def _split(n: NodeAxes) -> None:
    ins = n.operand(0)
    if ins is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", 0) % len(ins) if len(ins) else 0
    start: Size = 0
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            n.opaque(_UNKNOWN)
            return
        for position, (source, target) in enumerate(zip(ins, outs, strict=True)):
            if position == axis:
                n.sliced(source, target, start, 1)
            else:
                n.same(source, target)
        start = start + n.size(outs[axis])


def _slice(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    starts = n.ints_attribute("starts") or n.elements(1)
    axes = n.ints("axes", 3)
    steps = n.ints("steps", 4)
    if starts is None or (axes is None and len(n.node.inputs) > 3 and n.node.inputs[3] is not None):
        n.opaque("the slice is not known")
        return
    where = [a % len(ins) for a in axes] if axes is not None else list(range(len(starts)))
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        if index not in where:
            n.same(source, target)
            continue
        place = where.index(index)
        step = 1 if len(n.node.inputs) <= 4 or n.node.inputs[4] is None else None
        step = steps[place] if steps is not None else step
        n.sliced(source, target, _start(starts[place], step, n.size(source)), step)


def _start(start: Size | None, step: int | None, size: Size) -> Size | None:
    """The first index taken, as the operator clamps it; None when that is not decided."""
    if step is None or start is None:
        return None
    if isinstance(start, int) and start < 0:
        start = start + size
        if isinstance(start, int):
            start = max(start, 0 if step > 0 else -1)
    if isinstance(start, int) and isinstance(size, int):
        start = min(start, size if step > 0 else size - 1)
    elif isinstance(start, int) and step < 0:
        # "From the end", however it is spelt, unless the dim is longer than the start.
        start = size - 1 if start > 1 << 30 else None
    return start


def _pad(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    pads: Sequence[Size | None] | None = n.ints_attribute("pads") or n.ints_attribute("paddings") or n.elements(1)
    given = n.numbers(3) if len(n.node.inputs) > 3 and n.node.inputs[3] is not None else list(range(len(ins)))
    axes = None if given is None else [a % len(ins) for a in given]
    constant = n.text_attribute("mode", "constant") == "constant"
    for index, (source, target) in enumerate(zip(ins, outs, strict=True)):
        if n.size(source) == n.size(target) and axes is not None and _pads_nothing(pads, axes, index):
            n.same(source, target)
        elif not constant or pads is None or axes is None or index not in axes:
            n.gathered(source, target)
        else:
            n.placed(source, target, pads[axes.index(index)])


def _pads_nothing(pads: Sequence[Size | None] | None, axes: list[int], index: int) -> bool:
    """Whether a dim that keeps its size is also not shifted."""
    if index not in axes:
        return True
    return pads is not None and pads[axes.index(index)] == 0


def _depth_to_space(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    n.same(ins[0], outs[0])
    # The channel holds (block, block, channel) or (channel, block, block); each spatial dim gains one of the blocks.
    for target in outs[1:]:
        n.scrambled(ins[1], target)
    block = n.int_attribute("blocksize", 1)
    for source, target in zip(ins[2:], outs[2:], strict=True):
        n.part(source, target, Part(1, block, n.size(source)))


def _space_to_depth(n: NodeAxes) -> None:
    if (found := _ranks(n)) is None:
        return
    ins, outs = found
    n.same(ins[0], outs[0])
    n.scrambled(ins[1], outs[1])
    block = n.int_attribute("blocksize", 1)
    for source, target in zip(ins[2:], outs[2:], strict=True):
        n.part(source, target, Part(block, 1, n.size(target)))
        n.scrambled(source, outs[1])


VIEW_AXIS_RULES: dict[str, AxisRule] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
