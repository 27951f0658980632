"""Torch capture: graphs against the torch modules they came from, run by ONNX Runtime, optimizations off."""

from __future__ import annotations

import collections
import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
ort = pytest.importorskip("onnxruntime")

from opgraft.backends.onnxruntime.executor import run_once  # noqa: E402
from opgraft.ir.capture_torch import TorchCapture, capture_torch, load_torch_file  # noqa: E402
from opgraft.ir.errors import InputError, UsageError  # noqa: E402
from opgraft.ir.normalize_export import normalize_export, strip_debug_info  # noqa: E402

pytestmark = pytest.mark.torch
nn = torch.nn
Dim = torch.export.Dim
TOKENS = {0: "batch", 1: "seq"}
TRAINING = "the module was in training mode; captured in eval mode (yours is left as it was)"


def run_ort(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def assert_matches(capture: TorchCapture, inputs: dict[str, np.ndarray]) -> None:
    """The graph agrees with torch, and both with float64.

    Three runs of the same maths in other orders: one or two layers of width 32 accumulate some tens of
    rounding steps of 6e-8 each, and 1e-5 of the largest element leaves a factor of five over the worst seen.
    """
    wanted = capture.reference(inputs)
    exact = capture.reference_float64(inputs)
    found = run_ort(capture.model, inputs)
    assert (
        list(found) == list(wanted) == list(exact) == [value.name for value in capture.model.graph.outputs]
    )
    for name, want in wanted.items():
        assert found[name].dtype == want.dtype
        assert found[name].shape == want.shape == exact[name].shape
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], want)
            continue
        assert exact[name].dtype == np.float64
        scale = np.abs(exact[name]).max()
        assert scale > 1e-3, "a vanishing output proves nothing"
        assert np.abs(found[name] - want).max() <= 1e-5 * scale
        assert np.abs(exact[name] - want).max() <= 1e-5 * scale


def sharpen(module: Any) -> Any:
    """Weights that show: no zero bias, unit gain or near-zero logits, so that a lost term moves the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(
                noise * (0.3 if parameter.ndim > 1 else 0.5) + (parameter.ndim == 1) * parameter
            )
    return module


def make_llama() -> Any:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        use_cache=False,
    )
    return sharpen(transformers.LlamaForCausalLM(config).eval())


def make_bert() -> Any:
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    return sharpen(transformers.BertModel(config).eval())


class Classifier(nn.Module):
    """Conv, BatchNorm, ReLU, Dropout, pooling, Linear: things that differ between training and eval."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, image: Any) -> Any:
        return self.head(self.body(image).mean((2, 3)))


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.linear(x)


@pytest.fixture(scope="module")
def llama() -> tuple[Any, TorchCapture]:
    """Captured from a batch of one, which a plain export would bake into the graph."""
    module = make_llama()
    ids = torch.randint(0, 64, (1, 5))
    inputs = {"attention_mask": torch.ones_like(ids), "input_ids": ids}
    return module, capture_torch(
        module, (), inputs, dynamic_shapes={"input_ids": TOKENS, "attention_mask": TOKENS}
    )


@pytest.fixture(scope="module")
def bert() -> tuple[Any, TorchCapture]:
    module = make_bert()
    ids = torch.randint(0, 64, (2, 6))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    shapes = {"input_ids": TOKENS, "attention_mask": TOKENS}
    return module, capture_torch(module, inputs, dynamic_shapes=shapes)


@pytest.fixture(scope="module")
def cnn() -> tuple[Any, TorchCapture]:
    module = Classifier()
    module.body[0].eval()
    with torch.no_grad():
        module.body[1].running_mean.normal_()
        module.body[1].running_var.uniform_(0.5, 2.0)
    return module, capture_torch(module, torch.randn(1, 3, 8, 8), dynamic_shapes={"image": {0: "batch"}})


def token_inputs(batch: int, seq: int, *, padded: bool = False) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(batch * 100 + seq)
    mask = np.ones((batch, seq), np.int64)
    if padded:
        mask[0, : seq // 2] = 0
    return {"input_ids": generator.integers(0, 64, (batch, seq)), "attention_mask": mask}


@pytest.mark.parametrize(("batch", "seq", "padded"), [(1, 3, False), (2, 5, True), (3, 9, True)])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_transformer_equals_torch(
    family: str, batch: int, seq: int, padded: bool, request: pytest.FixtureRequest
) -> None:
    _, capture = request.getfixturevalue(family)
    assert_matches(capture, token_inputs(batch, seq, padded=padded))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_cnn_equals_torch(batch: int, cnn: tuple[Any, TorchCapture]) -> None:
    image = np.random.default_rng(batch).standard_normal((batch, 3, 8, 8)).astype(np.float32)
    assert_matches(cnn[1], {"image": image})


def test_reference_is_the_users_module(llama: tuple[Any, TorchCapture]) -> None:
    inputs = token_inputs(2, 5)
    with torch.no_grad():
        wanted = llama[0](
            **{name: torch.from_numpy(array) for name, array in inputs.items()}
        ).logits.numpy()
    np.testing.assert_array_equal(llama[1].reference(inputs)["logits"], wanted)


def test_batch_of_one_is_doubled_and_dims_are_named(llama: tuple[Any, TorchCapture]) -> None:
    _, capture = llama
    assert capture.warnings == ()
    assert {value.name: value.shape for value in capture.model.graph.inputs} == {
        "input_ids": ("batch", "seq"),
        "attention_mask": ("batch", "seq"),
    }
    assert [(value.name, value.shape) for value in capture.model.graph.outputs] == [
        ("logits", ("batch", "seq", 64))
    ]
    assert {name: array.shape for name, array in capture.example_inputs.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
    }


def test_result_fields_name_the_outputs(bert: tuple[Any, TorchCapture]) -> None:
    names = [value.name for value in bert[1].model.graph.outputs]
    assert names == ["last_hidden_state", "pooler_output"]


def test_module_stays_as_it_was_and_shares_its_weights(cnn: tuple[Any, TorchCapture]) -> None:
    module, capture = cnn
    assert [name for name, part in module.named_modules() if not part.training] == ["body.0"]
    assert TRAINING in capture.warnings
    weight = capture.model.graph.initializers["head.weight"].const_value
    assert np.shares_memory(weight.numpy(), module.head.weight.detach().numpy())
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_no_machine_text_in_the_file(
    llama: tuple[Any, TorchCapture], bert: tuple[Any, TorchCapture]
) -> None:
    here = [str(Path.cwd()), str(Path(torch.__file__).parents[1]), sys.prefix, str(Path.home()), __file__]
    for _, capture in (llama, bert):
        data = ir.to_proto(capture.model).SerializeToString()
        for text in [path for path in here if len(path) > 1] + ["site-packages", 'File "', "stack_trace"]:
            assert text.encode() not in data, text
        # The weights are float32; what surrounds them must not be mostly metadata (the exporter adds 1.5 kB a node).
        n_nodes = len(list(capture.model.graph))
        n_bytes = sum(
            len(k) + len(v) for node in capture.model.graph for k, v in node.metadata_props.items()
        )
        assert n_bytes < 120 * n_nodes


def test_scopes_and_classes_are_kept(llama: tuple[Any, TorchCapture]) -> None:
    graph = llama[1].model.graph
    scopes = {node.metadata_props["opgraft.scope"] for node in graph}
    assert "model.layers.1.self_attn.q_proj" in scopes
    assert "model.norm" in scopes
    assert all(node.metadata_props["opgraft.fx"] for node in graph)
    classes = llama[1].model.metadata_props["opgraft.modules"]
    assert '"model.layers.0.self_attn.q_proj":"torch.nn.modules.linear.Linear"' in classes


def test_debug_info_can_be_kept_and_stripped_later() -> None:
    capture = capture_torch(Affine().eval(), torch.randn(2, 4), keep_debug_info=True)
    assert __file__.encode() in ir.to_proto(capture.model).SerializeToString()
    strip_debug_info(capture.model)
    data = ir.to_proto(capture.model).SerializeToString()
    assert __file__.encode() not in data
    assert b"pkg.torch" not in data
    assert [node.metadata_props["opgraft.scope"] for node in capture.model.graph] == ["linear"]


def test_strip_covers_every_place_and_spares_the_rest() -> None:
    path = "/home/someone/model.py"
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20, "f" : 1]> g (float[2] x) => (float[2] y) { y = f.twice(x) }'
        '<opset_import: ["" : 20], domain: "f"> twice (a) => (b) { b = Add(a, a) }'
    )
    function = next(iter(model.functions.values()))
    node = model.graph[0]
    holders: list[Any] = [
        model,
        model.graph,
        function,
        function[0],
        node,
        model.graph.inputs[0],
        node.outputs[0],
    ]
    for holder in holders:
        holder.metadata_props["source"] = f"made from {path}"
        holder.metadata_props["license"] = "see https://example.org/licences/mit"
        holder.doc_string = f'File "{path}", line 3'
    function[0].doc_string = "adds a/b to itself"
    strip_debug_info(model)
    assert path.encode() not in ir.to_proto(model).SerializeToString()
    assert all(holder.metadata_props["license"] for holder in holders)
    assert function[0].doc_string == "adds a/b to itself"


@pytest.mark.parametrize("dim", [Dim.DYNAMIC, Dim.AUTO, "rows", Dim("rows")], ids=str)
def test_every_way_to_declare_a_dim(dim: Any) -> None:
    capture = capture_torch(Affine().eval(), torch.randn(1, 4), dynamic_shapes={"x": {0: dim}})
    assert capture.warnings == ()
    size = capture.model.graph.inputs[0].shape[0]
    assert isinstance(size, ir.SymbolicDim)
    if dim not in (Dim.DYNAMIC, Dim.AUTO):
        assert size == "rows"
    for rows in (1, 2, 7):
        assert_matches(
            capture, {"x": np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)}
        )


class FixedRows(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + torch.ones(2, 3)


class OneRow(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.view(1, 3) + 1


class BranchOnOne(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2 if x.shape[0] == 1 else x * 3


@pytest.mark.parametrize(
    ("module", "rows", "expected"),
    [
        (
            FixedRows(),
            2,
            "input 'x', axis 0 (rows): declared dynamic, but the captured graph is fixed to 2",
        ),
        (OneRow(), 1, "input 'x', axis 0 (rows): declared dynamic, but the captured graph is fixed to 1"),
        (BranchOnOne(), 1, "the module computes something else where a dynamic dim has size 1"),
    ],
)
def test_a_dim_that_cannot_be_dynamic_is_a_warning(module: Any, rows: int, expected: str) -> None:
    capture = capture_torch(module.eval(), torch.ones(rows, 3), dynamic_shapes={"x": {0: "rows"}})
    assert any(warning.startswith(expected) for warning in capture.warnings), capture.warnings
    assert_matches(capture, capture.example_inputs)


Pair = collections.namedtuple("Pair", "first second")


class Everything(nn.Module):
    """Nested and optional inputs, Python constants, a changed buffer, repeated, passed-through and None outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Any, option: Any = None, factor: int = 2, *, batch: Any, spare: Any = None) -> Any:
        self.calls.add_(1)
        total = x * factor + self.calls
        return {
            "x": total + batch["y"][0],
            "none": None,
            "number": 3,
            "pair": Pair(total, x),
            "again": total,
            "rows": x.shape[0],
            "linear": batch["z"] * 2,
        }


@pytest.fixture(scope="module")
def everything() -> tuple[Any, TorchCapture]:
    module = Everything().eval()
    kwargs = {"spare": torch.ones(1), "batch": {"y": [torch.randn(2, 3)], "z": torch.randn(3)}}
    shapes = {"x": {0: "rows"}, "batch": {"y": [{0: "rows"}], "z": None}}
    return module, capture_torch(module, (torch.randn(2, 3), None, 3), kwargs, dynamic_shapes=shapes)


def test_nested_inputs_and_outputs_have_stable_names(everything: tuple[Any, TorchCapture]) -> None:
    module, capture = everything
    assert [value.name for value in capture.model.graph.inputs] == ["x", "spare", "batch_y_0", "batch_z"]
    outputs = [value.name for value in capture.model.graph.outputs]
    assert outputs == ["x_2", "pair_first", "pair_second", "again", "rows", "linear"]
    assert capture.warnings == (
        "outputs that are constants of the trace are dropped: 3",
        "forward() changes buffer 'calls': the graph computes a first call only",
        "input 'spare' is not used by the graph",
    )
    generator = np.random.default_rng(0)
    inputs = {
        "x": generator.standard_normal((4, 3)).astype(np.float32),
        "spare": np.ones(1, np.float32),
        "batch_y_0": generator.standard_normal((4, 3)).astype(np.float32),
        "batch_z": generator.standard_normal(3).astype(np.float32),
    }
    for _ in range(2):  # the second call must not see the first one's buffer
        assert_matches(capture, inputs)
    assert module.calls.item() == 0


def test_names_can_be_given_and_are_checked() -> None:
    module = Affine().eval()
    capture = capture_torch(module, torch.randn(2, 4), input_names=["data"], output_names=["x"])
    assert_matches(capture, {"data": np.ones((2, 4), np.float32)})
    for names in (["a", "b"], []):
        with pytest.raises(UsageError, match="1 output"):
            capture_torch(module, torch.randn(2, 4), output_names=names)
    with pytest.raises(UsageError, match="must differ"):
        capture_torch(module, torch.randn(2, 4), output_names=["x"])


def test_exported_program_is_used_as_it_is() -> None:
    module = Affine().eval()
    program = torch.export.export(module, (torch.randn(2, 4),), dynamic_shapes={"x": {0: Dim("rows")}})
    before = str(program)
    capture = capture_torch(program, dynamic_shapes={"x": {0: "batch", 1: "width"}})
    assert capture.model.graph.inputs[0].shape == ("batch", 4)
    assert capture.warnings == (
        "input 'x', axis 1 (width): declared dynamic, but the captured graph is fixed to 4 "
        "(fixed by its code or its export)",
    )
    assert_matches(capture, {"x": np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)})
    assert str(program) == before


class TracedDropout(nn.Module):
    def forward(self, x: Any) -> Any:
        return nn.functional.dropout(x, 0.5, self.training)


def test_graph_module() -> None:
    traced = torch.fx.symbolic_trace(Affine().eval())
    capture = capture_torch(traced, torch.randn(1, 4), dynamic_shapes={"x": {0: "rows"}})
    assert_matches(capture, {"x": np.ones((3, 4), np.float32)})
    frozen = capture_torch(torch.fx.symbolic_trace(TracedDropout()), torch.ones(2, 4))
    assert any("draws random numbers (Dropout" in warning for warning in frozen.warnings)


class FloatNorm(nn.Module):
    """Casts to float32 inside, as the norms of most language models do, and makes float32 constants."""

    def forward(self, x: Any) -> Any:
        wide = x.to(torch.float32)
        scale = torch.tensor(0.1, dtype=torch.float32) * torch.ones(1, dtype=torch.float32)
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6) * scale


def test_a_convolution_without_a_bias() -> None:
    """In three dims the exporter writes a bias of two dims, which the runtime refuses."""
    module = nn.Conv3d(3, 4, 2, stride=2, bias=False)
    x = torch.randn(2, 3, 4, 4, 4)
    capture = capture_torch(module, (x,))
    (conv,) = (node for node in capture.model.graph if node.op_type == "Conv")
    assert len(conv.inputs) == 2
    found = run_ort(capture.model, capture.example_inputs)["output"]
    # 24 products of numbers of order 1 in either sum.
    np.testing.assert_allclose(found, module(x).detach().numpy(), atol=1e-5)


def test_numbers_of_a_float64_module_are_float64() -> None:
    """The exporter makes -inf of the lowest float64, and so NaN of a row that is masked as a whole."""

    class Masked(nn.Module):
        def forward(self, scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            masked = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            return torch.where(mask, masked.softmax(-1), 0.1) * 0.044715

    scores = torch.randn(2, 3, dtype=torch.float64)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    capture = capture_torch(Masked(), (scores, mask))
    found = run_ort(capture.model, capture.example_inputs)["output"]
    wanted = Masked()(scores, mask).numpy()
    # Two float64 evaluations of a dozen operators on numbers up to 1; a factor rounded to float32 shows as 1e-9.
    np.testing.assert_allclose(found, wanted, rtol=1e-14)


def test_float64_reference_is_float64_throughout() -> None:
    capture = capture_torch(FloatNorm().eval(), torch.randn(2, 16))
    x = np.random.default_rng(0).standard_normal((2, 16))
    found = capture.reference_float64({"x": x})["output"]
    wanted = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * np.float64(np.float32(0.1))
    # Two float64 evaluations of six operators; any float32 step among them would show as 1e-8 or more.
    np.testing.assert_allclose(found, wanted, rtol=1e-14)
    assert torch.get_default_dtype() == torch.float32


class Cast16(nn.Module):
    def forward(self, x: Any) -> Any:
        return x * 2


def test_bfloat16_and_complex_values_cross_over() -> None:
    capture = capture_torch(Cast16().eval(), torch.arange(4, dtype=torch.bfloat16))
    assert capture.reference(capture.example_inputs)["output"].astype(np.float32).tolist() == [0, 2, 4, 6]
    capture = capture_torch(Cast16().eval(), torch.tensor([1 + 2j, 3 - 1j]))
    assert_matches(capture, {"x": np.array([[1, 2], [3, -1]], np.float32)})


@pytest.mark.parametrize("opset", [18, 23])
def test_opset_asked_for(opset: int) -> None:
    class Attend(nn.Module):
        def forward(self, q: Any, k: Any) -> Any:
            return nn.functional.gelu(nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True))

    capture = capture_torch(
        Attend().eval(), (torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)), opset=opset
    )
    assert capture.model.opset_imports[""] == opset
    assert ("Attention" in {node.op_type for node in capture.model.graph}) == (opset == 23)
    assert_matches(capture, capture.example_inputs)


@pytest.mark.parametrize("opset", [11, 17, 26])
def test_opset_the_exporter_cannot_write(opset: int) -> None:
    with pytest.raises(UsageError, match="18 to 25"):
        capture_torch(Affine().eval(), torch.randn(2, 4), opset=opset)


@pytest.mark.parametrize("opset", [18, 23])
def test_queries_that_see_no_key(opset: int) -> None:
    """torch gives zeros; the exporter's decomposition alone would give the mean of all values."""

    class Attend(nn.Module):
        def forward(self, q: Any, mask: Any) -> Any:
            return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)

    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    mask[0, :, :, :2] = False
    capture = capture_torch(Attend().eval(), (torch.randn(2, 2, 4, 8), mask), opset=opset)
    assert not capture.reference(capture.example_inputs)["output"][0, :, :2].any()
    assert_matches(capture, capture.example_inputs)


class OnValue(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + 1 if x.sum() > 0 else x - 1


class Unknown:
    def __init__(self, value: Any) -> None:
        self.value = value


class ReturnsObject(nn.Module):
    def forward(self, x: Any) -> Any:
        return Unknown(x)


class StableSort(nn.Module):
    def forward(self, x: Any) -> Any:
        return torch.sort(x, stable=True)


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stream = (item for item in ())

    def forward(self, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("module", "kind", "sign"),
    [
        (OnValue(), InputError, "torch.cond"),
        (ReturnsObject(), InputError, "register_dataclass"),
        (StableSort(), InputError, "no ONNX form"),
        (Uncopyable(), InputError, "torch.export.export"),
        ("model.pt", UsageError, "not str"),
    ],
)
def test_failures_are_one_line_with_a_remedy(module: Any, kind: type[Exception], sign: str) -> None:
    with pytest.raises(kind, match=sign) as caught:
        capture_torch(module, torch.ones(2, 3))
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    assert "site-packages" not in text


@pytest.mark.parametrize(
    ("shapes", "sign"),
    [
        ({"y": {0: "rows"}}, "'y'"),
        (({0: "rows"}, None), "2 entries"),
        ({"x": {2: "rows"}}, "axis 2"),
        ("rows", "dict"),
    ],
)
def test_dynamic_shapes_that_do_not_fit(shapes: Any, sign: str) -> None:
    with pytest.raises(UsageError, match=sign):
        capture_torch(Affine().eval(), torch.ones(2, 4), dynamic_shapes=shapes)


def test_missing_argument() -> None:
    with pytest.raises(UsageError, match="forward: missing a required argument: 'x'"):
        capture_torch(Affine().eval())


@pytest.fixture(scope="module")
def merged() -> ir.Model:
    """A file as the exporter's own optimizer leaves it: equal parameters of three norms in one initializer."""

    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = nn.LayerNorm(4), nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x: Any) -> Any:
            return self.third(self.second(self.first(x) * 2) * 3)

    program = torch.export.export(Norms().eval(), (torch.randn(2, 4),))
    exported = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=True)
    return ir.from_proto(ir.to_proto(exported.model))


def test_merged_initializers_are_reported_and_uses_keep_their_names(merged: ir.Model) -> None:
    assert len(merged.graph.initializers) < 6, "the exporter no longer merges: this test shows nothing"
    notes = normalize_export(merged)
    assert any("shared between modules" in note and "clone before changing" in note for note in notes)
    norms = [node for node in merged.graph if node.op_type == "LayerNormalization"]
    recorded = [node.metadata_props.get("opgraft.parameters") for node in norms]
    assert recorded[1:] == ["second.weight,second.bias", "third.weight,third.bias"]


def test_cast_like_becomes_cast_or_nothing() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[n] x, int64[n] i, float16[n] h, u) => (a, b, c, d) {'
        " same = CastLike(x, x) a = Add(same, x) b = CastLike(i, x) c = CastLike(h, h) d = CastLike(x, u) }"
    )
    notes = normalize_export(model)
    assert [(node.op_type, node.outputs[0].name) for node in model.graph] == [
        ("Add", "a"),
        ("Cast", "b"),
        ("Identity", "c"),
        ("CastLike", "d"),
    ]
    assert model.graph[1].attributes["to"].as_int() == ir.DataType.FLOAT
    assert notes == ["CastLike: 2 without effect removed, 1 made Cast"]
    assert normalize_export(model) == []


class Bomb:
    """Unpickling an instance makes the folder named by the environment."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_torch_files_are_refused_and_nothing_is_executed(tmp_path: Path) -> None:
    program = torch.export.export(Affine().eval(), (torch.randn(2, 4),))
    honest, hostile = tmp_path / "honest.pt2", tmp_path / "hostile.pt2"
    torch.export.save(program, honest)
    proof = tmp_path / "executed"
    bomb = io.BytesIO()
    torch.save((Bomb(str(proof)),), bomb)
    with zipfile.ZipFile(honest) as source, zipfile.ZipFile(hostile, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            is_sample = "sample_inputs" in entry.filename and entry.filename.endswith(".pt")
            target.writestr(entry, bomb.getvalue() if is_sample else source.read(entry))
    for name in ("model.pt", "model.pth", "pytorch_model.bin"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb(str(proof))))
    (tmp_path / "weights.safetensors").write_bytes(b"\0" * 16)
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(InputError) as caught:
            load_torch_file(path)
        assert caught.value.where == str(path)
        assert "pass" in caught.value.remedy
    assert not proof.exists()
    # The reason for refusing: PyTorch's own loader runs the same file, falling back to an unguarded unpickling.
    code = f"import torch; torch.export.load({str(hostile)!r})"
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120)
    assert proof.exists(), (
        "torch.export.load no longer executes this file: it may now be possible to accept .pt2"
    )


def test_without_torch_the_install_line_is_given() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from opgraft.ir.capture_torch import capture_torch\n"
        "from opgraft.ir.errors import MissingExtraError\n"
        "try: capture_torch(object())\n"
        "except MissingExtraError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "torch is not installed (pip install 'opgraft[torch]')"


def test_one_tensor_given_for_two_arguments_is_two_inputs() -> None:
    class Weighted(torch.nn.Module):
        def forward(self, values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            return values * 2.0 - weights

    both = torch.ones(2, 3)
    capture = capture_torch(Weighted(), (both, both))
    inputs = {"values": np.full((2, 3), 5.0, np.float32), "weights": np.full((2, 3), 1.0, np.float32)}
    outputs = run_once(ir.to_proto(capture.model).SerializeToString(), inputs)
    np.testing.assert_array_equal(next(iter(outputs.values())), np.full((2, 3), 9.0, np.float32))
