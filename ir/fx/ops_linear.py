"""What emitted modules call for matrix products of integers, and attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def integer_matmul(a: Tensor, b: Tensor, a_zero: Tensor | None, b_zero: Tensor | None) -> Tensor:
    """int32 product of 8-bit matrices; zero points may differ per row of `a` and per column of `b`."""
    left, right = a.to(torch.int32), b.to(torch.int32)
    if a_zero is not None:
        zero = a_zero.to(torch.int32)
        left = left - (zero.unsqueeze(-1) if zero.ndim == 1 and zero.shape[0] != 1 else zero)
    if b_zero is not None:
        right = right - b_zero.to(torch.int32)
    return torch.matmul(left, right)


def wrapped_matmul(a: Tensor, b: Tensor) -> Tensor:
    """Product of unsigned matrices."""
    return torch.matmul(a.to(torch.int64), b.to(torch.int64)).to(a.dtype)


def gemm(a: Tensor, b: Tensor, c: Tensor | None, alpha: float, beta: float, trans_a: bool, trans_b: bool) -> Tensor:
    product = torch.matmul(a.t() if trans_a else a, b.t() if trans_b else b)
    if alpha != 1.0:
        product = product * alpha
    if c is None or beta == 0.0:
        return product.to(a.dtype)
    return (product + (c if beta == 1.0 else c * beta)).to(a.dtype)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, H*D] -> [B, H, S, D]"""
    batch, length, width = x.shape
    return x.reshape([batch, length, heads, width // heads]).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, S, D] -> [B, S, H*D]"""
    batch, heads, length, width = x.shape
    return x.transpose(1, 2).reshape([batch, length, heads * width])


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor | None,
    *,
    heads: tuple[int, int],
    scale: float | None,
    softcap: float,
    causal: bool,
    window: tuple[int, int],
    scores: int,
    precision: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention of opset 23 on [B, H, S, D] or [B, S, H*D]; with present key and value, and the scores of one stage.

    A query that may attend to no key gives zeros.
    """
    is_flat = query.ndim == 3
    if is_flat:
        query, key, value = split_heads(query, heads[0]), split_heads(key, heads[1]), split_heads(value, heads[1])
    n_past = None
    if past_key is not None and past_value is not None:
        n_past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    groups = query.shape[1] // key.shape[1]
    keys, values = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (key, value))
    bias = attention_bias(query, keys, mask, n_past, lengths, causal, window)
    root = (1.0 / query.shape[-1] ** 0.5 if scale is None else scale) ** 0.5
    stages = [torch.matmul(query * root, keys.transpose(-1, -2) * root)]
    stages.append(softcap * torch.tanh(stages[0] / softcap) if softcap else stages[0])
    stages.append(stages[1] if bias is None else stages[1] + bias)
    weights = torch.softmax(stages[2] if precision is None else stages[2].to(precision), -1).to(query.dtype)
    if bias is not None:
        weights = torch.where(torch.isneginf(bias.amax(-1, True)), 0, weights)
    stages.append(weights)
    result = torch.matmul(weights, values)
    return merge_heads(result) if is_flat else result, key, value, stages[scores]


def attention_bias(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    n_past: Any,
    lengths: Tensor | None,
    causal: bool,
    window: tuple[int, int],
) -> Tensor | None:
    """0 where a query may see a key and -inf elsewhere, plus the mask given; None when everything is seen."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    bias = None
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, float("-inf")).to(query.dtype)
        short = n_keys - mask.shape[-1]
        if not isinstance(short, int) or short > 0:
            mask = aten.constant_pad_nd.default(mask, [0, short], float("-inf"))
        bias = mask
    allowed = None
    if causal or window != (-1, -1):
        # The first query comes after the past, or its block ends where a cache of given lengths does.
        first = n_past if n_past is not None else 0 if lengths is None else lengths.reshape([-1, 1, 1, 1]) - n_queries
        at = torch.arange(n_queries, device=query.device).reshape([-1, 1]) + first
        other = torch.arange(n_keys, device=query.device)
        allowed = other <= at if causal else other == other
        if window[0] >= 0:
            allowed = allowed & (at - other <= window[0])
        if window[1] >= 0:
            allowed = allowed & (other - at <= window[1])
    if lengths is not None:
        inside = torch.arange(n_keys, device=query.device) < lengths.reshape([-1, 1, 1, 1])
        allowed = inside if allowed is None else allowed & inside
    if allowed is None:
        return bias
    seen = torch.where(allowed, 0.0, float("-inf")).to(query.dtype)
    return seen if bias is None else bias + seen


def rotary(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor | None,
    interleaved: bool,
    width: int,
    heads: int,
) -> Tensor:
    """RotaryEmbedding of [B, H, S, D] or [B, S, H*D] by tables of half the rotated width."""
    shape = x.shape
    x = x.reshape([shape[0], shape[1], heads, shape[2] // heads]) if x.ndim == 3 else x.transpose(1, 2)
    width = width or x.shape[-1]
    if positions is not None:
        cosine, sine = aten.index.Tensor(cosine, [positions]), aten.index.Tensor(sine, [positions])
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    turned, rest = x[..., :width], x[..., width:]
    if interleaved:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned[..., : width // 2], turned[..., width // 2 :]
    real, imaginary = cosine * first - sine * second, sine * first + cosine * second
    if interleaved:
        turned = torch.stack([real, imaginary], -1).flatten(-2)
    else:
        turned = torch.cat([real, imaginary], -1)
    turned = torch.cat([turned, rest], -1)
    return turned.reshape(shape) if len(shape) == 3 else turned.transpose(1, 2)
