"""Shape arithmetic of a graph as arithmetic on Python numbers: it never goes through tensors.

What `Shape`, `Gather`, `Concat`, `Mul` ... do to small integer tensors is done here element by element, each element a
number or a node whose value is one. A rule returns None where a tensor operator has to do the work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from opgraft.ir.fx.call import Call
from opgraft.ir.fx.ops_view import both, either, negate
from opgraft.ir.fx.values import FOLLOWED, MAX_FOLLOWED, DataType, FxValue, Scalar, object_elements
from opgraft.ir.integer_contents import RANGES, Elements


def follow(call: Call) -> list[FxValue] | None:
    """The outputs of a node on small integer tensors, where all that matters is known element by element."""
    rule = _RULES.get(call.source.op_type)
    if rule is None:
        return None
    try:
        made = rule(call)
    except (ValueError, IndexError, OverflowError):  # operands that do not fit: the operator itself will say so
        return None
    if made is None:
        return None
    dtype = _result_type(call)
    parts = made if isinstance(made, list) else [made]
    if dtype not in FOLLOWED or not all(_fits(part, dtype) for part in parts):
        return None
    return [FxValue(call.builder, dtype, elements=p, sizes=tuple(p.shape)) for p in parts]


def _fits(elements: Elements, dtype: DataType) -> bool:
    low, high = RANGES[dtype]
    flat = elements.reshape(-1).tolist()
    return len(flat) <= MAX_FOLLOWED and all(
        e is not None and not (isinstance(e, int) and not low <= e <= high) for e in flat
    )


def _result_type(call: Call) -> DataType | None:
    op_type = call.source.op_type
    if op_type in ("Shape", "Size"):
        return DataType.INT64
    if op_type in _COMPARISONS:
        return DataType.BOOL
    if op_type == "Cast":
        return call.type_attribute("to")
    if op_type == "ConstantOfShape":
        return call.attributes["value"].as_tensor().dtype if "value" in call.attributes else None
    return call.dtype(1 if op_type == "Where" else 0)


def _elements(call: Call, index: int) -> Elements | None:
    if not call.has(index):
        return None
    value = call.value(index)
    return call.builder.elements(value) if value.dtype in FOLLOWED else None


def _all_elements(call: Call) -> list[Elements] | None:
    found = [_elements(call, i) for i in range(len(call.inputs))]
    present = [e for e in found if e is not None]
    return present if present and len(present) == len(found) else None


def _map(function: Callable[..., Scalar | None], arrays: list[Elements]) -> Elements | None:
    if np.broadcast_shapes(*(a.shape for a in arrays)) and max(a.size for a in arrays) > MAX_FOLLOWED:
        return None
    return np.asarray(np.frompyfunc(function, len(arrays), 1)(*arrays), dtype=object)


def _binary(make: Callable[[Call], Callable[[Any, Any], Scalar | None]]) -> Callable[[Call], Elements | None]:
    """A rule for one or more inputs, folded from the left."""

    def rule(call: Call) -> Elements | None:
        arrays = _all_elements(call)
        if arrays is None:
            return None
        function = make(call)
        return reduce(lambda a, b: None if a is None else _map(function, [a, b]), arrays[1:], arrays[0])  # type: ignore[arg-type, return-value]

    return rule


def _computed(function: Callable[..., Any]) -> Callable[[Call], Elements | None]:
    return _binary(lambda call: lambda a, b: call.builder.compute(function, a, b))


def _unary(function: Callable[..., Any]) -> Callable[[Call], Elements | None]:
    def rule(call: Call) -> Elements | None:
        elements = _elements(call, 0)
        return None if elements is None else _map(lambda a: call.builder.compute(function, a), [elements])

    return rule


def _modulo(call: Call) -> Elements | None:
    arrays = _all_elements(call)
    if arrays is None or call.int_attribute("fmod", 0) or any(e == 0 for e in arrays[1].reshape(-1).tolist()):
        return None
    return _map(lambda a, b: call.builder.compute(operator.mod, a, b), arrays)


def _shape(call: Call) -> Elements | None:
    rank = call.known_rank()
    if rank is None:
        return None
    end = call.int_attribute("end", rank)
    axes = list(range(rank))[call.int_attribute("start", 0) : end]
    return object_elements([call.size(0, axis) for axis in axes], [len(axes)])


def _size(call: Call) -> Elements | None:
    rank = call.known_rank()
    if rank is None:
        return None
    return object_elements([call.builder.product([call.size(0, axis) for axis in range(rank)])], [])


def _gather(call: Call) -> Elements | None:
    elements, indices = _elements(call, 0), call.numbers(1)
    if elements is None or indices is None or not elements.ndim:
        return None
    index = call.builder.elements(call.value(1))
    shape = index.shape if index is not None else None
    if shape is None:
        return None
    return np.asarray(
        np.take(elements, np.array(indices, dtype=np.int64).reshape(shape), call.int_attribute("axis", 0)), dtype=object
    )


def _concat(call: Call) -> Elements | None:
    arrays = _all_elements(call)
    return None if arrays is None else np.concatenate(arrays, call.int_attribute("axis", 0))


def _slice(call: Call) -> Elements | None:
    elements = _elements(call, 0)
    if elements is None:
        return None
    starts, ends = _numbers_of(call, "starts", 1), _numbers_of(call, "ends", 2)
    if starts is None or ends is None:
        return None
    axes = _numbers_of(call, "axes", 3) if call.has(3) or "axes" in call.attributes else list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    if axes is None or steps is None:
        return None
    parts = [slice(None)] * elements.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 0 and start < -elements.shape[axis]:
            return None  # Python takes nothing here, ONNX the first element
        parts[axis] = slice(start, end, step)
    return elements[tuple(parts)]


def _numbers_of(call: Call, name: str, index: int) -> list[int] | None:
    return call.ints_attribute(name) if name in call.attributes else call.numbers(index)


def _split(call: Call) -> Any:
    elements = _elements(call, 0)
    if elements is None:
        return None
    axis, count = call.int_attribute("axis", 0), len(call.source.outputs)
    sizes = _numbers_of(call, "split", 1)
    length = elements.shape[axis]
    if sizes is None:
        if call.has(1) or length % count:
            return None
        sizes = [length // count] * count
    return list(np.split(elements, np.cumsum(sizes)[:-1].tolist(), axis))


def _reshape(call: Call) -> Elements | None:
    elements, target = _elements(call, 0), call.numbers(1)
    if elements is None or target is None:
        return None
    if not call.int_attribute("allowzero", 0):
        target = [elements.shape[i] if t == 0 else t for i, t in enumerate(target)]
    return elements.reshape(target)


def _squeeze(call: Call) -> Elements | None:
    elements, axes = _elements(call, 0), _numbers_of(call, "axes", 1)
    if elements is None or (axes is None and call.has(1)):
        return None
    return np.squeeze(elements, None if axes is None else tuple(axes))


def _unsqueeze(call: Call) -> Elements | None:
    elements, axes = _elements(call, 0), _numbers_of(call, "axes", 1)
    return None if elements is None or axes is None else np.expand_dims(elements, tuple(axes))


def _transpose(call: Call) -> Elements | None:
    elements = _elements(call, 0)
    return None if elements is None else np.transpose(elements, call.ints_attribute("perm"))


def _cast(call: Call) -> Elements | None:
    elements, to = _elements(call, 0), call.type_attribute("to")
    if to not in FOLLOWED:
        return None
    if elements is None:
        return _cast_constant(call, to)
    if to != DataType.BOOL:
        if call.dtype(0) == DataType.BOOL:
            return _map(lambda a: call.builder.choose(a, 1, 0), [elements])
        return elements
    return _map(lambda a: call.builder.compute(operator.ne, a, 0), [elements])


def _cast_constant(call: Call, to: DataType) -> Elements | None:
    """Bounds of a range are sometimes written as floating-point numbers."""
    array = call.array(0)
    if array is None or array.size > MAX_FOLLOWED or not np.isfinite(array.astype(np.float64)).all():
        return None
    if to == DataType.BOOL:
        return np.asarray(array != 0).astype(object)
    return np.asarray(np.frompyfunc(lambda number: int(float(number)), 1, 1)(array), dtype=object)


def _where(call: Call) -> Elements | None:
    arrays = _all_elements(call)
    return None if arrays is None else _map(call.builder.choose, arrays)


def _constant_of_shape(call: Call) -> Elements | None:
    shape, value = call.numbers(0), call.attributes.get("value")
    if shape is None or value is None or np.prod(shape, dtype=float) > MAX_FOLLOWED:
        return None
    tensor = value.as_tensor()
    return np.full(shape, tensor.numpy().reshape(-1)[0].item(), dtype=object) if tensor.dtype in FOLLOWED else None


def _expand(call: Call) -> Elements | None:
    elements, shape = _elements(call, 0), call.numbers(1)
    if elements is None or shape is None:
        return None
    target = np.broadcast_shapes(elements.shape, tuple(shape))
    return np.broadcast_to(elements, target) if np.prod(target, dtype=float) <= MAX_FOLLOWED else None


def _range(call: Call) -> Elements | None:
    bounds = [call.numbers(i) for i in range(3)]
    if not all(b is not None and len(b) == 1 for b in bounds):
        return None
    start, limit, step = (b[0] for b in bounds if b is not None)
    if not step or len(range(start, limit, step)) > MAX_FOLLOWED:
        return None
    return object_elements(list(range(start, limit, step)), [len(range(start, limit, step))])


def _reduction(
    make: Callable[[Call], Callable[[Any, Any], Any]], start: int | None
) -> Callable[[Call], Elements | None]:
    def rule(call: Call) -> Elements | None:
        elements, axes = _elements(call, 0), _numbers_of(call, "axes", 1)
        if elements is None or elements.ndim > 1 or axes not in (None, [0], [-1], []):
            return None
        if (axes is None and call.has(1)) or (not axes and call.int_attribute("noop_with_empty_axes", 0)):
            return None
        flat = elements.reshape(-1).tolist()
        if not flat and start is None:
            return None
        function = make(call)
        total = reduce(function, flat) if flat else start
        return object_elements([total], [1] * elements.ndim if call.keeps_dims() else [])

    return rule


def _identity(call: Call) -> Elements | None:
    return _elements(call, 0)


_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not")
_RULES: dict[str, Callable[[Call], Any]] = {
    "Abs": _unary(abs),
    "Add": _binary(lambda call: call.builder.add),
    "And": _computed(both),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _binary(lambda call: call.builder.divide),
    "Equal": _binary(lambda call: call.builder.equal),
    "Expand": _expand,
    "Gather": _gather,
    "Greater": _computed(operator.gt),
    "GreaterOrEqual": _computed(operator.ge),
    "Identity": _identity,
    "Less": _computed(operator.lt),
    "LessOrEqual": _computed(operator.le),
    "Max": _computed(torch.sym_max),
    "Min": _computed(torch.sym_min),
    "Mod": _modulo,
    "Mul": _binary(lambda call: call.builder.multiply),
    "Neg": _unary(operator.neg),
    "Not": _unary(negate),
    "Or": _computed(either),
    "Range": _range,
    "ReduceMax": _reduction(lambda call: lambda a, b: call.builder.compute(torch.sym_max, a, b), None),
    "ReduceMin": _reduction(lambda call: lambda a, b: call.builder.compute(torch.sym_min, a, b), None),
    "ReduceProd": _reduction(lambda call: call.builder.multiply, 1),
    "ReduceSum": _reduction(lambda call: call.builder.add, 0),
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _binary(lambda call: call.builder.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
