"""One FX graph under construction: nodes, constants, and arithmetic on sizes that stays outside tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from opgraft.ir.fx.ops_view import choose, index_tensor, to_list, truncated_quotient
from opgraft.ir.fx.parameters import Parameters
from opgraft.ir.fx.values import FOLLOWED, MAX_FOLLOWED, TORCH_TYPES, DataType, FxValue, Scalar, Scalars, known
from opgraft.ir.integer_contents import Elements
from torch import fx

aten = torch.ops.aten
# Sizes are never negative, nor is what these make of them.
_KEEP_SIGN = (operator.add, operator.mul, operator.floordiv, operator.mod, torch.sym_max, torch.sym_min)


class Builder:
    """Makes the nodes of one graph. A branch or a loop body has a builder of its own, with an `outer` one: what it
    reads from there becomes an input of its graph."""

    def __init__(self, parameters: Parameters, outer: Builder | None = None) -> None:
        self.graph = fx.Graph()
        self.parameters = parameters
        self.outer = outer
        self.lifted: dict[fx.Node, fx.Node] = {}
        """Node of the outer graph -> placeholder here."""
        self.meta: Mapping[str, Any] = {}
        """Put on every node made."""
        self.fresh: set[fx.Node] = set()
        """Nodes made for the present ONNX node."""
        self.anchor: fx.Node | None = None
        """A tensor that tells on which device the module runs: what is made of numbers alone goes there too."""
        self._device: fx.Node | None = None
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}
        self._constants: dict[tuple[Any, ...], fx.Node] = {}

    @property
    def root(self) -> Builder:
        return self if self.outer is None else self.outer.root

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta.update(self.meta)
        self.fresh.add(node)
        return node

    @property
    def device(self) -> fx.Node | None:
        """The device of the graph's inputs; None where no tensor is given."""
        if self.anchor is None and self.outer is not None and (outer := self.root.anchor) is not None:
            self.anchor = self._lift_through(outer)
        if self._device is None and self.anchor is not None:
            self._device = self.call(getattr, self.anchor, "device")
        return self._device

    def placeholder(self, name: str) -> fx.Node:
        first = next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        if first is None:
            return self.graph.placeholder(name)
        with self.graph.inserting_before(first):
            return self.graph.placeholder(name)

    # -- tensors -----------------------------------------------------------------------------------------------------

    def tensor(self, value: FxValue) -> fx.Node:
        """The node of a value, made now if it was only known as numbers or as a weight."""
        if value.owner is not self:
            if self.outer is None:
                raise ValueError(f"value {value.name!r} belongs to another graph")
            return self._lift(self.outer.tensor(value))
        if value.node is None:
            if value.constant is not None:
                value.node = self.attribute(
                    self.parameters.add(value.constant, value.name, is_literal=value.is_literal)
                )
            elif value.elements is not None:
                value.node = self.tensor_of(value.elements, value.dtype or DataType.INT64)
        if value.node is None:
            raise ValueError(f"value {value.name!r} is nothing")
        return value.node

    def attribute(self, path: str) -> fx.Node:
        return self.graph.get_attr(path)

    def tensor_of(self, elements: Elements, dtype: DataType) -> fx.Node:
        """A tensor of these scalars."""
        flat = elements.reshape(-1).tolist()
        if known(flat) is None or self.outer is not None:
            return self.call(index_tensor, flat, list(elements.shape), TORCH_TYPES[dtype], self.device)
        return self.constant(torch.tensor(flat, dtype=TORCH_TYPES[dtype]).reshape(elements.shape))

    def constant(self, made: torch.Tensor) -> fx.Node:
        """Numbers that the emission itself brings in; equal ones are one buffer."""
        if self.outer is not None:
            return self._lift(self.outer.constant(made))
        key = (made.dtype, tuple(made.shape), made.numpy().tobytes())
        if key not in self._constants:
            self._constants[key] = self.attribute(self.parameters.add_constant(made))
        return self._constants[key]

    def _lift_through(self, root_node: fx.Node) -> fx.Node:
        """A node of the outermost graph, handed down to this one."""
        if self.outer is None:
            return root_node
        return self._lift(self.outer._lift_through(root_node))

    def _lift(self, outer_node: fx.Node) -> fx.Node:
        if outer_node not in self.lifted:
            self.lifted[outer_node] = self.placeholder(outer_node.name)
        return self.lifted[outer_node]

    # -- numbers -----------------------------------------------------------------------------------------------------

    def elements(self, value: FxValue) -> Elements | None:
        """The scalars of a small integer tensor, where the emission follows them."""
        if value.elements is None and value.constant is not None and value.dtype in FOLLOWED:
            if value.constant.size > MAX_FOLLOWED:
                return None
            value.elements = _as_objects(value.constant)
        if value.elements is None or value.owner is self:
            return value.elements
        if self.outer is None:
            raise ValueError(f"value {value.name!r} belongs to another graph")
        outer = self.outer.elements(value)
        if outer is None:
            return None
        lifted = np.empty(outer.size, dtype=object)
        lifted[:] = [s if isinstance(s, int) else self._lift(s) for s in outer.reshape(-1).tolist()]
        return lifted.reshape(outer.shape)

    def scalars(self, value: FxValue) -> Scalars:
        """The contents of an integer tensor; what is computed as a tensor has to be read when the module runs."""
        elements = self.elements(value)
        if elements is not None:
            return list(elements.reshape(-1).tolist())
        if value.constant is not None and value.dtype is not None and value.dtype.is_integer():
            return [int(i) for i in value.constant.numpy().reshape(-1)]
        return self.call(to_list, self.tensor(value))

    def size(self, value: FxValue, axis: int) -> Scalar:
        """A dim of a tensor: a number where it is one in every run."""
        size = value.sizes[axis] if value.sizes is not None else None
        if isinstance(size, int):
            return size
        node = self.tensor(value)
        if (node, axis) not in self._sizes:
            self._sizes[node, axis] = self.call(aten.sym_size.int, node, axis)
        return self._sizes[node, axis]

    def compute(self, function: Callable[..., Any], *operands: Scalar) -> Scalar:
        """`function` of Python numbers: now where all are known, else when the module runs."""
        if all(isinstance(o, int) for o in operands):
            made = function(*operands)
            return made if isinstance(made, bool) else int(made)
        return self.call(function, *operands)

    def add(self, a: Scalar, b: Scalar) -> Scalar:
        return a if _is(b, 0) else b if _is(a, 0) else self.compute(operator.add, a, b)

    def subtract(self, a: Scalar, b: Scalar) -> Scalar:
        return a if _is(b, 0) else self.compute(operator.sub, a, b)

    def multiply(self, a: Scalar, b: Scalar) -> Scalar:
        return a if _is(b, 1) else b if _is(a, 1) else self.compute(operator.mul, a, b)

    def divide(self, a: Scalar, b: Scalar) -> Scalar | None:
        """ONNX divides integers toward zero; None where it would fail."""
        if _is(b, 0):
            return None
        if never_negative(a) and never_negative(b):
            return a if _is(b, 1) else self.compute(operator.floordiv, a, b)
        return self.compute(truncated_quotient, a, b)

    def equal(self, a: Scalar, b: Scalar) -> Scalar:
        if (_is_below_zero(a) and never_negative(b)) or (_is_below_zero(b) and never_negative(a)):
            return False
        return True if a is b else self.compute(operator.eq, a, b)

    def choose(self, condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
        if isinstance(condition, int):
            return a if condition else b
        return a if a is b else self.call(choose, condition, a, b)

    def product(self, factors: Sequence[Scalar]) -> Scalar:
        total: Scalar = 1
        for factor in factors:
            total = self.multiply(total, factor)
        return total


def _as_objects(tensor: onnx_ir.TensorProtocol) -> Elements:
    array = tensor.numpy()
    made = np.empty(array.size, dtype=object)
    made[:] = array.reshape(-1).tolist()
    return made.reshape(array.shape)


def _is(scalar: Scalar, number: int) -> bool:
    return isinstance(scalar, int) and scalar == number


def _is_below_zero(scalar: Scalar) -> bool:
    return isinstance(scalar, int) and scalar < 0


def never_negative(scalar: Scalar) -> bool:
    """Whether the scalar is a size or made of sizes in a way that keeps it from being negative."""
    if isinstance(scalar, int):
        return scalar >= 0
    if not isinstance(scalar, fx.Node):
        return False
    found = scalar.meta.get("opgraft.never_negative")
    if found is None:
        found = scalar.target is aten.sym_size.int or (
            scalar.target in _KEEP_SIGN and all(never_negative(a) for a in scalar.args if isinstance(a, int | fx.Node))
        )
        scalar.meta["opgraft.never_negative"] = found
    return bool(found)
