"""What one node does, as symbolic amounts: the vocabulary in which the cost rules are written.

FLOPs follow the usual convention: a multiply-add is two, every other arithmetic operation or elementary
function (exp, erf, tanh, a comparison) of one element is one; moving, reinterpreting or converting an element
is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TypeAlias

import onnx_ir as ir
from opgraft.ir.dim_text import parse_dim
from opgraft.ir.dims import Size, add_all, ceil_divide, maximum, multiply_all


class UnknownCost(Exception):
    """The work of a node cannot be told; the text says what is missing. Never leaves the cost analysis."""


@dataclass(frozen=True)
class Work:
    """Amounts for one execution of a node, or of a group of nodes."""

    flops: Size = 0
    contraction_flops: Size = 0
    """The part of `flops` in multiply-adds of matrix products and convolutions."""
    bytes_read: Size = 0
    bytes_written: Size = 0
    weight_bytes: Size = 0
    """The part of `bytes_read` that comes from initializers and constants."""

    def times(self, factor: Size) -> Work:
        return Work(*(getattr(self, field.name) * factor for field in fields(self)))

    def at_most(self, other: Work) -> Work:
        """The larger of the two, amount by amount."""
        return Work(*(maximum(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))

    @classmethod
    def sum(cls, parts: list[Work]) -> Work:
        return cls(*(add_all(getattr(part, field.name) for part in parts) for field in fields(cls)))


def shape_of(value: ir.Value) -> tuple[Size, ...]:
    """The recorded shape of a tensor value, as expressions."""
    kind = value.type
    # The exact type first: it is nearly always this one, and isinstance is slow on these classes.
    if type(kind) is not ir.TensorType and isinstance(kind, ir.SequenceType | ir.OptionalType):
        raise UnknownCost(f"value {value.name!r} is not a tensor")
    shape: ir.ShapeProtocol | None = value.shape
    if shape is None:
        tensor = constant_tensor(value)
        if tensor is None:
            raise UnknownCost(f"value {value.name!r} has no recorded shape")
        shape = tensor.shape
    sizes = _sizes_of(tuple(shape))
    if sizes is None:
        axis = next(n for n, extent in enumerate(shape) if not isinstance(extent, int) and extent.value is None)
        raise UnknownCost(f"dimension {axis} of value {value.name!r} is unknown")
    return sizes


# A model has few distinct shapes and many values of each.
@lru_cache(maxsize=4096)
def _sizes_of(extents: tuple[int | ir.SymbolicDimProtocol, ...]) -> tuple[Size, ...] | None:
    """The extents as expressions; None when one is unknown."""
    sizes: list[Size] = []
    for extent in extents:
        if isinstance(extent, int):
            sizes.append(extent)
        elif extent.value is None:
            return None
        else:
            sizes.append(parse_dim(extent.value))
    return tuple(sizes)


def dtype_of(value: ir.Value) -> ir.DataType:
    dtype = value.dtype
    if dtype is None:
        tensor = constant_tensor(value)
        dtype = None if tensor is None else tensor.dtype
    if dtype is None or dtype == ir.DataType.UNDEFINED:
        raise UnknownCost(f"value {value.name!r} has no recorded element type")
    return dtype


def bytes_of(value: ir.Value) -> Size:
    """Bytes of a tensor value; types below 8 bits are packed."""
    return _packed_bytes(_n_elements(shape_of(value)), value)


@lru_cache(maxsize=4096)
def _n_elements(shape: tuple[Size, ...]) -> Size:
    return multiply_all(shape)


@lru_cache(maxsize=4096)
def _packed(n_elements: Size, bitwidth: int) -> Size:
    return ceil_divide(n_elements * bitwidth, 8)


def _packed_bytes(n_elements: Size, value: ir.Value) -> Size:
    dtype = dtype_of(value)
    if dtype == ir.DataType.STRING:
        raise UnknownCost(f"value {value.name!r} holds strings")
    return _packed(n_elements, dtype.bitwidth)


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of the output of a Constant node, unread."""
    if value.const_value is not None:
        return value.const_value
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain:
        return None
    return ir.convenience.get_const_tensor(value)


def is_constant(value: ir.Value) -> bool:
    """Whether the value is stored with the model rather than computed or fed."""
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant" and not producer.domain)


def dtype_name(dtype: ir.DataType) -> str:
    """numpy's spelling: "float32", "int8"."""
    names = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
    return names.get(dtype, dtype.name.lower())


class NodeView:
    """A node as the rules see it: shapes as expressions, attributes with defaults, absent inputs as such."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> ir.Value:
        value = self.node.inputs[index] if index < len(self.node.inputs) else None
        if value is None:
            raise UnknownCost(f"input {index} is absent")
        return value

    def shape(self, index: int) -> tuple[Size, ...]:
        return shape_of(self.input(index))

    def extent(self, index: int, axis: int) -> Size:
        """One dimension of an input."""
        shape = self.shape(index)
        if not -len(shape) <= axis < len(shape):
            raise UnknownCost(f"input {index} has rank {len(shape)}, dimension {axis} was expected")
        return shape[axis]

    def count(self, index: int) -> Size:
        """Elements of an input."""
        return _n_elements(self.shape(index))

    def out_shape(self, index: int = 0) -> tuple[Size, ...]:
        return shape_of(self.node.outputs[index])

    def out_count(self, index: int = 0) -> Size:
        return _n_elements(self.out_shape(index))

    def has_output(self, index: int) -> bool:
        return index < len(self.node.outputs) and bool(self.node.outputs[index].name)

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def integers(self, name: str) -> tuple[int, ...]:
        return tuple(self.node.attributes.get_ints(name, ()))

    def string(self, name: str, default: str) -> str:
        return self.node.attributes.get_string(name, default)

    def constant_ints(self, index: int) -> tuple[int, ...] | None:
        """The values of a small constant integer input."""
        tensor = constant_tensor(self.input(index)) if self.has(index) else None
        if tensor is None or tensor.size > 64 or not tensor.dtype.is_integer():
            return None
        return tuple(int(element) for element in tensor.numpy().reshape(-1))

    def work(
        self,
        flops: Size = 0,
        *,
        contraction: Size = 0,
        reads: Mapping[int, Size] | None = None,
        writes: Size | None = None,
    ) -> Work:
        """Work with every distinct input read once and every output written once, unless said otherwise.

        `flops` are those besides `contraction`; `reads` gives the elements read of an input, by its index.
        """
        read: list[Size] = []
        weight: list[Size] = []
        seen: set[ir.Value] = set()
        for index, value in enumerate(self.node.inputs):
            if value is None or value in seen:
                continue
            seen.add(value)
            partial = None if reads is None else reads.get(index)
            amount = bytes_of(value) if partial is None else _packed_bytes(partial, value)
            read.append(amount)
            if is_constant(value):
                weight.append(amount)
        if writes is None:
            writes = add_all(bytes_of(output) for output in self.node.outputs if output.name)
        return Work(flops + contraction, contraction, add_all(read), writes, add_all(weight))


Count: TypeAlias = Callable[[NodeView], Work]


@dataclass(frozen=True)
class Rule:
    """How to count one operator."""

    kind: str
    """"contraction", "elementwise", "reduction", "movement", or "view" (the runtime aliases the input)."""
    count: Count
    dtype: Callable[[NodeView], str]
    """The element type whose arithmetic peak bounds the operator."""


RULES: dict[tuple[str, str], Rule] = {}

MICROSOFT = "com.microsoft"


def operand_dtype(view: NodeView) -> str:
    """The element type of the first input, or of the output where there is none."""
    present = [value for value in view.node.inputs if value is not None]
    return dtype_name(dtype_of(present[0] if present else view.node.outputs[0]))


def rule(
    kind: str,
    *operators: str,
    microsoft: tuple[str, ...] = (),
    dtype: str | Callable[[NodeView], str] = operand_dtype,
) -> Callable[[Count], Count]:
    """Register a counting function for standard operators and, by `microsoft`, for the runtime's own."""

    def register(count: Count) -> Count:
        of_node = (lambda _: dtype) if isinstance(dtype, str) else dtype
        for domain, names in (("", operators), (MICROSOFT, microsoft)):
            for name in names:
                RULES[domain, name] = Rule(kind, count, of_node)
        return count

    return register
