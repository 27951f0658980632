"""The place where one adapter works: it reads a node, emits others, or refuses with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir
from opgraft.ir.kernel_table import KernelTable
from opgraft.passes.opset.facts import Facts, constant_of
from opgraft.passes.opset.schemas import default_of, schema_at

Inputs = Sequence[onnx_ir.Value | None]


class CannotConvertError(Exception):
    """Raised by adapters: this node has no equivalent at the other version. Never leaves `convert_opset`."""


@dataclass
class Scope:
    """What surrounds a node that is being converted."""

    sure_parameters: set[str] = field(default_factory=set)
    """Function parameters that every call supplies: a reference to one always yields an attribute."""
    facts: Facts = field(default_factory=Facts)
    kernels: KernelTable | None = None
    """Those of the runtime that will run the model, where they are known."""
    wanted: set[onnx_ir.Value] = field(default_factory=set)
    """Outputs of new nodes that stand for outputs the model reads, though nothing is connected to them yet."""

    def reads(self, value: onnx_ir.Value) -> bool:
        """Whether anything reads the value."""
        return bool(value.uses()) or value.is_graph_output() or value in self.wanted


class Site:
    """One node on its way over one change of its operator.

    Emitted nodes are detached from any graph until the whole model is known to be convertible; `version` is
    the opset at which they are written, and they travel on from there.
    """

    def __init__(self, node: onnx_ir.Node, since: int, version: int, target: int, scope: Scope) -> None:
        self.node = node
        self.since = since
        """The opset at which the node is written now."""
        self.version = version
        self.target = target
        self.emitted: list[tuple[onnx_ir.Node, int]] = []
        self.rounds = False
        """Set by an adapter whose nodes do the same arithmetic with other roundings."""
        self._scope = scope
        self.facts = scope.facts

    # Reading

    @property
    def upward(self) -> bool:
        return self.target > self.since

    def input(self, index: int) -> onnx_ir.Value | None:
        """The input at `index`; None when it is absent."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def operand(self, index: int) -> onnx_ir.Value:
        """The required input at `index`."""
        value = self.input(index)
        if value is None:
            raise CannotConvertError(f"input {index} is missing")
        return value

    def is_used(self, index: int) -> bool:
        """Whether anything reads the output at `index`."""
        if index >= len(self.node.outputs):
            return False
        return self._scope.reads(self.node.outputs[index])

    def attribute(self, name: str) -> Any:
        """The value of an attribute, or the default that the node's own version gives it."""
        found = self.node.attributes.get(name)
        if found is None:
            schema = schema_at(self.node.op_type, self.since)
            return default_of(schema, name) if schema is not None and name in schema.attributes else None
        if found.is_ref():
            raise CannotConvertError(f"attribute {name!r} is a parameter of the enclosing function")
        return found.value

    def constant(self, index: int) -> np.ndarray | None:
        """The input at `index` as an array, when it is constant; None when it is absent or computed."""
        return constant_of(self.input(index))

    def known_constant(self, index: int, meaning: str) -> np.ndarray | None:
        """The input at `index` as an array; None when it is absent; refuses when it is computed."""
        array = self.constant(index)
        if array is None and self.input(index) is not None:
            raise CannotConvertError(f"{meaning} (input {index}) is computed at run time")
        return array

    def rank(self, index: int = 0) -> int | None:
        return self.facts.rank_of(self.input(index))

    def known_rank(self, index: int = 0) -> int:
        rank = self.rank(index)
        if rank is None:
            raise CannotConvertError(f"the rank of input {index} is not recorded; run shape inference first")
        return rank

    def dims(self, index: int = 0) -> list[int | None] | None:
        return self.facts.dims_of(self.input(index))

    def dtype(self, index: int = 0) -> onnx_ir.DataType | None:
        return self.facts.dtype_of(self.input(index))

    # Emitting

    def emit(
        self,
        op_type: str,
        inputs: Inputs = (),
        attributes: Mapping[str, Any] | Iterable[onnx_ir.Attr] = (),
        *,
        version: int = 0,
        n_outputs: int = 1,
    ) -> list[onnx_ir.Value]:
        """Write a node of opset `version` (the site's own by default) and return its outputs."""
        at = max(version, self.version) if self.upward else version or self.version
        if self.upward and at > self.target:
            raise CannotConvertError(f"needs {op_type} of opset {at}")
        if isinstance(attributes, Mapping):
            attributes = onnx_ir.convenience.convert_attributes({k: v for k, v in attributes.items() if v is not None})
        node = onnx_ir.Node("", op_type, inputs, attributes, num_outputs=n_outputs)
        node.metadata_props.update(self.node.metadata_props)
        self.emitted.append((node, at))
        return list(node.outputs)

    def emit_one(self, op_type: str, inputs: Inputs = (), attributes: Any = (), *, version: int = 0) -> onnx_ir.Value:
        """`emit` for the usual operator of one output."""
        return self.emit(op_type, inputs, attributes, version=version)[0]

    def again(
        self,
        inputs: Inputs | None = None,
        *,
        drop: Iterable[str] = (),
        op_type: str | None = None,
        n_outputs: int | None = None,
        **attributes: Any,
    ) -> list[onnx_ir.Value]:
        """Write the node again with other inputs or attributes; the outputs keep their types and shapes."""
        kept = [a for name, a in self.node.attributes.items() if name not in {*drop, *attributes}]
        changed = onnx_ir.convenience.convert_attributes({k: v for k, v in attributes.items() if v is not None})
        outputs = self.emit(
            op_type or self.node.op_type,
            trim(self.node.inputs if inputs is None else inputs),
            [*kept, *changed],
            n_outputs=len(self.node.outputs) if n_outputs is None else n_outputs,
        )
        written = outputs[0].producer() if outputs else None
        if written is not None:
            written.name, written.doc_string = self.node.name, self.node.doc_string
        for old, new in zip(self.node.outputs, outputs, strict=False):
            new.type, new.shape = old.type, old.shape
        return outputs

    def literal(self, array: np.ndarray | Sequence[int] | int) -> onnx_ir.Value:
        """A constant; Python integers become int64."""
        data = array if isinstance(array, np.ndarray) else np.array(array, dtype=np.int64)
        value = self.emit_one("Constant", (), [onnx_ir.AttrTensor("value", onnx_ir.tensor(data))])
        value.type = onnx_ir.TensorType(onnx_ir.DataType.from_numpy(data.dtype))
        value.shape = onnx_ir.Shape(data.shape)
        return value

    def scalar_like(self, number: float, index: int = 0) -> onnx_ir.Value:
        """A scalar constant of the element type of input `index`."""
        dtype = self.dtype(index)
        if dtype is not None:
            return self.literal(np.array(number).astype(dtype.numpy()))
        plain = self.literal(np.array(number, dtype=np.float32))
        return self.emit_one("CastLike", (plain, self.operand(index)), version=15)

    def ints_from(self, name: str, *, scalar: bool = False) -> onnx_ir.Value | None:
        """The INT or INTS attribute `name` as an int64 constant, its default included; None when absent.

        A reference to a function parameter becomes a Constant that refers to it.
        """
        found = self.node.attributes.get(name)
        if found is not None and found.is_ref():
            return self._parameter(found, scalar=scalar)
        value = self.attribute(name)
        if value is None:
            return None
        return self.literal(int(value) if isinstance(value, int) else [int(v) for v in value])

    def _parameter(self, reference: onnx_ir.Attr, *, scalar: bool) -> onnx_ir.Value:
        parameter = str(reference.ref_attr_name)
        if parameter not in self._scope.sure_parameters:
            raise CannotConvertError(f"function parameter {parameter!r} is missing in some call")
        ints = reference.type == onnx_ir.AttributeType.INTS
        if ints == scalar:
            raise CannotConvertError(f"function parameter {parameter!r} has an unexpected type")
        name = "value_ints" if ints else "value_int"
        kind = onnx_ir.AttributeType.INTS if ints else onnx_ir.AttributeType.INT
        return self.emit_one("Constant", (), [onnx_ir.RefAttr(name, parameter, kind)], version=12)

    def shape_of(self, value: onnx_ir.Value) -> onnx_ir.Value:
        """The shape of `value`: a constant when it is static, else computed. [rank], int64."""
        dims = self.facts.dims_of(value)
        if dims is not None and all(d is not None for d in dims):
            return self.literal(np.array(dims, dtype=np.int64))
        return self.emit_one("Shape", (value,))

    def reshape(self, value: onnx_ir.Value, shape: onnx_ir.Value) -> onnx_ir.Value:
        """Reshape to a full shape without wildcards; dims of size zero are taken literally where possible."""
        if self.target >= 14:
            return self.emit_one("Reshape", (value, shape), {"allowzero": 1}, version=14)
        return self.emit_one("Reshape", (value, shape))


def trim(inputs: Inputs) -> list[onnx_ir.Value | None]:
    """Without the absent inputs at the end."""
    kept = list(inputs)
    while kept and kept[-1] is None:
        kept.pop()
    return kept
