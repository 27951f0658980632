"""Operators without an FX rule that the ONNX standard defines by a function of other operators."""

from __future__ import annotations

import onnx.defs
import onnx_ir
from onnx import FunctionProto, TypeProto
from opgraft.ir.fx.call import Call
from opgraft.ir.fx.values import FxValue
from opgraft.ir.program import DEFAULT_DOMAINS


def standard_body(call: Call) -> onnx_ir.Function | None:
    """The function that defines the node's operator at the model's opset, for the types of its inputs."""
    node = call.source
    if node.domain not in DEFAULT_DOMAINS or not onnx.defs.has(node.op_type):
        return None
    try:
        schema = onnx.defs.get_schema(node.op_type, call.opset, "")
    except onnx.defs.SchemaError:
        return None
    text = _function_text(schema, call)
    if text is None:
        return None
    proto = FunctionProto.FromString(text)
    if not proto.node:
        return None
    # A definition may list outputs that it computes only where the node has them.
    made = {name for node in proto.node for name in node.output}
    proto.output[:] = [name for name in proto.output if name in made]
    if not proto.opset_import:
        proto.opset_import.add(domain="", version=call.opset)
    function: onnx_ir.Function = onnx_ir.from_proto(proto)
    return function


def _function_text(schema: onnx.defs.OpSchema, call: Call) -> bytes | None:
    versions = [v for v in schema.function_opset_versions if v <= call.opset]
    if versions:
        return bytes(schema.get_function_with_opset_version(versions[-1]))
    versions = [v for v in schema.context_dependent_function_opset_versions if v <= call.opset]
    if not versions:
        return None
    types = [_type_of(v) for v in call.inputs]
    node = onnx_ir.to_proto(_named(call))
    return bytes(
        schema.get_context_dependent_function_with_opset_version(versions[-1], node.SerializeToString(), types)
    )


def _type_of(value: FxValue | None) -> bytes:
    made = TypeProto()
    if value is not None and value.dtype is not None:
        made.tensor_type.elem_type = int(value.dtype)
        if value.sizes is not None:
            dims = made.tensor_type.shape.dim
            for size in value.sizes:
                dim = dims.add()
                if isinstance(size, int):
                    dim.dim_value = size
    return bytes(made.SerializeToString())


def _named(call: Call) -> onnx_ir.Node:
    """The node apart from the model: the definition depends on which inputs and outputs there are."""
    values = [None if v is None else onnx_ir.Value(name=f"input_{i}") for i, v in enumerate(call.inputs)]
    made = onnx_ir.Node(
        "", call.source.op_type, values, list(call.attributes.values()), num_outputs=len(call.source.outputs)
    )
    for index, (own, output) in enumerate(zip(made.outputs, call.source.outputs, strict=True)):
        own.name = f"output_{index}" if output.name else ""
    return made
