"""Bodies of model-local functions, specialised to a call: inlined, with the shapes its inputs imply.

A function records no shapes of its own. Each distinct call (function, attributes, input types and small
constants) is therefore copied once into a model of its own, inlined, and given to the standard's shape
inference.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass
from opgraft.ir.node_work import UnknownCost, constant_tensor

# Constants up to this size may decide shapes (targets of Reshape, axes); larger ones are data.
_MAX_SHAPE_ELEMENTS = 64

_Functions = Mapping[ir.OperatorIdentifier, ir.Function]


class CallSpecializer:
    """Specialised function bodies, one per distinct call."""

    def __init__(self, functions: _Functions) -> None:
        self.functions = functions
        self._bodies: dict[str, ir.Graph | UnknownCost] = {}

    def body(self, node: ir.Node) -> ir.Graph:
        """The nodes that `node` stands for, with shapes recorded as far as they can be inferred.

        Raises UnknownCost when the call cannot be inlined.
        """
        key = _call_key(node)
        if key not in self._bodies:
            try:
                self._bodies[key] = self._specialize(node)
            except (ValueError, TypeError, RuntimeError, KeyError) as error:
                self._bodies[key] = UnknownCost(f"function {node.op_type} cannot be inlined: {error}")
        body = self._bodies[key]
        if isinstance(body, UnknownCost):
            raise body
        return body

    def _specialize(self, node: ir.Node) -> ir.Graph:
        present = dict.fromkeys(value for value in node.inputs if value is not None)
        values = {value: _stand_in(value, f"in{n}") for n, value in enumerate(present)}
        call = ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            list(node.attributes.values()),
            overload=node.overload,
            num_outputs=len(node.outputs),
        )
        stored = [value for value in values.values() if value.const_value is not None]
        fed = [value for value in values.values() if value.const_value is None]
        functions = self._reachable(node.op_identifier())
        opsets = dict(functions[0].opset_imports)
        graph = ir.Graph(fed, call.outputs, nodes=[call], initializers=stored, opset_imports=opsets, name="call")
        model = ir.Model(graph, ir_version=10, functions=functions)
        model = InlinePass()(model).model
        return ShapeInferencePass(check_type=False, strict_mode=False)(model).model.graph

    def _reachable(self, root: ir.OperatorIdentifier) -> list[ir.Function]:
        """The function and all that it calls, itself first; inlining copies their nodes and leaves them as they are."""
        found = {root: self.functions[root]}
        pending = [root]
        while pending:
            for node in self.functions[pending.pop()].all_nodes():
                called = node.op_identifier()
                if called in self.functions and called not in found:
                    found[called] = self.functions[called]
                    pending.append(called)
        return list(found.values())


def _stand_in(value: ir.Value, name: str) -> ir.Value:
    """A fresh value of the same type; small constants keep their content."""
    tensor = constant_tensor(value)
    if tensor is None:
        return ir.Value(name=name, shape=value.shape, type=value.type)
    # The shape of a stored tensor is static.
    shape = ir.Shape([int(extent) for extent in tensor.shape.numpy()])
    kept = tensor if tensor.size <= _MAX_SHAPE_ELEMENTS else None
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=kept)


def _call_key(node: ir.Node) -> str:
    inputs = []
    positions: dict[ir.Value, int] = {}
    for value in node.inputs:
        if value is None:
            inputs.append("-")
            continue
        tensor = constant_tensor(value)
        content = ""
        if tensor is not None and tensor.size <= _MAX_SHAPE_ELEMENTS and tensor.dtype != ir.DataType.STRING:
            content = tensor.tobytes().hex()
        position = positions.setdefault(value, len(positions))
        inputs.append(f"{position}:{value.type}{value.shape}{content}")
    attributes = sorted(f"{name}={attr.value!r}" for name, attr in node.attributes.items())
    return "|".join([repr(node.op_identifier()), str(len(node.outputs)), *attributes, *inputs])
