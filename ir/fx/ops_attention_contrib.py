"""What emitted modules call for ONNX Runtime's attention operators.

B batch, H heads, S queries, P past keys, T all keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from opgraft.ir.fx.ops_linear import merge_heads, rotary, split_heads
from torch import Tensor

aten = torch.ops.aten


def multi_head_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    bias: Tensor | None,
    padding: Tensor | None,
    extra: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    heads: int,
    scale: float,
    hidden: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, H*D], or packed as [B, S, H, 3, D] and [B, S, H, 2, D]; with present key and value [B, H, T, D].

    `hidden` is added to the scores of keys that `padding` hides.
    """
    if key is None or value is None:
        if key is not None:
            keys, values = (x.transpose(1, 2) for x in key.unbind(3))
            queries = split_heads(_plus(query, bias, 0), heads)
        else:
            queries, keys, values = (x.transpose(1, 2) for x in query.unbind(3))
            widths = [queries.shape[1] * x.shape[-1] for x in (queries, keys, values)]
            if bias is not None:
                parts = torch.split(bias, widths)
                queries, keys, values = (
                    x + part.reshape([x.shape[1], 1, x.shape[-1]])
                    for x, part in zip((queries, keys, values), parts, strict=True)
                )
    elif key.ndim == 4:  # as an earlier step made them
        queries, keys, values = split_heads(_plus(query, bias, 0), heads), key, value
    else:
        places = (0, query.shape[-1], query.shape[-1] + key.shape[-1])
        queries, keys, values = (
            split_heads(_plus(x, bias, place), heads) for x, place in zip((query, key, value), places, strict=True)
        )
    return _attend(queries, keys, values, padding, extra, past_key, past_value, scale, hidden, causal)


def _plus(x: Tensor, bias: Tensor | None, place: Any) -> Tensor:
    """Queries, keys and values have their biases one after the other in one vector."""
    return x if bias is None else x + aten.slice.Tensor(bias, 0, place, place + x.shape[-1])


def packed_attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    padding: Tensor | None,
    past: Tensor | None,
    extra: Tensor | None,
    heads: int,
    widths: list[int] | None,
    scale: float,
    hidden: float,
    causal: bool,
) -> tuple[Tensor, Tensor]:
    """One projection to queries, keys and values; with present keys and values in one tensor [2, B, H, T, D]."""
    projected = torch.matmul(x, weights)
    if bias is not None:
        projected = projected + bias
    parts = torch.split(projected, widths or [projected.shape[-1] // 3] * 3, -1)
    queries, keys, values = (split_heads(part, heads) for part in parts)
    past_key, past_value = (None, None) if past is None else (past[0], past[1])
    result, keys, values = _attend(queries, keys, values, padding, extra, past_key, past_value, scale, hidden, causal)
    present = torch.stack([keys, values]) if keys.shape[-1] == values.shape[-1] else keys
    return result, present


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    extra: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    scale: float,
    hidden: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    n_past: Any = 0
    if past_key is not None and past_value is not None:
        n_past = past_key.shape[2]
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (scale or query.shape[-1] ** -0.5)
    if padding is not None:
        scores = scores + padding_bias(padding, query.shape[0], key.shape[2], hidden).to(scores.dtype)
    if extra is not None:
        scores = scores + extra
    if causal:
        at = torch.arange(query.shape[2], device=query.device).reshape([-1, 1]) + n_past
        later = torch.arange(key.shape[2], device=query.device) > at
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    return merge_heads(torch.matmul(torch.softmax(scores, -1), value)), key, value


def padding_bias(padding: Tensor, batch: Any, n_keys: Any, hidden: float) -> Tensor:
    """What is added to scores [B, H, S, T]; given are flags [B, T] or [B, S, T], lengths [B], or ends and starts [2*B].

    Flags may be of the new keys only: earlier ones are seen.
    """
    if padding.ndim == 1:
        at = torch.arange(n_keys, device=padding.device)
        seen = at < padding[:batch].reshape([-1, 1])
        if padding.shape[0] != batch:
            seen = seen & (at >= padding[batch:].reshape([-1, 1]))
        return torch.where(seen, 0.0, hidden)[:, None, None]
    bias = torch.where(padding > 0, 0.0, hidden)
    return bias[:, None, None] if bias.ndim == 2 else bias[:, None]


def grouped_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    lengths: Tensor,
    total: Any,
    cosine: Tensor | None,
    sine: Tensor | None,
    positions: Tensor | None,
    extra: Tensor | None,
    sink: Tensor | None,
    *,
    heads: tuple[int, int],
    scale: float,
    softcap: float,
    causal: bool,
    window: int,
    interleaved: bool,
    smooth: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """[B, S, H*D]; with present key and value [B, H_kv, max(P, total), D].

    `lengths` is how many keys each sequence has in the end, less one: its past is the first keys in `past_key`, and
    what lies behind its last key is unspecified, zero here.
    """
    if key is None or value is None:
        packed = split_heads(query, heads[0] + 2 * heads[1])
        queries, keys, values = torch.split(packed, [heads[0], heads[1], heads[1]], 1)
    else:
        queries, keys, values = split_heads(query, heads[0]), split_heads(key, heads[1]), split_heads(value, heads[1])
    n_new, device = queries.shape[2], query.device
    ends = lengths.reshape([-1, 1]).to(torch.int64) + 1
    n_past = torch.clamp(ends - n_new, min=0)
    at = n_past + torch.arange(n_new, device=device)
    if cosine is not None and sine is not None:
        turned_at = at if positions is None else positions
        queries, keys = (
            rotary(x, cosine, sine, turned_at, interleaved, 2 * cosine.shape[1], 0) for x in (queries, keys)
        )
    if past_key is not None and past_value is not None:
        n_keys = torch.sym_max(past_key.shape[2], total)
        keys, values = _appended(past_key, keys, n_past, n_keys), _appended(past_value, values, n_past, n_keys)
    groups = heads[0] // heads[1]
    every_key, every_value = (x if groups == 1 else x.repeat_interleave(groups, 1) for x in (keys, values))
    scores = torch.matmul(queries, every_key.transpose(-1, -2)) * (scale or queries.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if extra is not None:
        scores = scores + aten.constant_pad_nd.default(extra, [0, keys.shape[2] - extra.shape[-1]], 0.0)
    place = torch.arange(keys.shape[2], device=device)
    seen = (place < ends).unsqueeze(1)
    if causal:
        seen = seen & (place <= at.unsqueeze(-1))
    if window >= 0:
        seen = seen & (place > at.unsqueeze(-1) - window)
    unseen = ~seen.unsqueeze(1)
    weights = _softmax_with(scores.masked_fill(unseen, float("-inf")), sink, smooth)
    # A query in the padding may see nothing at all.
    return merge_heads(torch.matmul(weights.masked_fill(unseen, 0.0), every_value)), keys, values


def _softmax_with(scores: Tensor, sink: Tensor | None, smooth: bool) -> Tensor:
    """With one more score in the denominator: of the head's sink, or zero."""
    if sink is None and not smooth:
        return torch.softmax(scores, -1)
    more = torch.zeros_like(scores[..., :1])
    if sink is not None:
        more = more + sink.reshape([-1, 1, 1])
    return torch.softmax(torch.cat([scores, more], -1), -1)[..., :-1]


def _appended(past: Tensor, new: Tensor, n_past: Tensor, n_keys: Any) -> Tensor:
    """[B, H, P, D] and [B, H, S, D]: `new` behind the first `n_past` [B, 1] of `past`, zeros behind it."""
    place = torch.arange(n_keys, device=new.device)
    last = past.shape[2] + new.shape[2] - 1
    source = torch.where(place < n_past, place, torch.clamp(place - n_past + past.shape[2], max=last))
    index = source[:, None, :, None].expand([-1, new.shape[1], -1, new.shape[3]])
    joined = torch.gather(torch.cat([past, new], 2), 2, index)
    return joined.masked_fill((place >= n_past + new.shape[2])[:, None, :, None], 0.0)


def rotary_embedding(
    x: Tensor, positions: Tensor, cosine: Tensor, sine: Tensor, interleaved: bool, width: int, heads: int
) -> Tensor:
    """[B, S, H*D] or [B, H, S, D]; one position is that of the first token of every sequence."""
    length = x.shape[1] if x.ndim == 3 else x.shape[2]
    if positions.ndim == 1:
        steps = positions + torch.arange(length, device=x.device)
        positions = steps.unsqueeze(0).expand([x.shape[0], -1])
    turned = width or 2 * cosine.shape[1]
    return rotary(x, cosine, sine, positions, interleaved, turned, heads or x.shape[-1] // turned)


def embed_layer_norm(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    places: Tensor,
    kinds: Tensor | None,
    scale: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """With how many words of each sequence the mask shows, and the sum that was normalized."""
    at = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0) if positions is None else positions
    total = aten.embedding.default(words, ids) + aten.embedding.default(places, at)
    if segments is not None and kinds is not None:
        total = total + aten.embedding.default(kinds, segments)
    made = torch.layer_norm(total, [total.shape[-1]], scale, bias, eps)
    counted = torch.zeros_like(ids[:, 0]) if mask is None else (mask == 1).sum(1)
    return made, counted.to(torch.int32), total
