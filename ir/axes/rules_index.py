"""Relations of operators that pick, place, order or count elements by index."""

from __future__ import annotations

from opgraft.ir.axes.graph import STRETCHED
from opgraft.ir.axes.index_grid import Grid, grid_of, grid_of_array, is_row_major
from opgraft.ir.axes.rule import AxisRule, NodeAxes
from opgraft.ir.axes.views import relate_view
from opgraft.ir.dims import Size, multiply_all
from opgraft.ir.program import constant_array, is_op
from opgraft.ir.sequence_part import sequence_part, split_axis, split_before

_UNKNOWN = "the shape is not known"


def _gather(n: NodeAxes) -> None:
    data, indices, outs = n.operand(0), n.operand(1), n.output()
    if data is None or indices is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    if len(data) == 1 and len(indices) > 1 and _is_view(n, data[0], indices):
        relate_view(n, data, outs)
        n.all_same(indices, outs)
        return
    axis = n.int_attribute("axis", 0) % len(data)
    n.all_same(data[:axis], outs[:axis])
    n.all_same(indices, outs[axis : axis + len(indices)])
    n.all_same(data[axis + 1 :], outs[axis + len(indices) :])
    known = n.numbers(1)
    if len(indices) == 0:
        n.selected(data[axis], known[0] if known else None)
        return
    for index, target in zip(indices, outs[axis : axis + len(indices)], strict=True):
        if len(indices) == 1 or not n.graph.is_stretched(index):
            n.gathered(data[axis], target, known if len(indices) == 1 else None)


def _is_view(n: NodeAxes, data: int, indices: range) -> bool:
    """Whether all elements of a flat tensor are taken, in order."""
    sizes = n.sizes(indices)
    if multiply_all(sizes) != n.size(data):
        return False
    grid = grid_of(n.node.inputs[1], n.facts)
    return grid is not None and is_row_major(grid, sizes)


def _gather_elements(n: NodeAxes) -> None:
    data, indices, outs = n.operand(0), n.operand(1), n.output()
    if data is None or indices is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", 0) % len(data)
    n.all_same(indices, outs)
    for index, (source, target) in enumerate(zip(data, outs, strict=True)):
        if index == axis:
            n.gathered(source, target)
        else:
            n.placed(source, target, 0)


def _gather_nd(n: NodeAxes) -> None:
    data, indices, outs = n.operand(0), n.operand(1), n.output()
    if data is None or not indices or outs is None:
        n.opaque(_UNKNOWN)
        return
    batch = n.int_attribute("batch_dims", 0)
    depth = n.size(indices[-1])
    if not isinstance(depth, int):
        n.opaque(_UNKNOWN)
        return
    n.all_same(indices[:-1], outs[: len(indices) - 1])
    n.all_same(data[:batch], outs[:batch])
    n.reduced(indices[-1])
    for position, source in enumerate(data[batch : batch + depth]):
        for index in _varying(n, position, len(indices) - 1):
            if index >= batch:
                n.gathered(source, outs[index])
    n.all_same(data[batch + depth :], outs[len(indices) - 1 :])


def _varying(n: NodeAxes, position: int, rank: int) -> list[int]:
    """The dims along which one component of the index vectors varies: all, unless the indices are constant, or the
    components are put together by a concatenation of tensors that were stretched."""
    value = n.node.inputs[1]
    array = constant_array(value)
    if array is not None and position < array.shape[-1] and array.size:
        component = array[..., position]
        return [i for i in range(rank) if (component != component.take([0], axis=i)).any()]
    concat = value.producer() if value is not None else None
    if concat is None or not is_op(concat, "Concat") or position >= len(concat.inputs):
        return list(range(rank))
    parts = [n.graph.operand(concat, p) for p in range(len(concat.inputs))]
    if any(part is None or len(part) != rank + 1 or n.size(part[-1]) != 1 for part in parts):
        return list(range(rank))
    part = parts[position]
    return [index for index in range(rank) if part is not None and not n.graph.is_stretched(part[index])]


def _scatter_elements(n: NodeAxes) -> None:
    data, updates, outs = n.operand(0), n.operand(2), n.output()
    if data is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", 0) % len(data)
    n.all_same(data, outs)
    for position in (1, 2):
        numbers = updates if position == 2 else n.operand(1)
        for index, (source, target) in enumerate(zip(numbers or (), outs, strict=False)):
            if index == axis:
                n.mixed(source, target)
            else:
                n.placed(source, target, 0)


def _scatter_nd(n: NodeAxes) -> None:
    data, indices, updates, outs = n.operand(0), n.operand(1), n.operand(2), n.output()
    if data is None or not indices or updates is None or outs is None or not isinstance(n.size(indices[-1]), int):
        n.opaque(_UNKNOWN)
        return
    depth = n.size(indices[-1])
    if not isinstance(depth, int):
        return
    n.all_same(data, outs)
    n.reduced(indices[-1])
    n_places = len(indices) - 1
    written = updates[:n_places]
    for position, target in enumerate(outs[:depth]):
        grid = _component(n, position, depth, n_places)
        counted = [i for i in range(n_places) if grid is not None and grid.steps[i] != 0]
        # A negative index counts from the end.
        if (
            grid is not None
            and _is_count(grid.offset)
            and len(counted) < 2
            and all(grid.steps[i] == 1 for i in counted)
        ):
            for i in counted:
                n.placed(written[i], target, grid.offset)
                n.placed(indices[i], target, grid.offset)
            continue
        for source in (*indices[:-1], *written):
            n.scrambled(source, target)
    n.all_same(updates[n_places:], outs[depth:])


def _is_count(offset: Size) -> bool:
    return isinstance(offset, int) and offset >= 0


def _component(n: NodeAxes, position: int, depth: int, n_places: int) -> Grid | None:
    """One component of index vectors as a grid: of a constant, or of what was put side by side by a Concat."""
    value = n.node.inputs[1]
    array = constant_array(value)
    if array is not None:
        return grid_of_array(array[..., position])
    concat = value.producer() if value is not None else None
    if not is_op(concat, "Concat") or concat is None or len(concat.inputs) != depth:
        return None
    parts = [n.facts.sizes(part) for part in concat.inputs]
    if any(part is None or len(part) != n_places + 1 or part[-1] != 1 for part in parts):
        return None
    grid = grid_of(concat.inputs[position], n.facts)
    return None if grid is None else Grid(grid.offset, grid.steps[:-1])


def _tensor_scatter(n: NodeAxes) -> None:
    cache, update, outs = n.operand(0), n.operand(1), n.output()
    if cache is None or update is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", -2) % len(cache)
    n.all_same(cache, outs)
    for index, (source, target) in enumerate(zip(update, outs, strict=True)):
        if index == axis:
            n.mixed(source, target)
        else:
            n.same(source, target)
    lengths = n.operand(2)
    if lengths:
        n.same(lengths[0], outs[0])


def _top_k(n: NodeAxes) -> None:
    data = n.operand(0)
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if data is None or outs is None:
            n.opaque(_UNKNOWN)
            return
        axis = n.int_attribute("axis", -1) % len(data)
        for position, (source, target) in enumerate(zip(data, outs, strict=True)):
            if position == axis:
                n.mixed(source, target)
            else:
                n.same(source, target)


def _one_hot(n: NodeAxes) -> None:
    indices, outs = n.operand(0), n.output()
    if indices is None or outs is None:
        n.opaque(_UNKNOWN)
        return
    axis = n.int_attribute("axis", -1) % len(outs)
    n.all_same(indices, [target for index, target in enumerate(outs) if index != axis])
    n.created(outs[axis], "one place per class")


def _created(n: NodeAxes) -> None:
    """The dims of the result are counted, not taken from dims of the inputs."""
    for index in range(len(n.node.outputs)):
        outs = n.output(index)
        if outs is None:
            n.opaque(_UNKNOWN)
            return
        for target in outs:
            n.created(target, "made by counting")


def _filled(n: NodeAxes) -> None:
    """Every place holds the same number."""
    for target in n.output() or ():
        n.created(target, STRETCHED)


def _opaque(n: NodeAxes) -> None:
    n.opaque("which elements come out depends on the numbers")


def _sequence_at(n: NodeAxes) -> None:
    split, outs = split_before(n.node), n.output()
    ins = n.graph.operand(split, 0) if split is not None else None
    axis = split_axis(split, len(ins)) if split is not None and ins is not None else None
    if split is None or ins is None or outs is None or axis is None:
        n.opaque("an element of a sequence")
        return
    size = n.size(ins[axis])
    part = sequence_part(n.node, split, size) if isinstance(size, int) else None
    if part is None:
        n.opaque("an element of a sequence")
        return
    kept = [source for index, source in enumerate(ins) if index != axis or not part.is_squeezed]
    for source, target in zip(kept, outs, strict=True):
        if source == ins[axis]:
            n.sliced(source, target, part.start, 1)
        else:
            n.same(source, target)
    if part.is_squeezed:
        n.selected(ins[axis], part.start)


def _sequence(n: NodeAxes) -> None:
    """Sequences have no dims; what is taken from a split one says where it comes from."""
    used = [use.node for value in n.node.outputs for use in value.uses()]
    if not all(is_op(node, "SequenceAt") for node in used):
        n.opaque("a sequence")


INDEX_AXIS_RULES: dict[str, AxisRule] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "ScatterElements": _scatter_elements,
    "Scatter": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TensorScatter": _tensor_scatter,
    "TopK": _top_k,
    "OneHot": _one_hot,
    "ConstantOfShape": _filled,
    "SequenceAt": _sequence_at,
    "SplitToSequence": _sequence,
    **dict.fromkeys(("Range", "Shape", "Size", "Constant", "EyeLike"), _created),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow"), _created),
    **dict.fromkeys(("NonZero", "Compress", "Unique", "NonMaxSuppression"), _opaque),
}
