"""A data file that did not change can be shared with the output, and the model stays right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.save import save


@pytest.fixture
def model(tmp_path: Path) -> Path:
    weights = [np.arange(2048, dtype=np.float32) + i for i in range(3)]
    nodes = [helper.make_node("Add", ["x" if i == 0 else f"y{i - 1}", f"w{i}"], [f"y{i}"]) for i in range(3)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2048])],
        [helper.make_tensor_value_info("y2", TensorProto.FLOAT, [2048])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="model.data", size_threshold=0)
    return path


def sums(path: Path) -> list[float]:
    return [float(numpy_helper.to_array(t).sum()) for t in onnx.load(path).graph.initializer]


def test_a_clone_is_found_and_right(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file systems that tests run on seldom clone: a copy stands for the request, offsets are what is tested."""

    def clone(source: Path, temporary: Path, tensors: object) -> bool:
        shutil.copyfile(source, temporary)
        return True

    monkeypatch.setattr("opgraft.ir.save.clone_data", clone)
    output = model.with_name("out.onnx")
    save(capture_onnx(model), output)
    assert sums(output) == sums(model)
    assert output.with_name("out.onnx.data").read_bytes() == model.with_name("model.data").read_bytes()


def test_the_output_is_independent(model: Path) -> None:
    output = model.with_name("out.onnx")
    save(capture_onnx(model), output)
    expected = sums(model)
    assert not output.with_name("out.onnx.data").samefile(model.with_name("model.data"))
    model.with_name("model.data").write_bytes(bytes(3 * 8192))
    assert sums(output) == expected


def test_a_changed_weight_is_written_anew(model: Path) -> None:
    program = capture_onnx(model)
    import onnx_ir

    program.graph.initializers["w1"].const_value = onnx_ir.tensor(np.zeros(2048, np.float32), name="w1")
    output = model.with_name("out.onnx")
    save(program, output)
    assert sums(output)[1] == 0.0
    assert sums(output)[::2] == sums(model)[::2]
    assert not output.with_name("out.onnx.data").samefile(model.with_name("model.data"))
