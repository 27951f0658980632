"""A fused chain of elementwise operators as one kernel: the region, its NumPy reference, its TIR schedule.

Shapes: a region computes on `[rows, columns]`, the leading dims of its value flattened. An operand is
`FULL` `[rows, columns]`, `ROW` `[columns]` or `SCALAR` `[1]`; every output is full. Both sizes are arguments
of the kernel, so one kernel serves every shape.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from opgraft.kernels.elementwise_ops import OPS, Array, Attribute, Term
from opgraft.kernels.lanes import Lanes

LANES = 16
# One AVX-512 register of float32; LLVM splits it into two or four registers on narrower processors.

# The parser of TVMScript text binds I and T by itself; the comments make the text importable by hand.
_HEADER = (
    "# from tvm.script import ir as I",
    "# from tvm.script import tirx as T",
    "@I.ir_module",
    "class M:",
)


class Layout(IntEnum):
    """How an operand spreads over `[rows, columns]`; the values are known to the bridge."""

    FULL = 0
    ROW = 1
    SCALAR = 2


@dataclass(frozen=True)
class Step:
    """One operator; `arguments` index the region's values: operands, then constants, then steps."""

    op: str
    arguments: tuple[int | None, ...]
    """None stands for an optional input left out."""
    attributes: tuple[tuple[str, Attribute], ...] = ()
    """Every attribute of the operator, defaults filled in, sorted by name."""


@dataclass(frozen=True)
class ElementwiseRegion:
    """A DAG of elementwise steps in topological order, with one or more of its values as outputs."""

    operands: tuple[Layout, ...]
    constants: tuple[float, ...]
    """Scalars compiled into the kernel: float32 values, finite and not zero (see `inlinable`)."""
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    @property
    def first_constant(self) -> int:
        return len(self.operands)

    @property
    def first_step(self) -> int:
        return len(self.operands) + len(self.constants)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that name the region's meaning, the same on every machine."""
        constants = [np.float32(value).tobytes().hex() for value in self.constants]
        meaning = repr(([int(layout) for layout in self.operands], constants, self.steps, self.outputs))
        return hashlib.sha256(meaning.encode()).hexdigest()[:16]

    @property
    def symbol(self) -> str:
        """The kernel's name in the object file, also the operator's name in `opgraft.kernels`."""
        return f"elementwise_{self.digest}"


def inlinable(value: float) -> bool:
    """Whether a constant may become a literal: TVM folds `x * 0.0` to 0 and `x + 0.0` to x, whatever x is."""
    return bool(np.isfinite(value)) and value != 0


def evaluate(region: ElementwiseRegion, operands: Sequence[Array]) -> list[Array]:
    """The region in NumPy, in the dtype of `operands`; float64 ones give the reference for the kernel."""
    if len(operands) != len(region.operands):
        raise ValueError(f"{len(operands)} operands for a region of {len(region.operands)}")
    dtype = operands[0].dtype.type
    values: list[Array] = [*operands, *(np.asarray(dtype(value)) for value in region.constants)]
    for step in region.steps:
        arguments = [None if index is None else values[index] for index in step.arguments]
        with np.errstate(all="ignore"):
            values.append(np.asarray(OPS[step.op].reference(arguments, dict(step.attributes))))
    return [values[index] for index in region.outputs]


def schedule(regions: Sequence[ElementwiseRegion]) -> str:
    """TVMScript of a module with one kernel per region: vectors of 16 along a row, then a scalar tail.

    Buffers state `align=4`: TVM otherwise assumes 64-byte alignment and emits aligned loads, which crash
    the process on memory that is not (NumPy's, for one, and hence a session's inputs).
    """
    lines = [line for region in regions for line in _kernel(region)]
    return "\n".join([*_HEADER, *lines]) + "\n"


def _kernel(region: ElementwiseRegion) -> list[str]:
    names = [f"a{index}" for index in range(len(region.operands))]
    results = [f"b{index}" for index in range(len(region.outputs))]
    layouts = [*region.operands, *(Layout.FULL for _ in results)]
    shapes = {Layout.FULL: "(rows, columns)", Layout.ROW: "(columns,)", Layout.SCALAR: "(1,)"}
    lines = [
        "@T.prim_func(s_tir=True)",
        f"def {region.symbol}({', '.join(f'p_{name}: T.handle' for name in [*names, *results])}):",
        f"    T.func_attr({{'global_symbol': '{region.symbol}', 'tirx.noalias': True}})",
        "    rows = T.int64()",
        "    columns = T.int64()",
    ]
    for name, layout in zip([*names, *results], layouts, strict=True):
        lines.append(f"    {name} = T.match_buffer(p_{name}, {shapes[layout]}, 'float32', align=4)")
    for name, layout in zip(names, region.operands, strict=True):
        if layout is Layout.SCALAR:
            lines.append(f"    s_{name} = {name}[0]")
    lines.append("    for row in T.serial(rows):")
    lines.append(f"        for block in T.serial(columns // {LANES}):")
    vector = Lanes(LANES, "v")
    lines += _indented(_body(region, vector, f"T.ramp(block * {LANES}, 1, {LANES})"))
    lines.append(f"        for tail in T.serial(columns % {LANES}):")
    lines += _indented(_body(region, Lanes(1, "t"), f"columns // {LANES} * {LANES} + tail"))
    return ["    " + line for line in lines]


def _body(region: ElementwiseRegion, lanes: Lanes, column: str) -> list[str]:
    index = {Layout.FULL: f"row, {column}", Layout.ROW: column}
    values: list[Term] = []
    for position, layout in enumerate(region.operands):
        name = f"a{position}"
        text = lanes.spread(f"s_{name}") if layout is Layout.SCALAR else f"{name}[{index[layout]}]"
        values.append(Term(lanes.let(text)))
    values += [Term(lanes.constant(value), value) for value in region.constants]
    for step in region.steps:
        arguments = [None if argument is None else values[argument] for argument in step.arguments]
        values.append(Term(OPS[step.op].emit(lanes, arguments, dict(step.attributes))))
    stores = [
        f"b{position}[{index[Layout.FULL]}] = {values[output].text}" for position, output in enumerate(region.outputs)
    ]
    return [*lanes.lines, *stores]


def _indented(lines: list[str]) -> list[str]:
    return ["            " + line for line in lines]
