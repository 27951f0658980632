"""A program: one model in memory (`onnx_ir`), where it came from, and what its file holds that the IR does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from opgraft.ir.small_tensor import SmallTensor

Arrays = Mapping[str, np.ndarray]
Reference = Callable[[Arrays], dict[str, np.ndarray]]

DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass
class Program:
    """A captured model, ready for passes.

    `model` is the only store of the graph. `notes` are remarks for the report (a dim that came out static, an
    opset newer than the runtime). `leftover` keeps protobuf fields that the IR has no place for, for `save`.
    """

    model: onnx_ir.Model
    path: Path | None = None
    notes: list[str] = field(default_factory=list)
    leftover: Any = None
    reference: Reference | None = None
    """The captured torch module in float32, when there is one."""
    reference_float64: Reference | None = None
    example_inputs: dict[str, np.ndarray] | None = None
    base_dir: Path | None = None
    """Folder that the model's external data are relative to."""

    @property
    def graph(self) -> onnx_ir.Graph:
        return self.model.graph

    @property
    def opset(self) -> int:
        """Version of the default operator domain; 0 when the model does not import it."""
        return self.model.opset_imports.get("", self.model.opset_imports.get("ai.onnx", 0))

    def scopes(self) -> Iterator[onnx_ir.Graph]:
        """The main graph, every function body, and every subgraph nested in them."""
        yield from nested_graphs(self.model.graph)
        for function in self.model.functions.values():
            yield from nested_graphs(function.graph)

    def clone(self) -> Program:
        """A copy whose graph can be changed alone; weights are shared."""
        return Program(
            clone_model(self.model),
            self.path,
            list(self.notes),
            self.leftover,
            self.reference,
            self.reference_float64,
            self.example_inputs,
            self.base_dir,
        )


def nested_graphs(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Graph]:
    """`graph` and every subgraph in it, outer ones first."""
    yield graph
    for node in graph:
        # The dict itself: asking the container costs a call for each node of every walk over a model.
        if node.attributes.data:
            for inner in direct_subgraphs(node):
                yield from nested_graphs(inner)


def direct_subgraphs(node: onnx_ir.Node) -> list[onnx_ir.Graph]:
    """The graphs that the node's attributes hold."""
    found: list[onnx_ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == _GRAPH and not attribute.is_ref():
            found.append(attribute.as_graph())
        elif attribute.type == _GRAPHS and not attribute.is_ref():
            found.extend(attribute.as_graphs())
    return found


_GRAPH, _GRAPHS = onnx_ir.AttributeType.GRAPH, onnx_ir.AttributeType.GRAPHS


def clone_model(model: onnx_ir.Model) -> onnx_ir.Model:
    """A copy of the structure of `model`; tensors are the same objects."""
    return model.clone()


def constant_tensor(value: onnx_ir.Value | None) -> onnx_ir.TensorProtocol | None:
    """The tensor that `value` holds in every run, or None: an initializer that no caller can override, or the
    output of a Constant node. A float or int attribute of Constant is returned as a tensor."""
    if value is None:
        return None
    producer = value.producer()
    if producer is None:
        if value.const_value is not None and not value.is_graph_input():
            return value.const_value
        return None
    if producer.op_type != "Constant" or producer.domain not in DEFAULT_DOMAINS:
        return None
    return _constant_attribute(producer)


def _constant_attribute(node: onnx_ir.Node) -> onnx_ir.TensorProtocol | None:
    if len(node.attributes) != 1:
        return None
    attribute = next(iter(node.attributes.values()))
    if attribute.is_ref():
        return None
    if attribute.name == "value":
        return attribute.as_tensor()
    arrays: dict[str, type] = {
        "value_float": np.float32,
        "value_floats": np.float32,
        "value_int": np.int64,
        "value_ints": np.int64,
    }
    if attribute.name in arrays:
        return onnx_ir.tensor(np.asarray(attribute.value, dtype=arrays[attribute.name]))
    if attribute.name in ("value_string", "value_strings"):
        return onnx_ir.StringTensor(
            np.asarray(
                [s.encode() for s in attribute.as_strings()]
                if attribute.name == "value_strings"
                else attribute.as_string().encode(),
                dtype=object,
            )
        )
    return None


def constant_array(value: onnx_ir.Value | None, *, limit: int = 1 << 16) -> np.ndarray | None:
    """The numbers of a constant of at most `limit` elements, else None. Never written to: weights are shared."""
    tensor = constant_tensor(value)
    if tensor is None:
        return None
    if type(tensor) is SmallTensor:
        return tensor.numpy() if tensor.size <= limit else None
    if isinstance(tensor, onnx_ir.Tensor) and isinstance(tensor.raw, np.ndarray):
        return tensor.raw if tensor.raw.size <= limit else None
    if tensor.size > limit or tensor.dtype == onnx_ir.DataType.STRING:
        return None
    return tensor.numpy()


def constant_ints(value: onnx_ir.Value | None, *, limit: int = 4096) -> list[int] | None:
    """The integers of a constant int32/int64 scalar or vector, else None."""
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > limit or tensor.dtype not in _INDEX_TYPES or len(tensor.shape) > 1:
        return None
    return [int(i) for i in tensor.numpy().reshape(-1)]


_INDEX_TYPES = (onnx_ir.DataType.INT64, onnx_ir.DataType.INT32)


def is_op(node: onnx_ir.Node | None, *op_types: str) -> bool:
    """Whether `node` is a standard operator of one of these types."""
    return node is not None and node.op_type in op_types and node.domain in DEFAULT_DOMAINS


def static_shape(value: onnx_ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` when all its dims are known integers."""
    if value is None or value.shape is None:
        return None
    dims = tuple(d for d in value.shape if isinstance(d, int))
    return dims if len(dims) == len(value.shape) else None
