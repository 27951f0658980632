"""`import opgraft as og`: what a Python user calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import opgraft as og
import pytest

MODELS = Path(__file__).parent / "models"
DECODER = MODELS / "decoder.onnx"
IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]], np.int64)
FEEDS = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


def run_onnx(model: Path | bytes, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    source = str(model) if isinstance(model, Path) else model
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def test_a_path_in_a_result_out(tmp_path: Path) -> None:
    result = og.optimize(DECODER, output=tmp_path / "out.onnx", measure=False)
    assert result.output == tmp_path / "out.onnx"
    assert result.report.outcome == "verified"
    expected = run_onnx(DECODER, FEEDS)[0]
    np.testing.assert_allclose(run_onnx(tmp_path / "out.onnx", FEEDS)[0], expected, rtol=1e-4, atol=1e-5)
    json.dumps(result.report.to_json(), allow_nan=False)
    with pytest.raises(og.OpgraftError, match="exists"):
        og.optimize(DECODER, output=tmp_path / "out.onnx", measure=False)


def test_without_an_output_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = og.optimize(str(DECODER), measure=False)
    assert list(tmp_path.iterdir()) == []
    assert result.output is None
    result.save("saved.onnx")
    with pytest.raises(og.OpgraftError):
        result.save("saved.onnx")
    result.save("saved.onnx", force=True)
    onnx.checker.check_model("saved.onnx")


def test_session_runs_the_result(tmp_path: Path) -> None:
    expected = run_onnx(DECODER, FEEDS)[0]
    for output in (None, tmp_path / "out.onnx"):
        session = og.optimize(DECODER, output=output, measure=False).session()
        np.testing.assert_allclose(session.run(FEEDS)["result"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["bytes", "proto", "program"])
def test_models_in_memory(form: str) -> None:
    source: Any = {
        "bytes": DECODER.read_bytes,
        "proto": lambda: onnx.load(DECODER),
        "program": lambda: og.capture(DECODER),
    }[form]()
    result = og.optimize(source, measure=False)
    assert result.report.outcome == "verified"
    assert sum(result.report.nodes_after.values()) < sum(result.report.nodes_before.values())


def test_pipelines_as_objects_and_text() -> None:
    text = "eliminate-dead-code, (fuse-div-mul, compose-unsqueezes)"
    by_text = og.optimize(DECODER, passes=text, measure=False)
    by_object = og.optimize(DECODER, passes=og.Pipeline.parse(text), measure=False)
    assert by_text.report.pipeline == by_object.report.pipeline == text
    assert by_text.report.nodes_after == by_object.report.nodes_after
    fired = {p.name for p in by_text.report.passes if p.n_rewrites}
    assert fired == {"fuse-div-mul", "compose-unsqueezes"}


def test_errors_are_of_the_python_kind() -> None:
    with pytest.raises(ValueError, match="no pass is named"):
        og.optimize(DECODER, passes="improve")
    with pytest.raises(og.UsageError, match="no option is named 'speed'"):
        og.optimize(DECODER, speed=11)
    with pytest.raises(og.InputError):
        og.optimize("none.onnx")
    with pytest.raises(og.UsageError, match="capture"):
        og.optimize(42)
    with pytest.raises(og.UsageError, match="exact or numeric"):
        og.verify(DECODER, DECODER, contract="roughly")


def test_verify_two_files(tmp_path: Path) -> None:
    assert og.verify(DECODER, DECODER, contract="exact").outcome.value == "verified"
    assert og.verify(DECODER, MODELS / "encoder.onnx").outcome.value == "refuted"


def test_given_inputs_and_decisions() -> None:
    result = og.optimize(DECODER, inputs=[FEEDS], measure=False)
    assert result.report.evidence["cases"][0] == "given 1"
    again = og.optimize(DECODER, decisions=result.decisions, measure=False)
    assert again.report.nodes_after == result.report.nodes_after
    with pytest.raises(og.UsageError, match="another model"):
        og.optimize(MODELS / "encoder.onnx", decisions=result.decisions)


@pytest.mark.torch
def test_torch_module_with_dynamic_shapes(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.GELU(), torch.nn.Linear(8, 3)).eval()
    example = torch.randn(4, 6)
    result = og.optimize(
        module,
        (example,),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        output=tmp_path / "module.onnx",
        measure=False,
    )
    assert result.report.outcome == "verified"
    name = onnx.load(tmp_path / "module.onnx").graph.input[0].name
    for batch in (1, 4, 7):
        x = torch.randn(batch, 6)
        found = run_onnx(tmp_path / "module.onnx", {name: x.numpy()})[0]
        np.testing.assert_allclose(found, module(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.torch
def test_the_result_as_a_torch_module() -> None:
    import torch

    module = og.optimize(DECODER, measure=False).to_torch()
    found = module(**{name: torch.from_numpy(array) for name, array in FEEDS.items()})
    # Sums of float32 in another order than the runtime's.
    np.testing.assert_allclose(found.numpy(), run_onnx(DECODER, FEEDS)[0], rtol=1e-4, atol=1e-5)


def test_sites_of_a_program() -> None:
    sites = og.find_sites(og.capture(DECODER))
    assert sites.attention
    assert [str(mask) for mask in sites.masks] == ["causal+padding"] * len(sites.attention)
