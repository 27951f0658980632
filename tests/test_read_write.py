"""Our reader and writer of messages against those of onnx_ir, on the models of onnx's own tests and on odd ones."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from backend_forms import load_cases
from onnx import TensorProto, helper, numpy_helper
from opgraft.ir.program import constant_array
from opgraft.ir.read_model import read_model
from opgraft.ir.small_tensor import SmallTensor
from opgraft.ir.validate import check_proto
from opgraft.ir.write_model import model_message


def message(proto: onnx.ModelProto) -> bytes:
    """Without the types that a graph repeats of its initializers, which our writer leaves out."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    known = {tensor.name for tensor in copy.graph.initializer}
    kept = [i for i in copy.graph.value_info if i.name not in known or i.metadata_props or i.doc_string]
    del copy.graph.value_info[:]
    copy.graph.value_info.extend(sorted(kept, key=lambda info: info.name))
    data: bytes = copy.SerializeToString(deterministic=True)
    return data


def check(proto: onnx.ModelProto) -> bool:
    """Compare both ways; whether the short way of reading was taken."""
    findings = check_proto(proto, "model")
    theirs, ours = onnx_ir.from_proto(proto), read_model(proto, is_plain=findings.is_plain)
    expected = message(onnx_ir.to_proto(theirs))
    assert message(onnx_ir.to_proto(ours)) == expected
    assert message(model_message(theirs)) == expected
    assert message(model_message(ours)) == expected
    return findings.is_plain


def test_models_of_the_onnx_package() -> None:
    cases = load_cases(light=False)
    n_plain = sum(check(case.model) for case in cases)
    assert n_plain > 1000
    assert n_plain < len(cases)


def full_model() -> onnx.ModelProto:
    """Every field that a plain graph can have."""
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "custom" : 3], producer_name: "p", doc_string: "model">
        full (float[N, 4] x, float[4] given) => (float[N, 4] y, float[N, 4] z) <float[4] given = {1, 2, 3, 4}>
        {
            [first] a = Add (x, given)
            b, , c = custom.Three <kind: int = -1, list: ints = [1, 2], f: float = -0.0, s: string = "é"> (a, , x)
            d = Clip (b, "", c)
            y = Identity (d)
            z = Dropout (y)
        }""")
    graph = proto.graph
    graph.doc_string = "graph"
    graph.initializer.append(numpy_helper.from_array(np.arange(6, dtype=np.int64).reshape(2, 3), "unused"))
    graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT16, [2], [0.5, -0.0]))
    graph.initializer[-1].doc_string = "tensor"
    graph.initializer[-1].metadata_props.add(key="k", value="v")
    graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["N", None]))
    graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, None))
    graph.value_info.append(helper.make_tensor_value_info("unused", TensorProto.INT64, [2, 3], doc_string="said"))
    graph.value_info.append(helper.make_tensor_sequence_value_info("c", TensorProto.FLOAT, [1]))
    graph.value_info[0].type.tensor_type.shape.dim[1].denotation = "DATA_CHANNEL"
    graph.value_info[0].metadata_props.add(key="info", value="é")
    graph.value_info[1].type.denotation = "TENSOR"
    graph.metadata_props.add(key="b", value="2")
    graph.metadata_props.add(key="a", value="1")
    proto.metadata_props.add(key="model", value="é")
    for index, node in enumerate(graph.node):
        node.doc_string = f"node {index}"
        node.metadata_props.add(key="z", value=str(index))
        node.metadata_props.add(key="a", value="é" * 200)
        node.overload = "o" if index == 1 else ""
        if node.attribute:
            node.attribute[0].doc_string = "attribute"
    return proto


def test_every_field_of_a_plain_graph() -> None:
    assert check(full_model())


def test_quantization_annotations_are_kept() -> None:
    proto = full_model()
    for name in ("x", "a", "typed", "y"):
        annotation = proto.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="given")
    written = model_message(read_model(proto, is_plain=True))
    assert sorted(a.tensor_name for a in written.graph.quantization_annotation) == ["a", "typed", "x", "y"]


@pytest.mark.parametrize("dtype", [d for d in onnx_ir.DataType if d.name not in ("UNDEFINED", "STRING")])
def test_small_tensors_are_what_the_message_says(dtype: onnx_ir.DataType) -> None:
    """Raw data of every element type: the same array, bytes and sizes as the reader of onnx_ir gives."""
    if dtype.bitwidth == 6:
        n_bytes = 3 * 6 // 8 + 1
    else:
        n_bytes = (3 * dtype.bitwidth + 7) // 8
    raw = bytes(range(1, n_bytes)) + b"\x01"
    proto = TensorProto(name="t", data_type=int(dtype), dims=[3], raw_data=raw)
    small, plain = SmallTensor(proto), onnx_ir.from_proto(proto)
    assert (small.dtype, small.shape, small.size, small.nbytes) == (plain.dtype, plain.shape, plain.size, plain.nbytes)
    if dtype.bitwidth != 6:
        assert small.numpy().tobytes() == plain.numpy().tobytes()
        assert small.numpy() is small.numpy(), "decoded once"
        assert small.tobytes() == plain.tobytes()
        with pytest.raises(ValueError, match="read-only"):
            small.numpy()[0] = small.numpy()[0]


def test_a_shared_array_is_not_written_to() -> None:
    value = onnx_ir.Value(name="t", const_value=SmallTensor(numpy_helper.from_array(np.ones(3, np.float32), "t")))
    array = constant_array(value)
    assert array is not None
    assert not array.flags.writeable
