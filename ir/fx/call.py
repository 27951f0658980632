"""A node as its rule sees it: inputs as nodes, numbers or lists of scalars, attributes with their defaults."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir
import torch
from opgraft.ir.errors import InputError
from opgraft.ir.fx.builder import Builder
from opgraft.ir.fx.values import TORCH_TYPES, DataType, FxValue, Scalar, Scalars, is_integer, known
from opgraft.ir.integer_contents import Elements
from torch import fx

if TYPE_CHECKING:
    from opgraft.ir.fx.emission import Scope

Output: TypeAlias = "fx.Node | FxValue | Elements | None"
Outputs: TypeAlias = "Output | Sequence[Output]"
Rule: TypeAlias = "Callable[[Call], Outputs]"


class Call:
    """One node to be emitted: `node` is a detached copy with the parameters of its function filled in."""

    def __init__(
        self,
        scope: Scope,
        source: onnx_ir.Node,
        inputs: Sequence[FxValue | None],
        attributes: Mapping[str, onnx_ir.Attr],
    ) -> None:
        self.scope = scope
        self.source = source
        self.builder: Builder = scope.builder
        self.inputs = inputs
        self.attributes = attributes
        self.opset = scope.opset
        self.emit = self.builder.call

    @property
    def n_outputs(self) -> int:
        """How many outputs are wanted: absent ones at the end do not count."""
        wanted = [i for i, v in enumerate(self.source.outputs) if v.name and (v.uses() or v.is_graph_output())]
        return wanted[-1] + 1 if wanted else 1

    def fail(self, what: str, remedy: str = "") -> InputError:
        return InputError(what, where=describe(self.source), remedy=remedy)

    # -- inputs ------------------------------------------------------------------------------------------------------

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> FxValue:
        found = self.inputs[index] if index < len(self.inputs) else None
        if found is None:
            raise self.fail(f"input {index} is missing")
        return found

    def tensor(self, index: int) -> fx.Node:
        return self.builder.tensor(self.value(index))

    def optional(self, index: int) -> fx.Node | None:
        return self.tensor(index) if self.has(index) else None

    def tensors(self) -> list[fx.Node]:
        return [self.builder.tensor(v) for v in self.inputs if v is not None]

    def dtype(self, index: int) -> DataType | None:
        return self.value(index).dtype if self.has(index) else None

    def torch_dtype(self, index: int) -> torch.dtype:
        return self.torch_type(self.dtype(index))

    def torch_type(self, dtype: DataType | None) -> torch.dtype:
        found = None if dtype is None else TORCH_TYPES.get(dtype)
        if found is None:
            raise self.fail(f"element type {'unknown' if dtype is None else dtype.name} has no torch type")
        return found

    def is_integer(self, index: int = 0) -> bool:
        return is_integer(self.dtype(index))

    def rank(self, index: int = 0) -> int:
        rank = self.value(index).rank
        if rank is None:
            raise self.fail(f"the rank of input {index} is not known", "declare shapes of the model's inputs")
        return rank

    def known_rank(self, index: int = 0) -> int | None:
        return self.value(index).rank if self.has(index) else None

    def static_shape(self, index: int) -> list[int] | None:
        sizes = self.value(index).sizes
        numbers = [s for s in sizes or () if isinstance(s, int)]
        return numbers if sizes is not None and len(numbers) == len(sizes) else None

    def static_shape_of(self, index: int) -> list[int] | None:
        """The same, None for an absent input too."""
        return self.static_shape(index) if self.has(index) else None

    def size(self, index: int, axis: int) -> Scalar:
        return self.builder.size(self.value(index), axis)

    def scalars(self, index: int) -> Scalars | None:
        """The contents of an integer input; None when it is absent."""
        return self.builder.scalars(self.value(index)) if self.has(index) else None

    def scalar(self, index: int) -> Scalar | None:
        """The one element of an integer input."""
        found = self.scalars(index)
        if found is None:
            return None
        if isinstance(found, fx.Node):
            return self.emit(operator.getitem, found, 0)
        return found[0] if found else None

    def numbers(self, index: int) -> list[int] | None:
        """The contents of an integer input that are the same in every run."""
        if not self.has(index):
            return None
        value = self.value(index)
        elements = self.builder.elements(value)
        if elements is not None:
            return known(list(elements.reshape(-1).tolist()))
        found = self.array(index)
        return None if found is None or found.dtype.kind not in "iub" else [int(i) for i in found.reshape(-1)]

    def array(self, index: int) -> np.ndarray[Any, Any] | None:
        """A constant input's numbers, of any type."""
        if not self.has(index):
            return None
        constant = self.value(index).constant
        return None if constant is None else constant.numpy()

    def scalars_of(self, name: str, index: int) -> Scalars | None:
        """A list that is attribute `name` in older versions of an operator, and input `index` in newer ones."""
        return list(self.ints_attribute(name) or ()) if name in self.attributes else self.scalars(index)

    def operand(self, index: int) -> fx.Node | float | int:
        """An input of arithmetic: a literal number as Python writes it, where the other input decides the shape."""
        value = self.value(index)
        is_float = value.dtype is not None and value.dtype.is_floating_point()
        if is_float and value.is_literal and value.constant is not None and value.rank == 0:
            return float(value.constant.numpy().astype(np.float64).reshape(-1)[0])
        return self.builder.tensor(value)

    # -- attributes --------------------------------------------------------------------------------------------------

    def int_attribute(self, name: str, default: int) -> int:
        return self.attributes[name].as_int() if name in self.attributes else default

    def keeps_dims(self) -> bool:
        """As the runtime reads it: any number but one drops them."""
        return self.int_attribute("keepdims", 1) == 1

    def float_attribute(self, name: str, default: float) -> float:
        return float(self.attributes[name].as_float()) if name in self.attributes else default

    def text_attribute(self, name: str, default: str) -> str:
        return self.attributes[name].as_string() if name in self.attributes else default

    def ints_attribute(self, name: str) -> list[int] | None:
        return [int(i) for i in self.attributes[name].as_ints()] if name in self.attributes else None

    def floats_attribute(self, name: str) -> list[float] | None:
        return [float(i) for i in self.attributes[name].as_floats()] if name in self.attributes else None

    def type_attribute(self, name: str) -> DataType | None:
        """A data type, widened as all floating-point types of this emission are; None where absent or 0."""
        number = self.int_attribute(name, 0)
        return self.scope.widened(DataType(number)) if number else None

    # -- results -----------------------------------------------------------------------------------------------------

    def result(self, node: fx.Node, dtype: DataType | None) -> FxValue:
        """A node whose element type is not what shape inference would say."""
        return FxValue(self.builder, dtype, node)

    def outputs_of(self, node: fx.Node, count: int) -> list[fx.Node | None]:
        """The items of a node that is a tuple when the module runs, as far as they are wanted."""
        wanted = [i < len(self.source.outputs) and bool(self.source.outputs[i].name) for i in range(count)]
        return [self.emit(operator.getitem, node, i) if w else None for i, w in enumerate(wanted)]


def describe(node: onnx_ir.Node) -> str:
    """Operator and node for messages."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return f"node {node.name!r} ({domain}{node.op_type})"
