"""The model that computes constants: cut out of the program by name, all results in one, halved where it fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
from opgraft.ir.errors import ExecutionError
from opgraft.ir.program import Program, constant_tensor
from opgraft.passes._pass import ConstantEvaluator
from opgraft.passes._rewriter import captured_values

# Sessions per run of the pass: halving finds each operator that the runtime lacks in about ten.
_MAX_SESSIONS = 100
# No more halving after this: a constant that hangs the runtime costs a time limit in every half it is in.
_MAX_SECONDS = 60.0
# Bytes of constants sent to the runtime at once.
_MAX_MODEL_BYTES = 256 << 20

# The first file format with all that such a model holds; runtimes refuse formats newer than themselves.
_IR_VERSION = 10

Arrays = dict[onnx_ir.Value, npt.NDArray[Any]]


class ConstantModels:
    """Computes values of a program that depend on constants only.

    `known` are values whose numbers are already there: they are given, not computed.
    """

    def __init__(
        self, program: Program, evaluate: ConstantEvaluator, known: Mapping[onnx_ir.Value, npt.NDArray[Any]]
    ) -> None:
        self._program = program
        self._evaluate = evaluate
        self._known = known
        self._n_sessions = 0
        self._deadline = time.monotonic() + _MAX_SECONDS
        self.failures: list[tuple[onnx_ir.Value, str]] = []
        """Values that the runtime did not compute, and what it said."""

    def compute(self, values: Sequence[onnx_ir.Value]) -> Arrays:
        """The numbers of as many of `values` as the runtime computes."""
        found: Arrays = {}
        for batch in self._batches(values):
            found.update(self._compute_halving(batch))
        return found

    def _batches(self, values: Sequence[onnx_ir.Value]) -> Iterable[list[onnx_ir.Value]]:
        batch: list[onnx_ir.Value] = []
        leaves: set[onnx_ir.Value] = set()
        total = 0
        for value in values:
            added = {leaf for leaf in self._slice(value)[1] if leaf not in leaves}
            n_bytes = sum(self._leaf_bytes(leaf) for leaf in added)
            if batch and total + n_bytes > _MAX_MODEL_BYTES:
                yield batch
                batch, leaves, total = [], set(), 0
            batch.append(value)
            leaves |= added
            total += n_bytes
        if batch:
            yield batch

    def _compute_halving(self, values: Sequence[onnx_ir.Value]) -> Arrays:
        if self._n_sessions >= _MAX_SESSIONS or (self._n_sessions and time.monotonic() > self._deadline):
            self.failures += [(v, "the runtime refuses too many results, or takes too long") for v in values]
            return {}
        self._n_sessions += 1
        try:
            return self._run(values)
        except ExecutionError as error:
            if len(values) == 1:
                self.failures.append((values[0], str(error)))
                return {}
        middle = len(values) // 2
        return {**self._compute_halving(values[:middle]), **self._compute_halving(values[middle:])}

    def _run(self, values: Sequence[onnx_ir.Value]) -> Arrays:
        nodes, leaves = self._union(values)
        names = _Names(nodes)
        model = onnx.ModelProto(ir_version=_IR_VERSION)
        for domain, version in self._program.model.opset_imports.items():
            model.opset_import.add(domain=domain, version=version)
        graph = model.graph
        graph.name = "constants"
        for leaf in leaves:
            graph.initializer.append(self._tensor_proto(leaf, names(leaf)))
        for node in nodes:
            graph.node.append(_node_proto(node, names))
        for value in values:
            graph.output.add(name=names(value))
        if any(n.op_identifier() in self._program.model.functions for n in _all_nodes(nodes)):
            for function in self._program.model.functions.values():
                model.functions.append(onnx_ir.serde.serialize_function(function))
        results = self._evaluate(model.SerializeToString())
        return {value: results[names(value)] for value in values}

    def _union(self, values: Sequence[onnx_ir.Value]) -> tuple[list[onnx_ir.Node], list[onnx_ir.Value]]:
        nodes: dict[onnx_ir.Node, None] = {}
        leaves: dict[onnx_ir.Value, None] = {}
        for value in values:
            self._visit(value, nodes, leaves)
        return list(nodes), list(leaves)

    def _slice(self, value: onnx_ir.Value) -> tuple[dict[onnx_ir.Node, None], dict[onnx_ir.Value, None]]:
        nodes: dict[onnx_ir.Node, None] = {}
        leaves: dict[onnx_ir.Value, None] = {}
        self._visit(value, nodes, leaves)
        return nodes, leaves

    def _visit(
        self, value: onnx_ir.Value, nodes: dict[onnx_ir.Node, None], leaves: dict[onnx_ir.Value, None]
    ) -> None:
        """Add what `value` is computed from, producers before consumers."""
        stack: list[tuple[onnx_ir.Value, bool]] = [(value, False)]
        while stack:
            current, is_ready = stack.pop()
            producer = current.producer()
            if current in self._known or producer is None or constant_tensor(current) is not None:
                leaves[current] = None
            elif is_ready:
                nodes[producer] = None
            elif producer not in nodes:
                stack.append((current, True))
                captured = captured_values(producer) if producer.attributes else []
                stack += [(v, False) for v in (*producer.inputs, *captured) if v is not None]

    def _leaf_bytes(self, leaf: onnx_ir.Value) -> int:
        tensor = constant_tensor(leaf)
        return tensor.nbytes if tensor is not None else 0

    def _tensor_proto(self, leaf: onnx_ir.Value, name: str) -> onnx.TensorProto:
        array = self._known.get(leaf)
        tensor = onnx_ir.tensor(array) if array is not None else constant_tensor(leaf)
        if tensor is None:
            raise ExecutionError(f"{leaf.name!r} is not constant")
        proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
        if tensor.dtype == onnx_ir.DataType.STRING:
            proto.string_data.extend(_as_bytes(s) for s in tensor.numpy().reshape(-1).tolist())
        else:
            proto.raw_data = tensor.tobytes()
        return proto


class _Names:
    """Names in the model: a value that a subgraph captures keeps its own, all others are numbered."""

    def __init__(self, nodes: Sequence[onnx_ir.Node]) -> None:
        self._names: dict[onnx_ir.Value, str] = {}
        taken: set[str] = set()
        for node in nodes:
            for value in captured_values(node) if node.attributes else ():
                if value in self._names:
                    continue
                if value.name in taken:
                    raise ExecutionError(f"two values are named {value.name!r}")
                taken.add(value.name or "")
                self._names[value] = value.name or ""

    def __call__(self, value: onnx_ir.Value) -> str:
        return self._names.setdefault(value, f"opgraft::{len(self._names)}")


def _node_proto(node: onnx_ir.Node, names: Callable[[onnx_ir.Value], str]) -> onnx.NodeProto:
    proto = onnx_ir.serde.serialize_node(node)
    del proto.input[:], proto.output[:], proto.metadata_props[:]
    proto.name = ""
    proto.input.extend("" if v is None else names(v) for v in node.inputs)
    # An output without a name is one that was not asked for, which some operators care about.
    proto.output.extend(names(o) if o.name else "" for o in node.outputs)
    return proto


def _all_nodes(nodes: Iterable[onnx_ir.Node]) -> Iterable[onnx_ir.Node]:
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH and not attribute.is_ref():
                yield from attribute.as_graph().all_nodes()


def _as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode()


def to_tensor(array: npt.NDArray[Any]) -> onnx_ir.TensorProtocol:
    """A result of the runtime as a tensor; strings come as Python strings."""
    if array.dtype == object:
        encoded = np.empty(array.shape, dtype=object)
        encoded.reshape(-1)[:] = [_as_bytes(s) for s in array.reshape(-1).tolist()]
        return onnx_ir.StringTensor(encoded)
    return onnx_ir.tensor(array)
