"""Watch and change attention scores while a torch module runs, whatever library it is from.

Every softmax and every `scaled_dot_product_attention` is caught as it is called. The scores of the latter are
computed here, so that both look alike: a tensor [..., queries, keys] about to go through a softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from architectures.truth import on_module_calls

MASKED_BELOW = -60.0
"""Scores this far below the largest of their row are masked: no library adds less, no score here differs as much."""
_SOFTMAX = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.softmax)


@dataclass(frozen=True)
class ScoreCall:
    path: str
    """The innermost module that was running, other than a `torch.nn.Softmax`."""
    scores: torch.Tensor
    query: torch.Tensor | None
    """[..., queries, D], where the call shows it."""

    @property
    def visible(self) -> torch.Tensor:
        return self.scores > self.scores.amax(-1, keepdim=True) + MASKED_BELOW

    def spread(self) -> float:
        """Standard deviation of the visible scores of a row, over all rows that see two keys or more."""
        visible = self.visible
        count = visible.sum(-1)
        rows = count > 1
        centred = _centred(self.scores.detach(), visible)
        variance = (centred**2).sum(-1)[rows] / count[rows]
        return float(variance.mean().sqrt()) if rows.any() else float("nan")


Change = Callable[[int, ScoreCall], torch.Tensor]


class _Watcher(TorchFunctionMode):
    def __init__(self, running: list[str], change: Change | None) -> None:
        super().__init__()
        self.calls: list[ScoreCall] = []
        self._running = running
        self._change = change

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is torch.nn.functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if function is torch.nn.functional.multi_head_attention_forward:
            return self._attend_whole(*args, **kwargs)
        if function in _SOFTMAX and self._running:
            scores = args[0] if args else kwargs.pop("input")
            return function(self._see(scores, None), *args[1:], **kwargs)
        return function(*args, **kwargs)

    def _see(self, scores: torch.Tensor, query: torch.Tensor | None) -> torch.Tensor:
        call = ScoreCall(self._running[-1], scores, query)
        self.calls.append(call)
        return scores if self._change is None else self._change(len(self.calls) - 1, call)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if enable_gqa:
            groups = query.shape[-3] // key.shape[-3]
            key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return self._see(scores, query).softmax(-1) @ value

    def _attend_whole(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """`torch.nn.MultiheadAttention`, as far as vision towers pool with it: one projection matrix, no mask."""
        _, n_heads, in_weight, in_bias, _, _, _, _, out_weight, out_bias = args[:10]
        if kwargs.get("attn_mask") is not None or kwargs.get("key_padding_mask") is not None or in_weight is None:
            raise NotImplementedError("masks, or projections of their own, in torch.nn.MultiheadAttention")
        weights, biases = in_weight.chunk(3), in_bias.chunk(3)
        heads = [
            _split(torch.nn.functional.linear(given, weight, bias), n_heads)
            for given, weight, bias in zip((query, key, value), weights, biases, strict=True)
        ]
        mixed = self._attend(*heads)
        joined = mixed.permute(2, 0, 1, 3).flatten(2)
        return torch.nn.functional.linear(joined, out_weight, out_bias), None


def _split(tensor: torch.Tensor, n_heads: int) -> torch.Tensor:
    """[T, B, H * D] to [B, H, T, D]."""
    tokens, batch, width = tensor.shape
    return tensor.view(tokens, batch, n_heads, width // n_heads).permute(1, 2, 0, 3)


def watch_scores(
    module: torch.nn.Module, inputs: Mapping[str, torch.Tensor], change: Change | None = None
) -> tuple[Any, list[ScoreCall]]:
    """Run; returns the outputs and every softmax in the order of execution. `change(place, call)` replaces scores."""
    running: list[str] = []
    softmaxes = {path for path, part in module.named_modules() if isinstance(part, torch.nn.Softmax)}
    has_fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            on_module_calls(
                module,
                lambda path, _: running.append(running[-1] if path in softmaxes else path),
                lambda path, _: _pop(running),
            ),
            _Watcher(running, change) as watcher,
        ):
            outputs = module(**inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(has_fast_path)
    return outputs, watcher.calls


def flatten(call: ScoreCall) -> torch.Tensor:
    """The scores with every visible one zero: attention becomes the mean of what it sees."""
    return torch.where(call.visible, torch.zeros_like(call.scores), call.scores)


def unmask(call: ScoreCall) -> torch.Tensor:
    """The scores with every mask lifted: what was hidden gets the mean score of its row."""
    visible = call.visible
    mean = (call.scores * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    return torch.where(visible, call.scores, mean)


def squared_spread(calls: Iterable[ScoreCall]) -> torch.Tensor:
    """A differentiable measure of how far scores are from uniform."""
    total = torch.zeros(())
    for call in calls:
        total = total + (_centred(call.scores, call.visible.detach()) ** 2).sum()
    return total


def _centred(scores: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    kept = torch.where(visible, scores, torch.zeros_like(scores))
    mean = kept.sum(-1, keepdim=True) / visible.sum(-1, keepdim=True)
    return torch.where(visible, kept - mean, torch.zeros_like(scores))


def _pop(running: list[str]) -> None:
    running.pop()
