"""Inputs to verify with: they respect what the graph says of each input's domain, and go to its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir
from opgraft.ir.program import Program, constant_tensor, is_op

# Dims bound together: the batch (axis 0 of the inputs) and all other symbolic dims. Odd, even, one, and the sizes that
# images and patch grids need; those that the model does not accept are dropped by the caller.
BINDINGS = ((2, 8), (1, 5), (3, 16), (1, 1), (2, 32), (1, 64), (1, 224))

_PASSTHROUGH = (
    "Identity",
    "Cast",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Expand",
    "Transpose",
    "Flatten",
    "Slice",
    "Concat",
)
_LOOKUPS = {"Gather": 1, "GatherElements": 1, "OneHot": 0, "EmbedLayerNormalization": 0}
_MAX_STEPS = 64


@dataclass(frozen=True)
class Domain:
    """What values an integer input may hold: `low <= value < high`."""

    low: int
    high: int
    is_flag: bool
    """A mask: zero or one."""


@dataclass(frozen=True)
class InputCase:
    """One set of inputs. `is_ordinary` ones carry no NaN, infinity or extreme magnitude."""

    name: str
    arrays: dict[str, np.ndarray]
    is_ordinary: bool = True


class UnsupportedInput(ValueError):
    """An input for which no values can be made up (a sequence, a map, an unknown rank)."""


def integer_domain(value: onnx_ir.Value) -> Domain:
    """What the graph does with an integer input: a table it indexes bounds it; a mask is zero or one."""
    bounds: list[int] = []
    seen = {value}
    pending = [value]
    while pending and len(seen) < _MAX_STEPS:
        current = pending.pop()
        for use in current.uses():
            node = use.node
            if _LOOKUPS.get(node.op_type) == use.idx and is_op(node, "Gather", "GatherElements"):
                rows = _table_rows(node)
                if rows is not None:
                    bounds.append(rows)
            elif is_op(node, *_PASSTHROUGH) and use.idx == 0 and node.outputs[0] not in seen:
                output = node.outputs[0]
                if output.dtype is not None and not output.dtype.is_integer():
                    continue
                seen.add(output)
                pending.append(output)
    if bounds:
        return Domain(0, min(bounds), False)
    return Domain(0, 2, True)


def _table_rows(gather: onnx_ir.Node) -> int | None:
    table = gather.inputs[0]
    axis = gather.attributes.get("axis")
    position = axis.as_int() if axis is not None else 0
    tensor = constant_tensor(table)
    shape = tensor.shape if tensor is not None else (table.shape if table is not None else None)
    if shape is None or not -len(shape) <= position < len(shape):
        return None
    rows = shape[position]
    return rows if isinstance(rows, int) and rows > 0 else None


def required_inputs(program: Program) -> list[onnx_ir.Value]:
    """Graph inputs without a default (an initializer of the same name)."""
    return [v for v in program.graph.inputs if not v.is_initializer()]


def bind_dims(program: Program, batch: int, other: int) -> dict[str, tuple[int, ...]]:
    """Concrete shapes of the inputs. Raises UnsupportedInput."""
    names: dict[str, int] = {}
    shapes = {}
    for value in required_inputs(program):
        if not isinstance(value.type, onnx_ir.TensorType):
            raise UnsupportedInput(f"input {value.name!r} is not a tensor")
        if value.shape is None:
            raise UnsupportedInput(f"input {value.name!r} has no known rank")
        dims = []
        for axis, dim in enumerate(value.shape):
            if isinstance(dim, int):
                dims.append(dim)
                continue
            name = dim.value
            default = batch if axis == 0 and len(value.shape) > 1 else other
            dims.append(names.setdefault(name, default) if name else default)
        shapes[value.name or ""] = tuple(dims)
    return shapes


def n_symbolic_dims(program: Program) -> int:
    return sum(not isinstance(d, int) for v in required_inputs(program) for d in v.shape or ())


def input_cases(program: Program, *, seed: int = 0, limit: int | None = None) -> list[InputCase]:
    """Cases in order of importance; the caller drops those that the original model rejects.

    Raises UnsupportedInput when no inputs can be made up.
    """
    rng = np.random.default_rng(seed)
    domains = {
        v.name or "": integer_domain(v)
        for v in required_inputs(program)
        if v.dtype is not None and v.dtype.is_integer()
    }
    bindings = BINDINGS if n_symbolic_dims(program) else BINDINGS[:1]
    cases: list[InputCase] = []
    if program.example_inputs:
        cases.append(InputCase("example", dict(program.example_inputs)))
    for batch, other in bindings:
        shapes = bind_dims(program, batch, other)
        label = f"batch {batch}, others {other}" if len(bindings) > 1 else "declared shapes"
        cases += [
            InputCase(f"{style}, {label}", _arrays(program, shapes, domains, style, rng), style not in _UNUSUAL)
            for style in _styles(program, domains)
        ]
    return cases[:limit]


_UNUSUAL = ("not finite", "extreme")


def _styles(program: Program, domains: Mapping[str, Domain]) -> Iterator[str]:
    yield "random"
    floats = [v for v in required_inputs(program) if v.dtype is not None and v.dtype.is_floating_point()]
    if any(d.is_flag for d in domains.values()) or any(
        v.dtype == onnx_ir.DataType.BOOL for v in required_inputs(program)
    ):
        yield "padded right"
        yield "padded left"
        yield "first row masked"
    if any(not d.is_flag for d in domains.values()):
        yield "edges"
    if floats:
        yield "signed zeros"
        yield "extreme"
        yield "not finite"


def _arrays(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    domains: Mapping[str, Domain],
    style: str,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    arrays = {}
    for value in required_inputs(program):
        name, dtype = value.name or "", value.dtype
        if dtype is None:
            raise UnsupportedInput(f"input {name!r} has no type")
        arrays[name] = _array(dtype, shapes[name], domains.get(name), style, rng)
    return arrays


def _array(
    dtype: onnx_ir.DataType, shape: tuple[int, ...], domain: Domain | None, style: str, rng: np.random.Generator
) -> np.ndarray:
    if dtype == onnx_ir.DataType.STRING:
        return rng.choice(np.array(["", "a", "bc", "opgraft"], dtype=object), size=shape)
    if dtype == onnx_ir.DataType.BOOL:
        return _mask(shape, style, rng).astype(bool)
    if domain is not None:
        if domain.is_flag:
            return _mask(shape, style, rng).astype(dtype.numpy())
        numbers = rng.integers(domain.low, domain.high, size=shape)
        if style == "edges" and numbers.size:
            flat = numbers.reshape(-1)
            flat[0], flat[-1] = domain.high - 1, domain.low
        return numbers.astype(dtype.numpy())
    if dtype in (onnx_ir.DataType.COMPLEX64, onnx_ir.DataType.COMPLEX128):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype.numpy())
    return float_array(shape, style, rng).astype(dtype.numpy())


def float_array(shape: tuple[int, ...], style: str, rng: np.random.Generator) -> np.ndarray:
    """Normal numbers, with what the style adds: signed zeros, large magnitudes, NaN and infinities."""
    numbers = rng.standard_normal(shape)
    if not numbers.size:
        return numbers
    flat = numbers.reshape(-1)
    if style == "signed zeros":
        flat[::2] = 0.0
        flat[::4] = -0.0
    elif style == "extreme":
        flat[::3] *= 1e4
        flat[1::5] *= 1e-4
    elif style == "not finite":
        flat[0] = np.nan
        flat[flat.size // 3] = np.inf
        flat[2 * flat.size // 3] = -np.inf
    return flat.reshape(shape)


def _mask(shape: tuple[int, ...], style: str, rng: np.random.Generator) -> np.ndarray:
    mask = np.ones(shape, dtype=np.int64)
    if not shape or not mask.size:
        return mask
    length = shape[-1]
    rows = mask.reshape(-1, length)
    for index, row in enumerate(rows):
        keep = max(1, length - 1 - index) if length > 1 else 1
        if style == "padded right":
            row[keep:] = 0
        elif style == "padded left":
            row[: length - keep] = 0
        elif style == "first row masked":
            row[:] = 0 if index == 0 else 1
    return mask
