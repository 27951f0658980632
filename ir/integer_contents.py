"""What small integer tensors hold, element by element: numbers where known, expressions of dims otherwise.

Exporters compute shapes with ordinary operators (Shape, Gather, Concat, Mul ...). Their results are followed here
with exact integers: an element that would leave its type's range is unknown, never wrapped around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir
from opgraft.ir.dims import Size
from opgraft.ir.integer_elements import Element

Elements: TypeAlias = npt.NDArray[np.object_]
Sizes: TypeAlias = tuple[Size, ...]

INT64, INT32, BOOL = onnx_ir.DataType.INT64, onnx_ir.DataType.INT32, onnx_ir.DataType.BOOL
RANGES = {
    INT64: (-(1 << 63), (1 << 63) - 1),
    INT32: (-(1 << 31), (1 << 31) - 1),
    BOOL: (0, 1),
}
# Shapes have few elements; what is larger is data, and the runtime's business.
MAX_ELEMENTS = 1024


@dataclass(frozen=True, eq=False)
class Integers:
    """The elements of an int64, int32 or bool tensor (bools as 0 and 1); None where an element is unknown."""

    elements: Elements
    dtype: onnx_ir.DataType

    def numbers(self) -> list[int] | None:
        """The elements in order if all are numbers."""
        flat = self.elements.reshape(-1).tolist()
        return flat if all(isinstance(e, int) for e in flat) else None

    def array(self) -> npt.NDArray[Any] | None:
        """The tensor if all elements are numbers."""
        return None if self.numbers() is None else self.elements.astype(self.dtype.numpy())


def integers_of(array: npt.NDArray[Any], dtype: onnx_ir.DataType) -> Integers | None:
    """A constant tensor's contents; None for other types and large tensors."""
    if dtype not in RANGES or array.size > MAX_ELEMENTS:
        return None
    return Integers(object_array([int(e) for e in array.reshape(-1).tolist()], array.shape), dtype)


def unknown_integers(shape: Sequence[Size] | None, dtype: onnx_ir.DataType | None) -> Integers | None:
    """Elements of which only the number is known."""
    if shape is None or dtype not in RANGES or not all(isinstance(d, int) for d in shape):
        return None
    dims = tuple(d for d in shape if isinstance(d, int))
    if np.prod(dims, dtype=float) > MAX_ELEMENTS:
        return None
    return Integers(np.full(dims, None, dtype=object), dtype)


@dataclass(frozen=True)
class Operands:
    """A node with what is known of its inputs; absent inputs are None in both lists."""

    node: onnx_ir.Node
    contents: Sequence[Integers | None]
    shapes: Sequence[Sizes | None]

    def content(self, index: int) -> Integers | None:
        return self.contents[index] if index < len(self.contents) else None

    def is_present(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def shape(self, index: int) -> Sizes | None:
        return self.shapes[index] if index < len(self.shapes) else None

    def numbers(self, index: int) -> list[int] | None:
        content = self.content(index)
        return None if content is None else content.numbers()

    def int_attribute(self, name: str, default: int) -> int:
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.as_int()

    def ints(self, name: str, index: int) -> list[int] | None:
        """A list that older versions of an operator have as attribute `name` and newer ones as input `index`."""
        attribute = self.node.attributes.get(name)
        if attribute is not None:
            return list(attribute.as_ints())
        return self.numbers(index)

    def axis(self, rank: int, default: int = 0) -> int | None:
        axis = self.int_attribute("axis", default)
        return axis % rank if rank and -rank <= axis < rank else None


def object_array(elements: Sequence[Element], shape: Sequence[int]) -> Elements:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(tuple(shape))
