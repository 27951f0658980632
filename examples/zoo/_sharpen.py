"""Weights that show: a fresh network has zero biases, unit gains and nearly uniform attention, and so hides errors."""

from __future__ import annotations

import torch
from torch import nn

_PROJECTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHARP_NAMES = ("query", "key", "qkv")


def sharpen(module: nn.Module, seed: int) -> nn.Module:
    """Redraw projections, biases, gains and running statistics in place; tables and tokens stay as drawn.

    Projections get unit gain (queries and keys twice that, so that attention picks few tokens); biases are 0.3 from
    zero, gains and scales 0.3 from one, in units of one standard deviation.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for name, part in module.named_modules():
            for kind, tensor in part.named_parameters(recurse=False):
                if tensor.ndim < 2:
                    tensor.copy_(0.3 * draw(tensor) + (0.0 if "bias" in kind else 1.0))
                elif kind == "weight" and isinstance(part, _PROJECTIONS):
                    gain = 2.0 if any(sharp in name for sharp in _SHARP_NAMES) else 1.0
                    tensor.copy_(draw(tensor) * gain / tensor[0].numel() ** 0.5)
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.copy_(0.3 * draw(part.running_mean))
                part.running_var.copy_(1.0 + 0.5 * torch.rand(part.running_var.shape, generator=generator))
    return module.eval()
