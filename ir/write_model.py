"""From the IR to a `ModelProto`.

Nodes, types of values and initializers of the main graph are encoded here and parsed by protobuf in one go, in about
half the time that the IR's writer takes to build the messages one by one. All else is left to that.
"""

from __future__ import annotations

from typing import Any

import onnx
import onnx_ir
from onnx_ir import serde
from opgraft.ir.small_tensor import SmallTensor
from opgraft.ir.wire import encode_tag, encode_varint

# Field numbers of onnx.proto.
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_VALUE_INFO = encode_tag(1), encode_tag(5), encode_tag(13)
_INPUT, _OUTPUT, _NODE_NAME, _OP_TYPE, _ATTRIBUTE = map(encode_tag, range(1, 6))
_DOC_STRING, _DOMAIN, _OVERLOAD, _METADATA = map(encode_tag, range(6, 10))
_INFO_NAME, _INFO_TYPE = encode_tag(1), encode_tag(2)
_KEY, _VALUE = encode_tag(1), encode_tag(2)
_NO_OUTPUT = _OUTPUT + b"\0"
# Attributes whose equal values have equal bytes: not floats, whose zeros have two signs.
_COMPARABLE = (onnx_ir.AttributeType.INT, onnx_ir.AttributeType.INTS, onnx_ir.AttributeType.STRING)


def model_message(model: onnx_ir.Model) -> onnx.ModelProto:
    """The whole model as a message. Initializers without a tensor are left out, and what `value_info` would repeat
    of those that have one."""
    graph = model.graph
    empty = onnx_ir.GraphView(
        graph.inputs,
        graph.outputs,
        nodes=(),
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name,
        metadata_props=graph.metadata_props,
    )
    frame = onnx_ir.Model(
        empty,  # type: ignore[arg-type]  # documented: a model of a view can be serialized
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=tuple(model.functions.values()),
        metadata_props=model.metadata_props,
        device_configurations=model.device_configurations,
    )
    proto = serde.serialize_model(frame)
    encoder = _Encoder(proto.graph)
    proto.graph.MergeFromString(encoder.contents(graph))
    return proto


class _Texts(dict[str, bytes]):
    """A text field's wire bytes by text, each made once."""

    def __init__(self, tag: bytes) -> None:
        super().__init__()
        self.tag = tag

    def __missing__(self, text: str) -> bytes:
        found = self[text] = self.tag + _sized(text.encode())
        return found


class _Encoder:
    """Wire bytes of a graph's contents."""

    def __init__(self, proto: onnx.GraphProto) -> None:
        self.proto = proto
        self._inputs, self._outputs, self._info_names = _Texts(_INPUT), _Texts(_OUTPUT), _Texts(_INFO_NAME)
        self._op_types, self._domains, self._keys = _Texts(_OP_TYPE), _Texts(_DOMAIN), _Texts(_KEY)
        self._types: dict[tuple[object, ...], bytes] = {}
        self._attributes: dict[tuple[object, ...], bytes] = {}

    def contents(self, graph: onnx_ir.Graph) -> bytes:
        """Its initializers, nodes and types of values."""
        inputs = set(graph.inputs)
        parts: list[bytes] = []
        for value in graph.initializers.values():
            if value not in inputs:
                self._annotate(value)
                if value.metadata_props or value.doc_string:
                    parts += (_GRAPH_VALUE_INFO, self._info(value))
            if value.const_value is not None:
                parts += (_GRAPH_INITIALIZER, _tensor(value, value.const_value))
        for node in graph:
            parts += (_GRAPH_NODE, self._node(node))
            for output in node.outputs:
                if output.is_graph_output():
                    continue
                self._annotate(output)
                if output.name and (output.type or output.shape or output.metadata_props or output.doc_string):
                    parts += (_GRAPH_VALUE_INFO, self._info(output))
        return b"".join(parts)

    def _node(self, node: onnx_ir.Node) -> bytes:
        if node.device_configurations:
            return _sized(_message(serde.serialize_node(node)))
        inputs, outputs = self._inputs, self._outputs
        parts = [inputs["" if value is None else value.name or ""] for value in node.inputs]
        parts += [outputs[value.name or ""] for value in node.outputs]
        while parts and parts[-1] == _NO_OUTPUT:
            parts.pop()
        if node.name:
            parts.append(_NODE_NAME + _sized(node.name.encode()))
        parts.append(self._op_types[node.op_type])
        if node.domain:
            parts.append(self._domains[node.domain])
        if node.attributes:
            parts += [_ATTRIBUTE + self._attribute(attribute) for attribute in node.attributes.values()]
        if node.metadata_props:
            parts += [self._metadata(key, text) for key, text in sorted(node.metadata_props.items())]
        if node.overload:
            parts.append(_OVERLOAD + _sized(node.overload.encode()))
        if node.doc_string:
            parts.append(_DOC_STRING + _sized(node.doc_string.encode()))
        return _sized(b"".join(parts))

    def _metadata(self, key: str, text: str) -> bytes:
        return _METADATA + _sized(self._keys[key] + _VALUE + _sized(text.encode()))

    def _attribute(self, attribute: onnx_ir.Attr) -> bytes:
        if attribute.is_ref():
            return _sized(_message(serde.serialize_reference_attribute(attribute)))
        kind = attribute.type
        if kind not in _COMPARABLE or attribute.doc_string:
            return _sized(_message(serde.serialize_attribute(attribute)))
        value = attribute.value
        key = (attribute.name, kind, value if isinstance(value, (int, str)) else tuple(value))
        found = self._attributes.get(key)
        if found is None:
            found = self._attributes[key] = _sized(_message(serde.serialize_attribute(attribute)))
        return found

    def _info(self, value: onnx_ir.Value) -> bytes:
        kind, shape = value.type, value.shape
        if value.metadata_props or value.doc_string or not isinstance(kind, onnx_ir.TensorType) or kind.denotation:
            return _sized(_message(serde.serialize_value(value)))
        # The graph keeps its shapes alive while this runs, so that no other can have the same identity.
        key = (kind.dtype, None if shape is None else id(shape))
        encoded = self._types.get(key)
        if encoded is None:
            encoded = self._types[key] = _INFO_TYPE + _sized(_message(serde.serialize_value(value).type))
        return _sized(self._info_names[value.name or ""] + encoded)

    def _annotate(self, value: onnx_ir.Value) -> None:
        """Quantization parameters, which the IR keeps in a store that asking for creates."""
        if value._metadata is None:
            return
        parameters = value.meta.get("quant_parameter_tensor_names")
        if parameters:
            annotation = self.proto.quantization_annotation.add(tensor_name=value.name)
            for key in sorted(parameters):
                annotation.quant_parameter_tensor_names.add(key=key, value=parameters[key])


def _tensor(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> bytes:
    if tensor.name != value.name:
        tensor.name = value.name
    if isinstance(tensor, SmallTensor) and not tensor.metadata_props:
        return _sized(_message(tensor.raw))
    return _sized(_message(serde.serialize_tensor(tensor)))


def _message(proto: Any) -> bytes:
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


_SHORT = [bytes((n,)) for n in range(128)]


def _sized(data: bytes) -> bytes:
    """The payload of a field with its length before it."""
    n_bytes = len(data)
    return (_SHORT[n_bytes] if n_bytes < 128 else encode_varint(n_bytes)) + data
