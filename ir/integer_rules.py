"""What each operator on small integer tensors computes, where its semantics leave no doubt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeAlias

import numpy as np
import onnx_ir
from opgraft.ir.dims import Size, maximum, minimum, multiply_all
from opgraft.ir.integer_contents import (
    BOOL,
    INT64,
    MAX_ELEMENTS,
    RANGES,
    Elements,
    Integers,
    Operands,
    object_array,
    unknown_integers,
)
from opgraft.ir.integer_elements import (
    Element,
    absolute,
    as_truth,
    both,
    divide,
    either,
    equal,
    less,
    modulo,
    negate_truth,
    sign,
)
from opgraft.ir.integer_views import reshape, squeeze, transpose, unsqueeze
from opgraft.ir.program import DEFAULT_DOMAINS, constant_array

Result: TypeAlias = "Integers | Sequence[Integers | None] | None"
Rule: TypeAlias = Callable[[Operands], Result]


def follow(operands: Operands) -> list[Integers | None]:
    """The contents of a node's outputs, as far as the rules here tell."""
    node = operands.node
    rule = _RULES.get(node.op_type) if node.domain in DEFAULT_DOMAINS else None
    if rule is None or any(a.is_ref() for a in node.attributes.values()):
        return [None] * len(node.outputs)
    result = rule(operands)
    results = [result] if result is None or isinstance(result, Integers) else list(result)
    followed = [None if r is None or r.elements.size > MAX_ELEMENTS else _in_range(r) for r in results]
    return followed + [None] * (len(node.outputs) - len(followed))


def has_rule(node: onnx_ir.Node) -> bool:
    return node.op_type in _RULES and node.domain in DEFAULT_DOMAINS


def _in_range(integers: Integers) -> Integers:
    low, high = RANGES[integers.dtype]
    elements = integers.elements
    if all(e is None or not isinstance(e, int) or low <= e <= high for e in elements.reshape(-1).tolist()):
        return integers
    kept = [None if isinstance(e, int) and not low <= e <= high else e for e in elements.reshape(-1).tolist()]
    return Integers(object_array(kept, elements.shape), integers.dtype)


def _map(function: Callable[..., Element], arrays: Sequence[Elements]) -> Elements | None:
    try:
        return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), dtype=object)
    except ValueError:  # shapes that do not broadcast: the runtime will say so
        return None


def _known(function: Callable[..., Element]) -> Callable[..., Element]:
    """The function of elements, unknown when one of them is."""
    return lambda *elements: None if any(e is None for e in elements) else function(*elements)


def _elementwise(
    function: Callable[..., Element], dtype: onnx_ir.DataType | None = None, *, knows_none: bool = False
) -> Rule:
    mapped = function if knows_none else _known(function)

    def rule(operands: Operands) -> Result:
        contents = [_content_or_blank(operands, i) for i in range(len(operands.node.inputs))]
        present = [c for c in contents if c is not None]
        if len(present) != len(contents) or not present:
            return None
        if len({c.dtype for c in present}) != 1:
            return None
        elements = _map(mapped, [c.elements for c in present])
        return None if elements is None else Integers(elements, dtype or present[0].dtype)

    return rule


def _folded(function: Callable[[Size, Size], Element]) -> Rule:
    """Min, Max and Sum take any number of inputs."""
    known = _known(function)
    return _elementwise(lambda *elements: reduce(known, elements), knows_none=True)


def _content_or_blank(operands: Operands, index: int) -> Integers | None:
    content = operands.content(index)
    if content is not None or not operands.is_present(index):
        return content
    value = operands.node.inputs[index]
    return unknown_integers(operands.shape(index), value.dtype if value is not None else None)


def _mod(operands: Operands) -> Result:
    return None if operands.int_attribute("fmod", 0) else _elementwise(modulo)(operands)


def _where(operands: Operands) -> Result:
    condition, left, right = (_content_or_blank(operands, i) for i in range(3))
    if condition is None or left is None or right is None or left.dtype != right.dtype:
        return None

    def choose(truth: Element, a: Element, b: Element) -> Element:
        if truth is None:
            return a if a is not None and b is not None and a == b else None
        return a if truth else b

    elements = _map(choose, [condition.elements, left.elements, right.elements])
    return None if elements is None else Integers(elements, left.dtype)


def _cast(operands: Operands) -> Result:
    content, target = operands.content(0), onnx_ir.DataType(operands.int_attribute("to", 0))
    if target not in RANGES:
        return None
    if content is None:
        return _cast_constant(operands.node.inputs[0], target)
    if target != BOOL or content.dtype == BOOL:
        return Integers(content.elements, target)
    elements = _map(_known(as_truth), [content.elements])
    return None if elements is None else Integers(elements, BOOL)


def _cast_like(operands: Operands) -> Result:
    like = operands.content(1)
    if like is None:
        return None
    content = operands.content(0)
    if content is None:
        return _cast_constant(operands.node.inputs[0], like.dtype)
    return Integers(content.elements, like.dtype) if like.dtype != BOOL else None


def _cast_constant(value: onnx_ir.Value | None, target: onnx_ir.DataType) -> Result:
    """Whole numbers that an exporter wrote as floats: the bounds of a range."""
    array = constant_array(value, limit=MAX_ELEMENTS)
    if array is None or array.dtype.kind != "f" or target == BOOL:
        return None
    low, high = RANGES[target]
    if not all(float(e).is_integer() and low <= float(e) <= high for e in array.reshape(-1).tolist()):
        return None
    return Integers(object_array([int(e) for e in array.reshape(-1).tolist()], array.shape), target)


def _shape(operands: Operands) -> Result:
    shape = operands.shape(0)
    if shape is None:
        return None
    # Negative bounds count from the end and are clamped, as Python's do.
    end = operands.node.attributes.get("end")
    part = shape[operands.int_attribute("start", 0) : end.as_int() if end is not None else None]
    return Integers(object_array(part, [len(part)]), INT64)


def _size(operands: Operands) -> Result:
    shape = operands.shape(0)
    return None if shape is None else Integers(object_array([multiply_all(shape)], []), INT64)


def _gather(operands: Operands) -> Result:
    content, indices = _content_or_blank(operands, 0), operands.content(1)
    positions = operands.numbers(1)
    if content is None or indices is None or positions is None or not content.elements.ndim:
        return None
    axis = operands.axis(content.elements.ndim)
    if axis is None:
        return None
    length = content.elements.shape[axis]
    if not all(-length <= p < length for p in positions):
        return None
    index = np.array(positions, dtype=np.int64).reshape(indices.elements.shape)
    return Integers(np.asarray(np.take(content.elements, index, axis), dtype=object), content.dtype)


def _concat(operands: Operands) -> Result:
    contents = [_content_or_blank(operands, i) for i in range(len(operands.node.inputs))]
    present = [c for c in contents if c is not None]
    if len(present) != len(contents) or not present or sum(c.elements.size for c in present) > MAX_ELEMENTS:
        return None
    rank = present[0].elements.ndim
    axis = operands.axis(rank)
    if axis is None or any(c.elements.ndim != rank or c.dtype != present[0].dtype for c in present):
        return None
    try:
        return Integers(np.concatenate([c.elements for c in present], axis), present[0].dtype)
    except ValueError:
        return None


def slice_of(rank: int, operands: Operands) -> list[slice] | None:
    """The node Slice as Python slices, one per axis; None when its bounds are not numbers."""
    starts, ends = operands.ints("starts", 1), operands.ints("ends", 2)
    axes, steps = operands.ints("axes", 3), operands.ints("steps", 4)
    if starts is None or ends is None or len(starts) != len(ends):
        return None
    if (axes is None and operands.is_present(3)) or (steps is None and operands.is_present(4)):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(axes) == len(steps) == len(starts) or 0 in steps or not all(-rank <= a < rank for a in axes):
        return None
    slices = [slice(None)] * rank
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        slices[axis % rank] = slice(start, end, step)
    return slices


def is_plain_slice(part: slice, length: int) -> bool:
    """Backwards from before the first element, Python takes nothing and the runtime takes the first."""
    return part.step is None or part.step > 0 or part.start >= -length


def _slice(operands: Operands) -> Result:
    content = _content_or_blank(operands, 0)
    if content is None:
        return None
    slices = slice_of(content.elements.ndim, operands)
    if slices is None:
        return None
    lengths = content.elements.shape
    if not all(is_plain_slice(s, n) for s, n in zip(slices, lengths, strict=True)):
        return None
    return Integers(content.elements[tuple(slices)], content.dtype)


def _split(operands: Operands) -> Result:
    content = operands.content(0)
    if content is None or not content.elements.ndim:
        return None
    axis = operands.axis(content.elements.ndim)
    if axis is None:
        return None
    sizes = split_sizes(operands, content.elements.shape[axis])
    if sizes is None or sum(sizes) != content.elements.shape[axis]:
        return None
    parts = np.split(content.elements, np.cumsum(sizes)[:-1].tolist(), axis)
    return [Integers(part, content.dtype) for part in parts]


def split_sizes(operands: Operands, length: int) -> list[int] | None:
    """The lengths of Split's outputs along its axis."""
    sizes = operands.ints("split", 1)
    if sizes is not None:
        return sizes
    if operands.is_present(1):
        return None
    n_outputs = len(operands.node.outputs)
    part = -(-length // n_outputs)
    last = length - part * (n_outputs - 1)
    # Uneven parts exist since opset 18, with num_outputs.
    if last != part and (last <= 0 or "num_outputs" not in operands.node.attributes):
        return None
    return [part] * (n_outputs - 1) + [last]


def _expand(operands: Operands) -> Result:
    content, target = _content_or_blank(operands, 0), operands.numbers(1)
    if content is None or target is None:
        return None
    try:
        shape = np.broadcast_shapes(content.elements.shape, tuple(target))
    except ValueError:
        return None
    if np.prod(shape, dtype=float) > MAX_ELEMENTS:
        return None
    return Integers(np.broadcast_to(content.elements, shape), content.dtype)


def _constant_of_shape(operands: Operands) -> Result:
    target, value = operands.numbers(0), operands.node.attributes.get("value")
    if target is None or value is None or any(t < 0 for t in target):
        return None
    tensor = value.as_tensor()
    if tensor.dtype not in RANGES or tensor.size != 1 or np.prod(target, dtype=float) > MAX_ELEMENTS:
        return None
    element = int(tensor.numpy().reshape(-1)[0])
    return Integers(np.full(tuple(target), element, dtype=object), tensor.dtype)


def _range(operands: Operands) -> Result:
    contents = [operands.content(i) for i in range(3)]
    bounds = [operands.numbers(i) for i in range(3)]
    if contents[0] is None or any(b is None or len(b) != 1 for b in bounds):
        return None
    start, limit, step = (b[0] for b in bounds if b is not None)
    if step == 0 or -(-(limit - start) // step) > MAX_ELEMENTS:
        return None
    numbers = list(range(start, limit, step))
    return Integers(object_array(numbers, [len(numbers)]), contents[0].dtype)


def _reduction(function: Callable[[Size, Size], Element], start: int | None) -> Rule:
    known = _known(function)

    def combine(row: Sequence[Element]) -> Element:
        elements = [start, *row] if start is not None else list(row)
        return reduce(known, elements) if elements else None

    def rule(operands: Operands) -> Result:
        content, axes = operands.content(0), operands.ints("axes", 1)
        if content is None or (axes is None and operands.is_present(1)):
            return None
        rank = content.elements.ndim
        if not axes and operands.int_attribute("noop_with_empty_axes", 0):
            return content
        if any(not -rank <= a < rank for a in axes or ()):
            return None
        reduced = {a % rank for a in axes} if axes else set(range(rank))
        kept = [i for i in range(rank) if i not in reduced]
        lengths = content.elements.shape
        n_rows = int(np.prod([lengths[i] for i in kept], dtype=int))
        n_columns = content.elements.size // n_rows if n_rows else 0
        rows = content.elements.transpose([*kept, *sorted(reduced)]).reshape(n_rows, n_columns)
        results = [combine(row) for row in rows.tolist()]
        keep = operands.int_attribute("keepdims", 1) == 1
        shape = [1 if i in reduced else lengths[i] for i in range(rank) if keep or i not in reduced]
        return Integers(object_array(results, shape), content.dtype)

    return rule


_RULES: dict[str, Rule] = {
    "Shape": _shape,
    "Size": _size,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Identity": lambda operands: operands.content(0),
    "Gather": _gather,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Reshape": reshape,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Transpose": transpose,
    "Expand": _expand,
    "ConstantOfShape": _constant_of_shape,
    "Range": _range,
    "Where": _where,
    "Mod": _mod,
    "Add": _elementwise(lambda a, b: a + b),
    "Sub": _elementwise(lambda a, b: a - b),
    "Mul": _elementwise(lambda a, b: a * b),
    "Div": _elementwise(divide),
    "Min": _folded(minimum),
    "Max": _folded(maximum),
    "Neg": _elementwise(lambda a: -a),
    "Abs": _elementwise(absolute),
    "Sign": _elementwise(sign),
    "Equal": _elementwise(equal, BOOL),
    "Less": _elementwise(less, BOOL),
    "Greater": _elementwise(lambda a, b: less(b, a), BOOL),
    "LessOrEqual": _elementwise(lambda a, b: negate_truth(less(b, a)), BOOL),
    "GreaterOrEqual": _elementwise(lambda a, b: negate_truth(less(a, b)), BOOL),
    "Not": _elementwise(lambda a: 1 - a, BOOL),
    "And": _elementwise(both, BOOL, knows_none=True),
    "Or": _elementwise(either, BOOL, knows_none=True),
    "ReduceProd": _reduction(lambda a, b: a * b, 1),
    "ReduceSum": _reduction(lambda a, b: a + b, 0),
    "ReduceMax": _reduction(maximum, None),
    "ReduceMin": _reduction(minimum, None),
}

INTEGER_OPERATORS = tuple(_RULES)
"""Operators whose results on small integer tensors are followed."""
