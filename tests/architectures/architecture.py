"""What an entry of the list is: sizes to build it with, the module, its inputs, and the ground truth about it.

Letters in shapes: B batch, T tokens, C channels, H heads, D channels of a head.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from architectures.truth import AttentionRule, Truth, read_truth

Inputs = dict[str, torch.Tensor]
Binding = Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """One way to size every architecture of a family. The first entry of `batch` and `length` is the example's."""

    name: str
    batch: tuple[int, ...] = (5, 9)
    """Two or more values make the dim dynamic, one makes it static."""
    length: tuple[int, ...] = (7, 13)
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 8
    width: int = 42
    """Channels, where the architecture lets them differ from heads * head_dim."""
    mlp: int = 52
    layers: int = 2
    vocabulary: int = 61
    experts: int = 10
    state: int = 12
    """Channels of a recurrent state."""
    grid: tuple[int, int] = (4, 7)
    """Patches of an image, rows and columns, at the first stage."""
    patch: int = 2
    window: int = 3

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def is_dynamic(self) -> bool:
        return len(self.batch) > 1

    @property
    def image(self) -> tuple[int, int]:
        return self.grid[0] * self.patch, self.grid[1] * self.patch


@dataclass(frozen=True, eq=False)
class Built:
    """A built architecture: a module of tensors to tensors, in eval mode, and all that tests know about it."""

    module: torch.nn.Module
    draw: Callable[[Binding, torch.Generator], Inputs]
    dims: Mapping[str, tuple[int, ...]]
    """Name of a dim -> values it may take, the example's first. One value: static in this build."""
    axes: Mapping[str, Mapping[int, str]]
    """Input name -> axis -> name of the dim there."""
    attention: tuple[AttentionRule, ...] = ()
    width: tuple[int, ...] = ()
    """Channels of the residual stream, one per stage."""
    mlp: tuple[int, ...] = ()
    layers: int = 0
    head: str | None = None
    """Path of the module that makes the outputs from the last states."""
    experts: int = 0

    def inputs(self, seed: int = 0, **binding: int) -> Inputs:
        """Inputs of the example's sizes, or of those given: `inputs(batch=9, length=13)`."""
        unknown = set(binding) - set(self.dims)
        if unknown:
            raise KeyError(f"no dim {sorted(unknown)}; there are {sorted(self.dims)}")
        sizes = {name: binding.get(name, values[0]) for name, values in self.dims.items()}
        return self.draw(sizes, torch.Generator().manual_seed(seed))

    @property
    def dynamic_shapes(self) -> dict[str, dict[int, str]]:
        """As `torch.export` takes it; dims with one admissible value are left out."""
        return {
            name: {axis: dim for axis, dim in axes.items() if len(self.dims[dim]) > 1}
            for name, axes in self.axes.items()
        }

    def bindings(self) -> list[dict[str, int]]:
        """Two bindings of the dims: every dim at its first value, and every dim at its last."""
        return [{name: values[place] for name, values in self.dims.items()} for place in (0, -1)]

    @cached_property
    def truth(self) -> Truth:
        return read_truth(self)


Builder = Callable[[Sizes, str], Built]


@dataclass(frozen=True, eq=False)
class Architecture:
    name: str
    family: str
    builder: Builder = field(repr=False)
    presets: Mapping[str, Sizes] = field(repr=False)
    implementation: str = "sdpa"
    """How the source library computes attention: "sdpa" or "eager"."""
    source: str = field(default="", repr=False)
    """Source text outside this package that the module is built from."""

    def sizes(self, name: str) -> Sizes:
        if name not in self.presets:
            raise KeyError(f"{self.name} has no sizes {name!r}; there are {sorted(self.presets)}")
        return self.presets[name]

    def build(self, sizes: str | Sizes = "default", seed: int = 0) -> Built:
        """Random weights as the source library draws them; `sharpening.sharpen` redraws them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            built = self.builder(self.sizes(sizes) if isinstance(sizes, str) else sizes, self.implementation)
        built.module.eval()
        built.module.requires_grad_(False)
        return built

    @cached_property
    def source_hash(self) -> str:
        """Changes when the code that builds this entry does: the builder and what it uses of this package."""
        text = "".join(inspect.getsource(part) for part in _reachable(self.builder))
        text += self.source + repr(self.presets) + self.implementation
        return hashlib.sha256(text.encode()).hexdigest()[:12]


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    name: str, family: str, presets: Mapping[str, Sizes], implementations: tuple[str, ...] = ("sdpa",)
) -> Callable[[Builder], Builder]:
    """Put a builder into the list, under `name`; further attention implementations get `name_implementation`."""

    def register(builder: Builder) -> Builder:
        for place, implementation in enumerate(implementations):
            entry = f"{name}_{implementation}" if place else name
            if entry in ARCHITECTURES:
                raise ValueError(f"two architectures named {entry}")
            ARCHITECTURES[entry] = Architecture(entry, family, builder, presets, implementation)
        return builder

    return register


def preset_table(default: Sizes, heads: Sizes, channels: Sizes) -> dict[str, Sizes]:
    """The three presets under the names they have everywhere."""
    return {
        name: replace(sizes, name=name)
        for name, sizes in (("default", default), ("colliding_heads", heads), ("colliding_channels", channels))
    }


def _reachable(builder: Any) -> Iterator[Any]:
    """`builder` and every function and class of this package that it names, directly or not."""
    pending, seen = [builder], {"Built", "Sizes", "AttentionRule"}  # these make no difference to a model
    while pending:
        part = pending.pop()
        yield part
        methods = vars(part).values() if inspect.isclass(part) else (part,)
        functions = [method for method in methods if isinstance(method, types.FunctionType)]
        module = sys.modules[part.__module__]
        for name in sorted({name for function in functions for name in _names(function.__code__)}):
            used = getattr(module, name, None)
            is_code = inspect.isclass(used) or isinstance(used, types.FunctionType)
            if name not in seen and is_code and used.__module__.startswith("architectures."):
                seen.add(name)
                pending.append(used)


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*(_names(part) for part in inner))
