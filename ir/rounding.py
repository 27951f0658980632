"""How much float32 rounding costs a program, where no float64 run can tell: everything one unit to a side.

When every input (or weight) moves by one unit in the last place, all roundings downstream are drawn anew, so the
outputs move by as much as the program's own rounding errors.

Source: F. Chaitin-Chatelin, V. Frayssé, "Lectures on Finite Precision Computations" (1996), chapter 8.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes


def move_inputs(arrays: Mapping[str, np.ndarray], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every float32 one unit in the last place up or down, at random."""
    return {name: _move(array, rng) if array.dtype == np.float32 else array for name, array in arrays.items()}


def move_weights(program: Program, rng: np.random.Generator) -> bytes:
    """A copy of `program` whose float32 weights of the main graph have moved so. Raises OutputError when too large."""
    copy = program.clone()
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        # Scalars are often exact by intent: a one, a half, an exponent.
        if tensor is not None and tensor.dtype == onnx_ir.DataType.FLOAT and tensor.size > 1:
            value.const_value = onnx_ir.Tensor(_move(tensor.numpy(), rng), name=value.name)
    return model_bytes(copy)


def _move(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Zeros stay, and keep their signs."""
    goal = np.where(rng.random(array.shape) < 0.5, np.float32(-np.inf), np.float32(np.inf))
    with np.errstate(over="ignore"):
        moved: np.ndarray = np.where(array == 0, array, np.nextafter(array, goal, dtype=np.float32))
    return moved
