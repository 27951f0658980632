"""Ground truth about a built architecture, read from its config and from hooks on a run of its torch module."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    from architectures.architecture import Built

Kind = Literal["self", "cross", "window", "channel", "aggregated"]
Mask = Literal["causal", "padding", "window", "bias", "block-causal", "block-diagonal", "sparse", "border", "shift"]
"""Those after `bias`, and `aggregated` (keys of its own for every query), occur in `examples/zoo` only."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class AttentionTruth:
    """One executed attention: module path as in `named_modules`, and what its config says."""

    path: str
    heads: int
    kv_heads: int
    head_dim: int
    kind: Kind
    mask: frozenset[Mask]
    """`window` is a sliding window or that of shifted windows; `bias` is any additive float bias."""
    rotary: bool


@dataclass(frozen=True)
class AttentionRule:
    """The attentions whose module path matches `pattern` to its end, told by the builder from the config."""

    pattern: str
    heads: int
    head_dim: int
    kv_heads: int | None = None
    """None: as many as heads."""
    kind: Kind = "self"
    mask: tuple[Mask, ...] = ()
    rotary: bool = False

    def truth(self, path: str) -> AttentionTruth:
        kv_heads = self.heads if self.kv_heads is None else self.kv_heads
        mask: frozenset[Mask] = frozenset(self.mask)
        return AttentionTruth(path, self.heads, kv_heads, self.head_dim, self.kind, mask, self.rotary)


@dataclass(frozen=True)
class NormTruth:
    path: str
    kind: Literal["layer", "rms", "batch", "group"]
    channels: int


@dataclass(frozen=True)
class Truth:
    """Modules that run more than once appear once for every run, all in the order of execution."""

    attention: tuple[AttentionTruth, ...]
    norms: tuple[NormTruth, ...]
    embeddings: tuple[str, ...]
    """Paths of the executed table lookups."""
    convolutions: tuple[str, ...]
    head: str | None
    width: tuple[int, ...]
    mlp: tuple[int, ...]
    layers: int
    experts: int


def read_truth(built: Built) -> Truth:
    order = [path for path, _ in module_calls(built.module, built.inputs())]
    modules = dict(built.module.named_modules())
    if built.head is not None and built.head not in order:
        raise ValueError(f"the head {built.head!r} does not run")
    return Truth(
        attention=tuple(_attention(order, built.attention)),
        norms=tuple(_norms(order, modules)),
        embeddings=tuple(path for path in order if isinstance(modules[path], torch.nn.Embedding)),
        convolutions=tuple(path for path in order if isinstance(modules[path], torch.nn.modules.conv._ConvNd)),
        head=built.head,
        width=built.width,
        mlp=built.mlp,
        layers=built.layers,
        experts=built.experts,
    )


def record_module_shapes(module: torch.nn.Module, inputs: Mapping[str, Any]) -> dict[str, tuple[Shapes, Shapes]]:
    """Module path -> shapes of the tensors it got and of those it gave, in a run; of the last run where several."""
    return dict(module_calls(module, inputs))


def module_calls(module: torch.nn.Module, inputs: Mapping[str, Any]) -> list[tuple[str, tuple[Shapes, Shapes]]]:
    """Every call of a submodule, in the order in which they start."""
    calls: list[tuple[str, tuple[Shapes, Shapes]]] = []
    open_calls: list[int] = []

    def enter(path: str, given: Any) -> None:
        open_calls.append(len(calls))
        calls.append((path, (_shapes(given), ())))

    def leave(path: str, result: Any) -> None:
        place = open_calls.pop()
        calls[place] = (path, (calls[place][1][0], _shapes(result)))

    with on_module_calls(module, enter, leave), torch.no_grad():
        module(**inputs)
    return calls


@contextmanager
def on_module_calls(
    module: torch.nn.Module, enter: Callable[[str, Any], None], leave: Callable[[str, Any], None]
) -> Iterator[None]:
    """Call `enter(path, inputs)` and `leave(path, outputs)` around every run of a named submodule."""
    handles = []
    for path, part in module.named_modules():
        handles.append(
            part.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: enter(path, (args, kwargs)), with_kwargs=True
            )
        )
        handles.append(part.register_forward_hook(lambda _, args, result, path=path: leave(path, result)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _shapes(value: Any) -> Shapes:
    leaves, _ = torch.utils._pytree.tree_flatten(value)
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, torch.Tensor))


def _attention(order: list[str], rules: tuple[AttentionRule, ...]) -> Iterator[AttentionTruth]:
    used = set()
    for path in order:
        found = [rule for rule in rules if re.search(f"(?:^|\\.)(?:{rule.pattern})$", path)]
        if len({rule.pattern for rule in found}) > 1:
            raise ValueError(f"{path} matches {[rule.pattern for rule in found]}")
        used.update(found)
        yield from (rule.truth(path) for rule in found)  # two of one pattern: the module attends twice
    unused = [rule.pattern for rule in rules if rule not in used]
    if unused:
        raise ValueError(f"no module that runs matches {unused}")


def _norms(order: list[str], modules: Mapping[str, torch.nn.Module]) -> Iterator[NormTruth]:
    for path in order:
        part = modules[path]
        if "Norm" in type(part).__name__ and _is_plain(part):
            yield NormTruth(path, _norm_kind(part), _channels(part))


def _is_plain(part: torch.nn.Module) -> bool:
    """Not a block named after the norm in it, nor the norm of a weight: vectors only, none of them in children."""
    tensors = _tensors(part)
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return len(tensors) == len(own) > 0 and all(tensor.ndim <= 1 for tensor in own)


def _tensors(part: torch.nn.Module) -> list[torch.Tensor]:
    return [*part.parameters(), *part.buffers()]


def _norm_kind(part: torch.nn.Module) -> Literal["layer", "rms", "batch", "group"]:
    if isinstance(part, torch.nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(part).__name__:
        return "batch"
    if isinstance(part, torch.nn.GroupNorm):
        return "group"
    if isinstance(part, torch.nn.LayerNorm):
        return "layer"
    # Classes of the source libraries are told apart by what they do: a mean added to all channels is removed, or not.
    weight = next(part.parameters())
    x = torch.randn((3, *weight.shape), dtype=weight.dtype, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (part(x) - part(x + 1.0)).abs().max()
    return "layer" if float(difference) < 1e-3 else "rms"


def _channels(part: torch.nn.Module) -> int:
    return _tensors(part)[0].numel()
