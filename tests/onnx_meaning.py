"""What a model file says, independent of how: two files with equal meanings are the same model."""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, TensorProto, numpy_helper


def meaning(model: onnx.ModelProto) -> dict[str, Any]:
    """A comparable value. External data must have been loaded; the order of initializers and texts says nothing."""
    return {
        "graph": _graph(model.graph),
        "functions": {(f.domain, f.name, f.overload): _function(f) for f in model.functions},
        "opsets": _opsets(model.opset_import),
        "header": (model.ir_version, model.producer_name, model.producer_version, model.domain, model.model_version),
        "doc": model.doc_string,
        "metadata": _texts(model),
        "training": [t.SerializeToString(deterministic=True) for t in model.training_info],
    }


def _texts(item: Any) -> dict[str, str]:
    assert len({e.key for e in item.metadata_props}) == len(item.metadata_props), "metadata written twice"
    return {e.key: e.value for e in item.metadata_props}


def _opsets(imports: Any) -> dict[str, int]:
    return {"" if i.domain == "ai.onnx" else i.domain: i.version for i in imports}


def _function(function: onnx.FunctionProto) -> Any:
    return (
        list(function.input),
        list(function.output),
        sorted(function.attribute),
        sorted(a.SerializeToString(deterministic=True) for a in function.attribute_proto),
        [_node(n) for n in function.node],
        _opsets(function.opset_import),
        function.doc_string,
        _texts(function),
        {i.name: _value(i) for i in function.value_info},
    )


def _graph(graph: onnx.GraphProto) -> Any:
    initializers = {t.name: _tensor(t) for t in graph.initializer}
    known = {*initializers, *(i.name for i in (*graph.input, *graph.output))}
    return (
        graph.name,
        [_value(i) for i in graph.input],
        [_value(i) for i in graph.output],
        initializers,
        [_node(n) for n in graph.node],
        {i.name: _value(i) for i in graph.value_info if i.name not in known},
        graph.doc_string,
        _texts(graph),
        {a.tensor_name: a.SerializeToString(deterministic=True) for a in graph.quantization_annotation},
    )


def _value(info: onnx.ValueInfoProto) -> Any:
    return info.name, info.type.SerializeToString(deterministic=True), info.doc_string, _texts(info)


def _node(node: onnx.NodeProto) -> Any:
    operands = []
    for names in (list(node.input), list(node.output)):
        while names and not names[-1]:
            names.pop()
        operands.append(names)
    domain = "" if node.domain == "ai.onnx" else node.domain
    attributes = {a.name: _attribute(a) for a in node.attribute}
    return domain, node.op_type, node.overload, node.name, operands, attributes, node.doc_string, _texts(node)


def _attribute(attribute: AttributeProto) -> Any:
    kind = attribute.type
    if kind == AttributeProto.GRAPH:
        return _graph(attribute.g)
    if kind == AttributeProto.GRAPHS:
        return [_graph(g) for g in attribute.graphs]
    if kind == AttributeProto.TENSOR:
        return _tensor(attribute.t)
    if kind == AttributeProto.TENSORS:
        return [_tensor(t) for t in attribute.tensors]
    return attribute.SerializeToString(deterministic=True)


def _tensor(tensor: TensorProto) -> Any:
    assert tensor.data_location != TensorProto.EXTERNAL, "load external data first"
    if tensor.data_type == TensorProto.STRING:
        data: Any = list(tensor.string_data)
    elif tensor.HasField("raw_data"):
        data = tensor.raw_data
    else:
        data = numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data
    return tensor.data_type, list(tensor.dims), data, tensor.doc_string, _texts(tensor)
