"""The models of `examples/zoo` as entries of the list: `zoo_architectures()`, under names with the prefix `zoo_`.

They have two presets: `default`, with the dims dynamic that their files declare, and `colliding`, static, with sizes
that make as many dims as possible equal.
"""

from __future__ import annotations

import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from architectures.architecture import Architecture, Binding, Builder, Built, Inputs, Sizes
from architectures.truth import AttentionRule, Kind, Mask

_KINDS: dict[str, Kind] = {"window": "window", "group": "window"}
"""What tokens are, where that decides the kind of attention. Channels whose entries are embedded one by one, as in a
decoder over the channels of a token, are a sequence like any other: no tokens are summed over in their scores."""


@cache
def zoo_architectures() -> dict[str, Architecture]:
    entries = _zoo()
    return {f"zoo_{name}": _architecture(f"zoo_{name}", entry) for name, entry in entries.items()}


def _zoo() -> dict[str, Any]:
    folder = str(Path(__file__).parents[2] / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    from zoo import ZOO

    return dict(ZOO)


def _architecture(name: str, entry: Any) -> Architecture:
    from zoo import COLLIDING_BATCH

    presets = {"default": Sizes("default"), "colliding": Sizes("colliding", batch=(COLLIDING_BATCH,))}
    return Architecture(name, "zoo", _builder(entry), presets, source=inspect.getsource(entry.file))


def _builder(entry: Any) -> Builder:
    def build(sizes: Sizes, implementation: str) -> Built:
        settings = dict(entry.colliding) if sizes.name == "colliding" else {}
        resized = {} if sizes.name == "colliding" else dict(entry.resized)
        example = {name: getattr(entry.file.Sizes(), name) for name in resized}
        axes = entry.dynamic
        dims = {"batch": sizes.batch, **{name: (example[name], size) for name, size in resized.items()}}

        def draw(binding: Binding, generator: torch.Generator) -> Inputs:
            others = {name: size for name, size in binding.items() if name != "batch"}
            seed = int(torch.randint(2**31, (), generator=generator))
            inputs: Inputs = entry.example(batch=binding["batch"], seed=seed, **{**settings, **others})
            return inputs

        truth = entry.truth(**settings)
        return Built(
            module=entry.file.build(**settings),
            draw=draw,
            dims=dims,
            axes={name: {axis: dim for axis, dim in places.items() if dim in dims} for name, places in axes.items()},
            attention=tuple(_rule(site) for site in truth["attention"]),
            mlp=tuple(sorted({site["width"] for site in truth["mlp"]})),
        )

    return build


def _rule(site: dict[str, Any]) -> AttentionRule:
    mask: tuple[Mask, ...] = tuple(site["mask"].split("+")) if site["mask"] else ()
    kind = _KINDS.get(site["axis"], site["kind"])
    path = f"^{re.escape(site['path'])}"
    return AttentionRule(path, site["heads"], site["head_dim"], site["kv_heads"], kind, mask, site["rotary"])
