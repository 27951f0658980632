"""The questions of the capability probe: one operator, small inputs, and what numpy says the answer is.

Shapes: B batch, T tokens, H heads, H_kv key/value heads, D head size, C channels.
Formulas: the ONNX operator specifications and ONNX Runtime's ContribOperators.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from opgraft.backends.onnxruntime.protocol import Array

MICROSOFT = "com.microsoft"
FLOATS = ("float32", "float16", "bfloat16", "float64")
# Attributes are float32: a value that it holds exactly.
_EPSILON = 2.0**-17


@dataclass(frozen=True)
class Case:
    """An operator to try. Floating-point inputs are cast to each of `dtypes`; an input None is left out."""

    operator: str
    inputs: Mapping[str, Array | None]
    reference: Callable[..., Array]
    """Computes the first output from the inputs that are not None, floating-point ones in float64."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    domain: str = ""
    dtypes: tuple[str, ...] = FLOATS
    n_outputs: int = 1


def _normal(*shape: int) -> Array:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))


def _tanh_gelu(x: Array) -> Array:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def _softmax(x: Array) -> Array:
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _layer_norm(x: Array, scale: Array, bias: Array) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + _EPSILON) * scale + bias


def _rms_norm(x: Array, scale: Array) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON) * scale


def _group_norm(x: Array, scale: Array, bias: Array) -> Array:
    """[B, C, T] in two groups of channels."""
    grouped = x.reshape(x.shape[0], 2, -1)
    normed = (grouped - grouped.mean(-1, keepdims=True)) / np.sqrt(grouped.var(-1, keepdims=True) + _EPSILON)
    return normed.reshape(x.shape) * scale[:, None] + bias[:, None]


def _attend(q: Array, k: Array, v: Array, causal: bool = False) -> Array:
    """[B, H, T, D], [B, H_kv, T, D] twice -> [B, H, T, D]."""
    n_repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(each, n_repeats, axis=1) for each in (k, v))
    scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=np.bool_), scores, -np.inf)
    return _softmax(scores) @ v


def _packed_attend(n_heads: int, n_kv_heads: int, causal: bool) -> Callable[..., Array]:
    """The same on [B, T, H * D]."""

    def split(x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    def attend(q: Array, k: Array, v: Array, *_: Array) -> Array:
        y = _attend(split(q, n_heads), split(k, n_kv_heads), split(v, n_kv_heads), causal)
        return y.swapaxes(1, 2).reshape(q.shape)

    return attend


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """[B, H, T, D] with caches [B, T, D / 2]; the two halves of D form the pairs."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _conv(x: Array, w: Array) -> Array:
    """[B, C, T], [C', C, K] -> [B, C', T - K + 1]."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2], axis=2)
    return np.einsum("bctk,ock->bot", windows, w)


def _dequantized_matmul(a: Array, packed: Array, scales: Array) -> Array:
    """Weights [N, blocks, 16] of two 4-bit values each, lowest bits first, zero point 8; blocks of 32."""
    nibbles = (
        np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1, 32).astype(np.float64)
    )
    weights = (nibbles - 8.0) * scales.reshape(packed.shape[0], -1, 1)
    return a @ weights.reshape(packed.shape[0], -1).T


def _integers(dtype: str, *shape: int) -> Array:
    limits = np.iinfo(dtype)
    return np.random.default_rng(math.prod(shape)).integers(
        limits.min, limits.max, shape, dtype, endpoint=True
    )


def _integer_matmul(a: Array, b: Array) -> Array:
    return a.astype(np.int32) @ b.astype(np.int32)


_HEADS = {"num_heads": 2}
_ANGLES = _normal(1, 4, 4)
_TOKENS = {"query": _normal(1, 4, 16), "key": _normal(1, 4, 17)[..., :16], "value": _normal(1, 5, 16)[:, :4]}
_GROUPED = {"query": _normal(1, 4, 16), "key": _normal(1, 4, 8), "value": _normal(1, 5, 8)[:, :4]}
_NO_PAST = np.zeros((1, 1, 0, 8))

CASES: tuple[Case, ...] = (
    Case("MatMul", {"a": _normal(2, 4, 8), "b": _normal(8, 6)}, np.matmul),
    Case("Gemm", {"a": _normal(4, 8), "b": _normal(8, 6), "c": _normal(6)}, lambda a, b, c: a @ b + c),
    Case("Conv", {"x": _normal(1, 3, 8), "w": _normal(4, 3, 3)}, _conv),
    Case(
        "MatMulInteger",
        {"a": _integers("uint8", 4, 8), "b": _integers("int8", 8, 6)},
        _integer_matmul,
        dtypes=("int8",),
    ),
    Case(
        "ConvInteger",
        {"x": _integers("uint8", 1, 3, 8), "w": _integers("int8", 4, 3, 3)},
        lambda x, w: _conv(x.astype(np.int32), w.astype(np.int32)),
        dtypes=("int8",),
    ),
    Case(
        "LayerNormalization",
        {"x": _normal(2, 4, 8), "scale": _normal(8), "bias": _normal(1, 8)[0]},
        _layer_norm,
        {"epsilon": _EPSILON},
    ),
    Case("RMSNormalization", {"x": _normal(2, 4, 8), "scale": _normal(8)}, _rms_norm, {"epsilon": _EPSILON}),
    Case(
        "GroupNormalization",
        {"x": _normal(2, 4, 8), "scale": _normal(4), "bias": _normal(1, 4)[0]},
        _group_norm,
        {"epsilon": _EPSILON, "num_groups": 2},
    ),
    Case("Gelu", {"x": _normal(4, 8)}, _gelu),
    Case("Swish", {"x": _normal(4, 8)}, lambda x: x * _sigmoid(x)),
    Case(
        "Attention",
        {"q": _normal(1, 2, 4, 8), "k": _normal(1, 1, 4, 8), "v": _normal(1, 1, 5, 8)[:, :, :4]},
        lambda q, k, v: _attend(q, k, v, causal=True),
        {"is_causal": 1},
    ),
    Case(
        "RotaryEmbedding",
        {"x": _normal(1, 2, 4, 8), "cos": np.cos(_ANGLES), "sin": np.sin(_ANGLES)},
        _rotate,
    ),
    Case(
        "FusedMatMul",
        {"a": _normal(4, 8), "b": _normal(6, 8)},
        lambda a, b: 0.5 * (a @ b.T),
        {"transB": 1, "alpha": 0.5},
        MICROSOFT,
    ),
    Case("BiasGelu", {"x": _normal(4, 8), "bias": _normal(8)}, lambda x, b: _gelu(x + b), {}, MICROSOFT),
    Case("FastGelu", {"x": _normal(4, 8), "bias": _normal(8)}, lambda x, b: _tanh_gelu(x + b), {}, MICROSOFT),
    Case("QuickGelu", {"x": _normal(4, 8)}, lambda x: x * _sigmoid(1.5 * x), {"alpha": 1.5}, MICROSOFT),
    Case(
        "SkipLayerNormalization",
        {"x": _normal(1, 4, 8), "skip": _normal(4, 8)[None], "scale": _normal(8), "bias": _normal(1, 8)[0]},
        lambda x, skip, scale, bias: _layer_norm(x + skip, scale, bias),
        {"epsilon": _EPSILON},
        MICROSOFT,
    ),
    Case(
        "SkipSimplifiedLayerNormalization",
        {"x": _normal(1, 4, 8), "skip": _normal(4, 8)[None], "scale": _normal(8)},
        lambda x, skip, scale: _rms_norm(x + skip, scale),
        {"epsilon": _EPSILON},
        MICROSOFT,
    ),
    Case("MultiHeadAttention", _TOKENS, _packed_attend(2, 2, causal=False), _HEADS, MICROSOFT),
    Case(
        "GroupQueryAttention",
        {
            **_GROUPED,
            "past_key": _NO_PAST,
            "past_value": _NO_PAST,
            "seqlens_k": np.array([3], np.int32),
            "total_sequence_length": np.array(4, np.int32),
        },
        _packed_attend(2, 1, causal=True),
        {**_HEADS, "kv_num_heads": 1},
        MICROSOFT,
        n_outputs=3,
    ),
    Case(
        "MatMulNBits",
        {"a": _normal(2, 64), "b": _integers("uint8", 3, 2, 16), "scales": np.abs(_normal(6))},
        _dequantized_matmul,
        {"K": 64, "N": 3, "bits": 4, "block_size": 32},
        MICROSOFT,
    ),
    Case(
        "DynamicQuantizeMatMul",
        # Values that 8 bits hold exactly, so that quantization does not hide a wrong product.
        {"a": np.arange(256.0).reshape(4, 64), "b": _integers("int8", 64, 3), "scale": np.array(0.5)},
        lambda a, b, scale: a @ (b * scale),
        {},
        MICROSOFT,
        dtypes=("float32",),
    ),
)
