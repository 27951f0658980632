"""From a checked `ModelProto` to the IR.

A main graph that is all nodes and tensors is read by a loop of our own, faster than the IR's reader, which is ready for
everything; whatever is rarer (subgraphs, functions, annotations, nodes in any order) is left to that.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir
from onnx_ir import serde
from opgraft.ir.small_tensor import DATA_TYPES, SmallTensor, is_small


def read_model(proto: onnx.ModelProto, *, is_plain: bool) -> onnx_ir.Model:
    """The model of a valid message. `is_plain`: its nodes are in order and have neither subgraphs nor devices."""
    if not is_plain or proto.functions or proto.configuration or proto.graph.quantization_annotation:
        model: onnx_ir.Model = onnx_ir.from_proto(proto)
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, serde.TensorProtoTensor) and is_small(tensor.raw):
                value.const_value = SmallTensor(tensor.raw)
        return model
    graph = _read_graph(proto.graph)
    graph.opset_imports.update(serde.deserialize_opset_import(proto.opset_import))
    return onnx_ir.Model(
        graph,
        ir_version=proto.ir_version,
        producer_name=proto.producer_name or None,
        producer_version=proto.producer_version or None,
        domain=proto.domain or None,
        model_version=proto.model_version or None,
        doc_string=proto.doc_string or None,
        metadata_props=_metadata(proto.metadata_props),
    )


def _metadata(entries: Iterable[onnx.StringStringEntryProto]) -> dict[str, str] | None:
    return {entry.key: entry.value for entry in entries} or None


def _read_graph(proto: onnx.GraphProto) -> onnx_ir.Graph:
    infos = {info.name: info for info in proto.value_info}
    inputs = [serde.deserialize_value_info_proto(info, None) for info in proto.input]
    values = {value.name or "": value for value in inputs}
    initializers = [_read_initializer(tensor, values, infos) for tensor in proto.initializer]
    nodes = _read_nodes(proto.node, values, infos)
    outputs = [serde.deserialize_value_info_proto(info, values[info.name]) for info in proto.output]
    return onnx_ir.Graph(
        inputs,
        outputs,
        nodes=nodes,
        initializers=initializers,
        doc_string=proto.doc_string or None,
        name=proto.name or None,
        metadata_props=_metadata(proto.metadata_props),
    )


def _read_initializer(
    proto: onnx.TensorProto, values: dict[str, onnx_ir.Value], infos: dict[str, onnx.ValueInfoProto]
) -> onnx_ir.Value:
    tensor = SmallTensor(proto) if is_small(proto) else serde.deserialize_tensor(proto)
    name = proto.name
    value = values.get(name)
    if value is not None:  # the default of a graph input
        value.const_value = tensor
        return value
    value = onnx_ir.Value(
        name=name,
        type=onnx_ir.TensorType(tensor.dtype),
        shape=tensor.shape,  # type: ignore[arg-type]
        const_value=tensor,
    )
    if name in infos:
        serde.deserialize_value_info_proto(infos[name], value)
    values[name] = value
    return value


def _read_nodes(
    protos: Iterable[onnx.NodeProto], values: dict[str, onnx_ir.Value], infos: dict[str, onnx.ValueInfoProto]
) -> list[onnx_ir.Node]:
    nodes = []
    # One string and one shape for all that are equal: names and shapes repeat thousands of times.
    words: dict[str, str] = {}
    types: dict[bytes, tuple[onnx_ir.DataType, onnx_ir.Shape | None]] = {}
    for proto in protos:
        outputs = []
        for name in proto.output:
            value = onnx_ir.Value(name=name)
            if name:
                values[name] = value
                if name in infos:
                    _read_info(infos[name], value, types)
            outputs.append(value)
        op_type = proto.op_type
        node = onnx_ir.Node(
            proto.domain,
            words.setdefault(op_type, op_type),
            [values[name] if name else None for name in proto.input],
            [serde.deserialize_attribute(attribute) for attribute in proto.attribute],
            overload=proto.overload,
            outputs=outputs,
            name=proto.name,
            doc_string=proto.doc_string or None,
            metadata_props=_metadata(proto.metadata_props),
        )
        nodes.append(node)
    return nodes


def _read_info(
    info: onnx.ValueInfoProto,
    value: onnx_ir.Value,
    types: dict[bytes, tuple[onnx_ir.DataType, onnx_ir.Shape | None]],
) -> None:
    """Type and shape of a value; a tensor's of which nothing else is said are kept in `types`."""
    if info.metadata_props or info.doc_string or not info.type.HasField("tensor_type") or info.type.denotation:
        serde.deserialize_value_info_proto(info, value)
        return
    key = info.type.SerializeToString()
    found = types.get(key)
    if found is None:
        tensor = info.type.tensor_type
        shape = serde.deserialize_tensor_shape(tensor.shape) if tensor.HasField("shape") else None
        found = types[key] = (DATA_TYPES[tensor.elem_type], shape)
    # A type can be changed in place, so each value has its own; a shape that is read is frozen.
    value.type = onnx_ir.TensorType(found[0])
    value.shape = found[1]
