"""Operators of ONNX Runtime as torch, against the runtime itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip("torch")

from opgraft.backends.onnxruntime.executor import run_once  # noqa: E402
from opgraft.ir.capture_onnx import capture_onnx  # noqa: E402
from opgraft.ir.emit_fx import emit_fx  # noqa: E402
from opgraft.ir.errors import InputError  # noqa: E402
from opgraft.ir.inputs import input_cases  # noqa: E402

pytestmark = pytest.mark.torch
B, S, H, D, P = 2, 5, 4, 16, 3
WEIGHTS = ("words", "places", "kind", "scale", "bias", "weights", "cos", "sin", "codes", "scales", "zeros")
RNG = np.random.default_rng(0)
_TYPES = {
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
}


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def codes(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def ids(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int32)


def model(operator: str, inputs: dict[str, np.ndarray | None], n_outputs: int, **attributes: Any) -> bytes:
    """One node on graph inputs with dims that a run tells; its outputs have no recorded type."""
    given = {name: array for name, array in inputs.items() if array is not None}
    node = helper.make_node(
        operator,
        [name if name in given else "" for name in inputs],
        [f"y{i}" for i in range(n_outputs)],
        domain="com.microsoft",
        **attributes,
    )
    # Behind a further operator, so that the emission has to know type and rank of what the first one made.
    last = helper.make_node("Neg", ["y0"], ["z"])
    infos = [
        helper.make_tensor_value_info(
            n, _TYPES[a.dtype.name], a.shape if n in WEIGHTS else [f"{n}_{i}" for i in range(a.ndim)]
        )
        for n, a in given.items()
    ]
    results = [onnx.ValueInfoProto(name=n) for n in ("z", *(f"y{i}" for i in range(1, n_outputs)))]
    graph = helper.make_graph([node, last], "one", infos, results)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8).SerializeToString()


def heads(n_heads: int = H, length: int = S, width: int = D) -> np.ndarray:
    return drawn(B, length, n_heads * width)


def past(n_heads: int = H, length: int = P) -> np.ndarray:
    return drawn(B, n_heads, length, D)


def table(rows: int = 32) -> dict[str, np.ndarray]:
    angles = np.arange(rows)[:, None] / 10 ** np.linspace(0, 2, D // 2)
    return {"cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32)}


Q, K, V = {"query": heads()}, {"key": heads(length=7)}, {"value": heads(length=7)}
NEW = {"query": heads(), "key": heads(), "value": heads()}
GQ = {"query": heads(), "key": heads(2), "value": heads(2)}
ONE = {"query": heads(length=1), "key": heads(2, 1), "value": heads(2, 1)}
CACHE = {"past_key": past(2), "past_value": past(2)}
EMPTY = {"past_key": None, "past_value": None}
FLAGS = np.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]], np.int32)
PACKED = {"x": drawn(B, S, 24), "weights": drawn(24, 3 * H * D) / 5, "bias": drawn(3 * H * D)}
PROMPT = {"lengths": ids(S - 1, 2), "total": np.array(S, np.int32)}

IMAGE = {"x": drawn(2, 3, 8, 8), "w": drawn(4, 3, 3, 3), "b": drawn(4)}
MATRICES = {"a": drawn(3, 4), "b": drawn(5, 4), "c": drawn(5)}
FOUR_BITS = {"x": drawn(2, 5, 40), "codes": codes(6, 3, 8), "scales": drawn(6, 3) / 8}
N_BITS = {"K": 40, "N": 6, "block_size": 16}

Case = tuple[str, dict[str, np.ndarray | None], int, dict[str, Any]]
MHA, GQA = {"num_heads": H}, {"num_heads": H, "kv_num_heads": 2}
CASES: dict[str, Case] = {
    "cross": ("MultiHeadAttention", Q | K | V, 1, MHA),
    "scale": ("MultiHeadAttention", Q | K | V, 1, MHA | {"scale": 0.7}),
    "bias": ("MultiHeadAttention", NEW | {"bias": drawn(3 * H * D)}, 1, MHA),
    "other width of values": (
        "MultiHeadAttention", Q | K | {"value": heads(length=7, width=6), "bias": drawn(2 * H * D + H * 6)}, 1, MHA
    ),
    "padding": ("MultiHeadAttention", Q | K | V | {"bias": None, "padding": FLAGS}, 1, MHA),
    "padding by query": (
        "MultiHeadAttention", Q | K | V | {"bias": None, "padding": np.repeat(FLAGS[:, None], S, 1)}, 1, MHA
    ),
    "weak padding": (
        "MultiHeadAttention", Q | K | V | {"bias": None, "padding": FLAGS}, 1, MHA | {"mask_filter_value": -2.0}
    ),
    "attention bias": ("MultiHeadAttention", Q | K | V | {"b": None, "p": None, "extra": drawn(1, H, S, 7)}, 1, MHA),
    "causal": ("MultiHeadAttention", NEW, 1, MHA | {"unidirectional": 1}),
    "past": (
        "MultiHeadAttention", NEW | {"b": None, "p": None, "e": None, "past_key": past(), "past_value": past()}, 3,
        MHA | {"unidirectional": 1},
    ),
    "heads apart": ("MultiHeadAttention", Q | {"key": past(), "value": past()}, 1, MHA),
    "one projection": ("Attention", PACKED, 1, MHA),
    "one projection, causal": ("Attention", PACKED, 1, MHA | {"unidirectional": 1}),
    "one projection, padded": ("Attention", PACKED | {"mask": FLAGS[:, :S]}, 1, MHA),
    "one projection, lengths": ("Attention", PACKED | {"mask": ids(3, 5)}, 1, MHA),
    "one projection, ends and starts": ("Attention", PACKED | {"mask": ids(5, 4, 2, 0)}, 1, MHA),
    "one projection, past": ("Attention", PACKED | {"mask": None, "past": drawn(2, B, H, P, D)}, 2, MHA),
    "one projection, past and padding": (
        "Attention", PACKED | {"mask": np.ones((B, S + P), np.int32), "past": drawn(2, B, H, P, D)}, 2,
        MHA | {"unidirectional": 1},
    ),
    "one projection, bias": ("Attention", PACKED | {"m": None, "p": None, "extra": drawn(B, H, S, S)}, 1, MHA),
    "groups": ("GroupQueryAttention", GQ | EMPTY | PROMPT, 3, GQA),
    "groups, packed": (
        "GroupQueryAttention", {"query": heads(H + 4), "key": None, "value": None} | EMPTY | PROMPT, 3, GQA
    ),
    "groups, window": ("GroupQueryAttention", GQ | EMPTY | PROMPT, 3, GQA | {"local_window_size": 2}),
    "groups, softcap": ("GroupQueryAttention", GQ | EMPTY | PROMPT, 3, GQA | {"softcap": 1.5, "scale": 0.6}),
    "groups, rotary": ("GroupQueryAttention", GQ | EMPTY | PROMPT | table(), 3, GQA | {"do_rotary": 1}),
    "groups, interleaved": (
        "GroupQueryAttention", GQ | EMPTY | PROMPT | table(), 3, GQA | {"do_rotary": 1, "rotary_interleaved": 1}
    ),
    "groups, bias": (
        "GroupQueryAttention",
        GQ | EMPTY | PROMPT | {"cos": None, "sin": None, "at": None, "extra": drawn(1, H, S, S)}, 3, GQA,
    ),
    "groups, sink": (
        "GroupQueryAttention",
        GQ | EMPTY | PROMPT | {"cos": None, "sin": None, "at": None, "extra": None, "sink": drawn(H)}, 3, GQA,
    ),
    "groups, smooth": ("GroupQueryAttention", GQ | EMPTY | PROMPT, 3, GQA | {"smooth_softmax": 1}),
    "groups, step": (
        "GroupQueryAttention", ONE | CACHE | {"lengths": ids(P, P), "total": np.array(P + 1, np.int32)} | table(), 3,
        GQA | {"do_rotary": 1},
    ),
    "groups, ragged step": (
        "GroupQueryAttention", ONE | CACHE | {"lengths": ids(P, 1), "total": np.array(P + 1, np.int32)} | table(), 3,
        GQA | {"do_rotary": 1},
    ),
    "groups, step in a window": (
        "GroupQueryAttention", ONE | CACHE | {"lengths": ids(P, P), "total": np.array(P + 1, np.int32)}, 3,
        GQA | {"local_window_size": 2},
    ),
    "rotary": (
        "RotaryEmbedding", {"x": heads(), "at": np.array([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])} | table(), 1, {}
    ),
    "rotary from a place on": ("RotaryEmbedding", {"x": heads(), "at": np.array([3])} | table(), 1, {}),
    "rotary, heads apart": (
        "RotaryEmbedding", {"x": drawn(B, H, S, D), "at": np.array([3])} | table(), 1, {"interleaved": 1}
    ),
    "rotary, in part": (
        "RotaryEmbedding", {"x": heads(width=2 * D), "at": np.array([3])} | table(), 1,
        {"num_heads": H, "rotary_embedding_dim": D},
    ),
    "embedding": (
        "EmbedLayerNormalization",
        {
            "ids": ids([1, 2, 3], [4, 5, 6]), "kinds": ids([0, 0, 1], [1, 1, 0]), "words": drawn(9, 16),
            "places": drawn(5, 16), "kind": drawn(2, 16), "scale": drawn(16), "bias": drawn(16),
            "mask": ids([1, 1, 0], [1, 1, 1]),
        },
        3, {"epsilon": 1e-5},
    ),
    "convolution": ("FusedConv", IMAGE, 1, {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    "convolution, leaky": ("FusedConv", IMAGE, 1, {"activation": "LeakyRelu", "activation_params": [0.25]}),
    "convolution, clipped": ("FusedConv", IMAGE, 1, {"activation": "Clip", "activation_params": [-0.5, 0.75]}),
    "convolution, hard": ("FusedConv", IMAGE, 1, {"activation": "HardSigmoid", "activation_params": [0.25, 0.5]}),
    "convolution and sum": ("FusedConv", IMAGE | {"sum": drawn(2, 4, 6, 6)}, 1, {"activation": "Relu"}),
    "gemm": ("FusedGemm", MATRICES, 1, {"activation": "Sigmoid", "transB": 1, "alpha": 0.5}),
    "gemm, leaky": ("FusedGemm", MATRICES, 1, {"activation": "LeakyRelu", "activation_alpha": 0.25, "transB": 1}),
    "4 bits": ("MatMulNBits", FOUR_BITS, 1, N_BITS | {"bits": 4}),
    "4 bits, zero points": ("MatMulNBits", FOUR_BITS | {"zeros": codes(6, 2)}, 1, N_BITS | {"bits": 4}),
    "8 bits": ("MatMulNBits", FOUR_BITS | {"codes": codes(6, 3, 16)}, 1, N_BITS | {"bits": 8}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_the_runtime(name: str) -> None:
    operator, inputs, n_outputs, attributes = CASES[name]
    content = model(operator, inputs, n_outputs, **attributes)
    feed = {n: a for n, a in inputs.items() if a is not None}
    wanted = list(run_once(content, feed).values())
    emitted = emit_fx(capture_onnx(content))
    arguments = [torch.from_numpy(a) for a in feed.values()]
    found = emitted(*arguments)
    found = list(found) if isinstance(found, tuple) else [found]
    if name == "groups, ragged step":  # what lies behind the last key of the shorter sequence is unspecified
        wanted, found = wanted[:1], found[:1]
    # Scores and outputs of a few units, sums of up to 24 products: some tens of roundings of 6e-8.
    for want, got in zip(wanted, found, strict=True):
        assert got.numpy().dtype == want.dtype
        np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("with_bias", [False, True])
def test_packed_as_apart(with_bias: bool) -> None:
    """The runtime has packed queries, keys and values on other devices only."""
    bias = {"bias": drawn(3 * H * D)} if with_bias else {}
    wanted = run_once(model("MultiHeadAttention", NEW | bias, 1, **MHA), NEW | bias)["z"]
    query, *others = (array.reshape(B, S, H, D) for array in NEW.values())
    packed = {"query": np.stack([query, *others], 3)} | ({"k": None, "v": None} | bias if with_bias else {})
    forms: list[dict[str, np.ndarray | None]] = [packed]
    if not with_bias:
        forms.append({"query": NEW["query"], "key": np.stack(others, 3)})
    for form in forms:
        emitted = emit_fx(capture_onnx(model("MultiHeadAttention", form, 1, **MHA)))
        found = emitted(*(torch.from_numpy(a) for a in form.values() if a is not None))
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=5e-6)  # as above


@pytest.mark.parametrize("name", ["past", "groups, step", "one projection, padded", "rotary"])
def test_exported_and_compiled(name: str) -> None:
    operator, inputs, n_outputs, attributes = CASES[name]
    emitted = emit_fx(capture_onnx(model(operator, inputs, n_outputs, **attributes)))
    arguments = tuple(torch.from_numpy(a) for a in inputs.values() if a is not None)
    torch._dynamo.reset()
    made = [
        torch.export.export(emitted, arguments).module(),
        torch.compile(emitted, fullgraph=True, backend="eager", dynamic=True),
    ]
    wanted = emitted(*arguments)
    for module in made:
        found = module(*arguments)
        pairs = zip(wanted, found, strict=True) if isinstance(wanted, tuple) else [(wanted, found)]
        assert all(torch.equal(w, g) for w, g in pairs)


@pytest.mark.parametrize("name", ["encoder", "decoder", "cnn"])
def test_what_the_optimizer_of_the_runtime_writes(name: str, tmp_path: Path) -> None:
    """In float64 the same as the model it was made from, up to weights that the optimizer computed in float32."""
    path = Path(__file__).parent / "models" / f"{name}.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    program, optimized = capture_onnx(path), capture_onnx(tmp_path / "optimized.onnx")
    assert any(node.domain == "com.microsoft" for node in optimized.graph)
    before, after = (emit_fx(p, dtype="float64") for p in (program, optimized))
    names = [v.name for v in optimized.graph.inputs]
    case = next(c for c in input_cases(program, seed=1) if c.is_ordinary)
    wanted = before(**{n: torch.from_numpy(a) for n, a in case.arrays.items()})
    found = after(*(torch.from_numpy(case.arrays[n]) for n in names))
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=0, atol=1e-6 * float(wanted.abs().max()))


def test_what_has_no_torch_form_is_refused() -> None:
    content = model("RotaryEmbedding", {"x": heads(), "at": np.array([3])} | table(), 1, scale=2.0)
    with pytest.raises(InputError, match="attribute scale of this operator has no torch form"):
        emit_fx(capture_onnx(content))
