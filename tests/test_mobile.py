"""The mobile bundle: its files, its manifest, and that the converted model computes what the source does."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from opgraft.backends.mobile import export
from opgraft.backends.mobile.convert import OPERATORS_CONFIG
from opgraft.backends.mobile.export import MANIFEST, export_mobile, read_operators
from opgraft.ir.errors import ContractError, InputError, OutputError, UsageError


def build_cnn() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((8, 3, 3, 3)).astype(np.float32) / 5,
        "shift": rng.standard_normal(8).astype(np.float32),
        "head": rng.standard_normal((8, 4)).astype(np.float32),
    }
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    cnn (float[B,3,16,16] image) => (float[B,4] scores) {
      c = Conv<pads = [1,1,1,1], strides = [2,2]>(image, kernel, shift)
      r = Relu(c)
      p = GlobalAveragePool(r)
      f = Flatten(p)
      scores = MatMul(f, head)
    }""")
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    onnx.checker.check_model(model)
    return model


def build_transformer() -> onnx.ModelProto:
    """Token ids to one attention layer; its activation is a model-local function, which `.ort` cannot hold."""
    rng = np.random.default_rng(1)
    shapes = {"table": (50, 16), "wq": (16, 16), "wk": (16, 16), "wv": (16, 16), "gain": (16,), "zero": (16,)}
    model = onnx.parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    block (int64[B,T] ids) => (float[B,T,16] out) {
      x = Gather(table, ids)
      n = LayerNormalization(x, gain, zero)
      q = MatMul(n, wq)
      k = MatMul(n, wk)
      v = MatMul(n, wv)
      kt = Transpose<perm = [0,2,1]>(k)
      s = MatMul(q, kt)
      a = Softmax(s)
      m = MatMul(a, v)
      g = local.silu(m)
      out = Add(x, g)
    }
    <domain: "local", opset_import: ["" : 17]>
    silu (z) => (y) {
      t = Sigmoid(z)
      y = Mul(z, t)
    }""")
    for name, shape in shapes.items():
        array = rng.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.checker.check_model(model)
    return model


CNN_FEED = {"image": np.random.default_rng(2).standard_normal((3, 3, 16, 16)).astype(np.float32)}
TRANSFORMER_FEED = {"ids": np.random.default_rng(3).integers(0, 50, (2, 9))}


def run(path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, feed)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("cnn")
    onnx.save(build_cnn(), folder / "cnn.onnx")
    bundle = export_mobile(folder / "cnn.onnx", folder / "bundle")
    return folder / "cnn.onnx", bundle.folder


def test_cnn_bundle_computes_the_same(cnn: tuple[Path, Path]) -> None:
    model, folder = cnn
    assert sorted(read_tree(folder)) == sorted([MANIFEST, OPERATORS_CONFIG, "portable.ort"])
    for expected, got in zip(run(model, CNN_FEED), run(folder / "portable.ort", CNN_FEED), strict=True):
        # Convolution and pooling over 27 and 64 products in another order.
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)


def test_manifest_describes_the_files(cnn: tuple[Path, Path]) -> None:
    _, folder = cnn
    manifest = json.loads((folder / MANIFEST).read_text())
    assert set(manifest["files"]) == {OPERATORS_CONFIG, "portable.ort"}
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    assert manifest["inputs"] == [{"name": "image", "dtype": "float", "dims": ["B", 3, 16, 16]}]
    assert manifest["outputs"] == [{"name": "scores", "dtype": "float", "dims": ["B", 4]}]
    assert manifest["opset"] == {"": 17}
    assert manifest["onnxruntime"] == ort.__version__
    evidence = manifest["models"]["portable.ort"]
    assert evidence["verification"] == "verified"
    assert evidence["cases"]
    assert 0 <= evidence["max_abs_error"] <= evidence["tolerance"] < 1e-3
    assert "NNAPI" in manifest["mobile_usability"]
    assert any("MatMul" in name or "Gemm" in name for names in manifest["operators"].values() for name in names)


def test_nothing_of_this_machine_is_written(cnn: tuple[Path, Path]) -> None:
    model, folder = cnn
    for name in (MANIFEST, OPERATORS_CONFIG):
        assert str(model.parent) not in (folder / name).read_text()


def without_fingerprint(folder: Path) -> dict[str, object]:
    """The manifest but for the bytes of `.ort`: the runtime orders weights by addresses, which differ per run."""
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["files"]["portable.ort"]
    return manifest


def test_transformer_with_a_function(tmp_path: Path) -> None:
    onnx.save(build_transformer(), tmp_path / "a=b.onnx")
    bundle = export_mobile(tmp_path / "a=b.onnx", tmp_path / "bundle")
    expected = run(tmp_path / "a=b.onnx", TRANSFORMER_FEED)
    for left, right in zip(expected, run(bundle.folder / "portable.ort", TRANSFORMER_FEED), strict=True):
        # Sums over 16 products of numbers up to about 30, in another order.
        np.testing.assert_allclose(right, left, rtol=0, atol=1e-4)
    assert not any(key.startswith("local") for key in bundle.manifest["operators"])
    assert bundle.manifest["models"]["portable.ort"]["verification"] == "verified"


def test_existing_folder_is_refused(cnn: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = cnn
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError):
            export_mobile(model, other, force=force)
    assert read_tree(other) == {"letter.txt": b"mine"}


def test_force_replaces_a_bundle_by_an_equal_one(cnn: tuple[Path, Path], tmp_path: Path) -> None:
    model, folder = cnn
    old = tmp_path / "bundle"
    old.mkdir()
    (old / MANIFEST).write_text("{}")
    (old / "kernels.ort").write_text("old")
    with pytest.raises(OutputError, match="not empty"):
        export_mobile(model, old)
    export_mobile(model, old, force=True)
    assert without_fingerprint(old) == without_fingerprint(folder)
    assert sorted(read_tree(old)) == sorted(read_tree(folder))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_wrong_conversion_is_refuted(cnn: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted converter that makes another model: nothing is written."""
    model, _ = cnn
    wrong = onnx.load(model)
    wrong.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", [0, 0, 2, 2]))
    onnx.save(wrong, tmp_path / "wrong.onnx")
    real = export._convert

    def convert_another(folder: Path, variants: list, where: str) -> None:
        real(folder, [export._Variant("portable", tmp_path / "wrong.onnx")], where)

    monkeypatch.setattr(export, "_convert", convert_another)
    with pytest.raises(ContractError, match="computes something else"):
        export_mobile(model, tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong.onnx"]


def test_bad_arguments(cnn: tuple[Path, Path], tmp_path: Path) -> None:
    model, _ = cnn
    with pytest.raises(UsageError, match="go together"):
        export_mobile(model, tmp_path / "bundle", kernels_model=model)
    with pytest.raises(OutputError, match="folder above"):
        export_mobile(model, tmp_path / "none" / "bundle")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(InputError):
        export_mobile(tmp_path / "empty.onnx", tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.onnx"]


def test_operator_configuration_is_read() -> None:
    config = '# made from\nai.onnx;13;Add{"inputs": {"0": ["float", "int64_t"]}},Relu\ncom.microsoft;1;Gelu\n'
    assert read_operators(config) == {"ai.onnx;13": ["Add", "Relu"], "com.microsoft;1": ["Gelu"]}


@pytest.mark.tvm
def test_kernels_variant_keeps_the_calls(tmp_path: Path) -> None:
    pytest.importorskip("tvm_ffi")
    import onnx_ir
    from opgraft.backends.tvm.partition import lower_elementwise

    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[B,32] x) => (float[B,32] y) {
      s = Sigmoid(x)
      m = Mul(x, s)
      t = Tanh(m)
      y = Add(t, x)
    }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    lowering = lower_elementwise(onnx_ir.load(tmp_path / "model.onnx"), cache_dir=tmp_path / "cache")
    onnx_ir.save(lowering.model, tmp_path / "kernels.onnx")
    bundle = export_mobile(
        tmp_path / "model.onnx",
        tmp_path / "bundle",
        kernels_model=tmp_path / "kernels.onnx",
        kernels_library=lowering.library,
    )
    assert bundle.manifest["operators"]["opgraft.kernels;1"] == [lowering.regions[0].operator]
    assert {entry["verification"] for entry in bundle.manifest["models"].values()} == {"verified"}
    feed = {"x": np.linspace(-4, 4, 64, dtype=np.float32).reshape(2, 32)}
    run(bundle.folder / "portable.ort", feed)
    with pytest.raises(Exception, match=lowering.regions[0].operator):
        run(bundle.folder / "kernels.ort", feed)
