"""Redraw the weights of a random model so that every part of it moves the output by much more than rounding does.

A fresh network has zero biases, unit gains, equal norms and almost uniform attention: drop a bias, swap two norms or
zero the scores, and the output hardly moves. After `sharpen` no bias is zero, no gain is one, no two tensors are equal,
and the scores of every softmax have a standard deviation between 2 and 3. Parameters are told apart by their values
and by gradients, not by names: the queries and keys are what the scores have a gradient to.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch

from architectures.architecture import Built, Inputs
from architectures.scores import ScoreCall, flatten, squared_spread, unmask, watch_scores

SPREAD = (2.0, 3.0)
_MAX_ROUNDS = 24


def sharpen(built: Built, seed: int = 0) -> Built:
    """Redraw all parameters and running statistics in place; returns `built`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in built.module.modules():
            for name, tensor in module.named_parameters(recurse=False):
                tensor.copy_(_redrawn(module, name, tensor, generator))
            for tensor in module.buffers(recurse=False):
                if tensor.is_floating_point() and tensor.numel() > 1:
                    tensor.copy_(_redrawn_buffer(tensor, generator))
    inputs = built.inputs(seed)
    for _ in range(2):  # sharper scores change the statistics behind them
        _settle_running_statistics(built.module, inputs, generator)
        _spread_scores(built.module, inputs)
    return built


def _normal(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(like.shape, generator=generator).to(like.dtype)


def _redrawn(module: torch.nn.Module, name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    noise = _normal(tensor, generator)
    if isinstance(module, torch.nn.Embedding):
        return noise * 0.5
    if bool((tensor == tensor.flatten()[0]).all()):
        constant = float(tensor.flatten()[0])
        if constant == 0.0:
            return noise * 0.3
        # Layer scales start near zero, where the branch they scale would be invisible.
        return (constant if abs(constant) >= 0.5 else 0.5) * (1.0 + 0.3 * noise).clamp(0.2, 1.8)
    if tensor.ndim >= 2:
        return noise * _fan_in(module, tensor) ** -0.5
    if name.endswith("bias"):
        return noise * 0.3
    if "Norm" in type(module).__name__:
        return (1.0 + 0.3 * noise).clamp(0.2, 1.8)
    # What is left has a meaning in its values (decay rates, temperatures): keep it, make it different.
    return tensor * (1.0 + 0.1 * noise)


def _redrawn_buffer(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Frozen statistics and codebooks are all zeros or ones until training fills them; what has values keeps them."""
    noise = _normal(tensor, generator)
    if not tensor.any():
        return noise * (0.3 if tensor.ndim == 1 else 1.0)
    return (1.0 + 0.3 * noise).clamp(0.3, 1.7) if bool((tensor == 1.0).all()) else tensor


def _fan_in(module: torch.nn.Module, tensor: torch.Tensor) -> int:
    if tensor.shape[0] == 1 and tensor.ndim == 3:
        return 4  # a table of positions, or one token
    if isinstance(module, torch.nn.modules.conv._ConvNd) or tensor.ndim == 2:
        return tensor[0].numel()
    return tensor.shape[-1]  # one matrix per expert or head


def _settle_running_statistics(module: torch.nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
    """Take the statistics of one batch, so that no signal dies or explodes, then move them off those."""
    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.training = True
    with torch.no_grad():
        module(**inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
            if norm.running_mean is None or norm.running_var is None:
                continue
            deviation = norm.running_var.sqrt()
            deviation = deviation.clamp(min=0.3 * float(deviation.mean()) + 1e-3)
            norm.running_mean.add_(0.2 * deviation * _normal(deviation, generator))
            norm.running_var.copy_((deviation * (1.0 + 0.1 * _normal(deviation, generator)).clamp(0.7, 1.3)) ** 2)


def _spread_scores(module: torch.nn.Module, inputs: Inputs) -> None:
    """Scale what makes queries and keys until the scores of every softmax have the spread wanted."""
    for _ in range(_MAX_ROUNDS):
        # Under every name that a parameter has: modules that share weights own them all.
        parameters = [
            (name, parameter.requires_grad_(True))
            for name, parameter in module.named_parameters(remove_duplicate=False)
        ]
        try:
            _, calls = watch_scores(module, inputs)
            steps = list(_steps(calls, parameters))
        finally:
            module.requires_grad_(False)
        for tensor, factor in steps:
            tensor.mul_(factor)
        if not steps:
            return


def _steps(
    calls: list[ScoreCall], parameters: list[tuple[str, torch.Tensor]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    by_path: dict[str, list[ScoreCall]] = defaultdict(list)
    for call in calls:
        if call.scores.requires_grad and call.spread() == call.spread():
            by_path[call.path].append(call)
    done: set[int] = set()
    for path, group in by_path.items():
        spread = sum(call.spread() for call in group) / len(group)
        if SPREAD[0] <= spread <= SPREAD[1]:
            continue
        # Queries and keys are scaled both, so the scores move by the square.
        # Rounded, so that the same weights come out whatever the number of threads.
        factor = round(min(max((sum(SPREAD) / 2 / max(spread, 1e-6)) ** 0.5, 0.4), 2.5), 2)
        for tensor, gradient in _owned(path, group, parameters):
            if id(tensor) not in done:
                done.add(id(tensor))
                yield tensor, torch.where(gradient != 0, factor, 1.0).to(tensor.dtype)


def _owned(
    path: str, group: list[ScoreCall], parameters: list[tuple[str, torch.Tensor]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Parameters of the module around the softmax to which its scores have a gradient: of queries and keys."""
    own = [tensor for name, tensor in parameters if name.startswith(path + ".")]
    gradients = torch.autograd.grad(squared_spread(group), own, allow_unused=True, retain_graph=True)
    return [(tensor, gradient) for tensor, gradient in zip(own, gradients, strict=True) if gradient is not None]


@dataclass(frozen=True)
class Sensitivity:
    """How far the output moves when one thing is taken away, relative to the output's own standard deviation."""

    path: str
    removed: Literal["scores", "mask"]
    change: float


def sensitivity(built: Built, seed: int = 1) -> list[Sensitivity]:
    """Take away, one at a time, the scores of every attention and every mask that hides something."""
    inputs = built.inputs(seed)
    attentions = {truth.path for truth in built.truth.attention}
    with torch.no_grad():
        before, calls = watch_scores(built.module, inputs)
        found = []
        for place, call in enumerate(calls):
            if not any(call.path == path or call.path.startswith(path + ".") for path in attentions):
                continue
            removals = [("scores", flatten), *([("mask", unmask)] if not bool(call.visible.all()) else [])]
            for removed, change in removals:
                after, _ = watch_scores(
                    built.module, inputs, lambda at, call, p=place, c=change: c(call) if at == p else call.scores
                )
                found.append(Sensitivity(call.path, removed, relative_change(before, after)))  # type: ignore[arg-type]
    return found


def rounding_noise(built: Built, seed: int = 1) -> float:
    """Difference between a run in float32 and one in float64, measured as `sensitivity` measures."""
    inputs = built.inputs(seed)
    double = copy.deepcopy(built.module).double()
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}
    with torch.no_grad():
        return relative_change(built.module(**inputs), double(**wide))


def relative_change(before: Any, after: Any) -> float:
    """Largest difference of any output, over that output's standard deviation."""
    pairs = zip(tensors_of(before), tensors_of(after), strict=True)
    return max(float((a.double() - b.double()).abs().max() / a.double().std()) for a, b in pairs)


def tensors_of(outputs: Any) -> list[torch.Tensor]:
    leaves, _ = torch.utils._pytree.tree_flatten(outputs)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
