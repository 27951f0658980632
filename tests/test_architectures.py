"""The list of architectures: a sample is built, sharpened, exported and compared; its ground truth is checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from architectures import (
    ARCHITECTURES,
    Built,
    ExportFailedError,
    export,
    record_module_shapes,
    samples,
    sensitivity,
    sharpen,
    sharpened,
)
from architectures.exporting import model_path
from architectures.scores import watch_scores
from architectures.sharpening import SPREAD

PROMISED = (
    "bert roberta distilbert albert deberta_v2 modernbert mpnet electra t5 bart pegasus whisper wav2vec2 gpt2 gpt_neo",
    "gpt_neox gptj opt bloom llama mistral mixtral qwen2 qwen3 qwen3_moe gemma2 gemma3_text phi phi3 falcon stablelm",
    "olmo2 cohere mamba mamba2 recurrent_gemma jamba bamba zamba vit deit beit dinov2 swin swinv2 convnext poolformer",
    "mobilevit segformer detr clip clip_text clip_vision siglip_text siglip_vision llava qwen2_vl_text qwen2_vl_vision",
    "sam_encoder encodec dac mimi davit caformer efficientnet mobilenetv3 xcit maxvit ecaresnet",
)

SAMPLE = ("bert", "llama", "swin")


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own: the test exports."""
    path = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPGRAFT_MODELS", str(path))
        yield path


def test_the_list_has_the_promised_names() -> None:
    assert set(" ".join(PROMISED).split()) <= set(ARCHITECTURES)
    for architecture in ARCHITECTURES.values():
        assert set(architecture.presets) >= {"default", "colliding_heads", "colliding_channels"}


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("sizes", ["default", "colliding_heads", "colliding_channels"])
def test_truth_agrees_with_what_the_module_computes(name: str, sizes: str) -> None:
    """The attentions named by the config are those whose softmax runs, with as many heads."""
    built = sharpened(ARCHITECTURES[name], sizes)
    with torch.no_grad():
        _, calls = watch_scores(built.module, built.inputs())
    assert [call.path for call in calls] == [truth.path for truth in built.truth.attention]
    for call, truth in zip(calls, built.truth.attention, strict=True):
        assert call.scores.shape[-3] == truth.heads
        assert call.query is None or call.query.shape[-1] == truth.head_dim
        assert SPREAD[0] * 0.9 <= call.spread() <= SPREAD[1] * 1.1


def test_colliding_sizes_collide() -> None:
    built = ARCHITECTURES["llama"].build("colliding_heads")
    truth = built.truth.attention[0]
    batch, tokens = built.inputs()["input_ids"].shape
    assert batch == tokens == truth.heads == truth.head_dim
    assert not any(built.dynamic_shapes.values())
    built = ARCHITECTURES["bert"].build("colliding_channels")
    assert built.inputs()["input_ids"].shape[1] == built.truth.width[0] == built.truth.mlp[0]


@pytest.mark.parametrize("name", SAMPLE)
def test_sharpened_weights(name: str) -> None:
    built = sharpened(ARCHITECTURES[name], "default")
    vectors = [tensor for tensor in built.module.parameters() if tensor.ndim == 1]
    assert all(bool(tensor.any()) and not bool((tensor == 1.0).all()) for tensor in vectors)
    contents = [tensor.numpy().tobytes() for tensor in built.module.parameters()]
    assert len(set(contents)) == len(contents)
    # Float32 rounding moves these outputs by 1e-5 of their deviation at most; a thousand times that is visible.
    weakest = min(sensitivity(built), key=lambda found: found.change)
    assert weakest.change > 1e-2, weakest


def test_sharpening_is_reproducible() -> None:
    first, second = (sharpen(ARCHITECTURES["bert"].build("colliding_heads")) for _ in range(2))
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name


@pytest.mark.parametrize(
    ("name", "form", "sizes"),
    [
        ("bert", "dynamo-18", "default"),
        ("llama", "torchscript", "default"),
        ("swin", "capture", "colliding_heads"),
    ],
)
def test_exported_model_equals_torch(name: str, form: str, sizes: str) -> None:
    path = export(ARCHITECTURES[name], form, sizes)
    session = onnxruntime.InferenceSession(str(path))
    for sample in samples(ARCHITECTURES[name], sizes):
        found = session.run(list(sample.outputs), sample.inputs)
        for result, expected in zip(found, sample.outputs.values(), strict=True):
            # Sharp attention multiplies rounding errors of 1e-7 layer by layer; 1e-4 of the deviation is not reached.
            np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_failed_export_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    architecture = ARCHITECTURES["bert"]

    def fail(built: Built, *_: object) -> bytes:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("architectures.exporting._export", fail)
    with pytest.raises(ExportFailedError, match="no such operator"):
        export(architecture, "dynamo-23", "default")
    monkeypatch.undo()
    with pytest.raises(ExportFailedError, match="no such operator"):
        export(architecture, "dynamo-23", "default")
    model_path(architecture, "dynamo-23", "default").with_suffix(".failed").unlink()


def test_recorded_shapes_are_keyed_by_module_path() -> None:
    built = ARCHITECTURES["bert"].build("default")
    shapes = record_module_shapes(built.module, built.inputs())
    given, made = shapes[built.truth.attention[0].path]
    assert given[0] == made[0] == (5, 7, 48)
