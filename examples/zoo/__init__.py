"""Small torch models, one architecture per file: the characteristic blocks that no package provides.

    from zoo import ZOO                                  # with the folder `examples` on the path

    entry = ZOO["channel_vit"]
    module = entry.build(heads=2)
    capture = capture_torch(module, entry.example(batch=3, heads=2), dynamic_shapes=entry.dynamic)

The list is the folder's listing. A file holds a frozen dataclass `Sizes`, the modules, and

    build(**sizes)                  the module, weights as its constructors draw them
    example(batch, seed, **sizes)   inputs by argument name
    truth(**sizes), TRUTH           what is known of its attention sites and MLPs (see `_truth`), and at the defaults
    DYNAMIC                         dims that can be dynamic, by argument name
    RESIZED                         other sizes along the dynamic dims beside the batch, where there are any
    COLLIDING                       sizes that make as many dims as possible as large as a batch of COLLIDING_BATCH
    EXPORT_FAILS                    only where PyTorch's exporter cannot translate the module: a part of its message

Letters of the shapes, in all files: B batch, T tokens or time, S keys, C channels (model width), H heads, D width of a
head, P patches, Q latent queries, K codes; h, w height and width of a grid of tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from zoo._sharpen import sharpen

COLLIDING_BATCH = 4


@dataclass(frozen=True)
class ZooEntry:
    """One file of the zoo."""

    name: str
    file: ModuleType

    def build(self, seed: int = 0, **sizes: int) -> torch.nn.Module:
        """The module in eval mode, its weights drawn from `seed` and sharpened."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module: torch.nn.Module = self.file.build(**sizes)
        return sharpen(module, seed)

    def example(self, batch: int = 2, seed: int = 0, **sizes: int) -> dict[str, torch.Tensor]:
        """Inputs by argument name; the sizes must be those of `build`."""
        inputs: dict[str, torch.Tensor] = self.file.example(batch=batch, seed=seed, **sizes)
        return inputs

    def truth(self, **sizes: int) -> dict[str, list[dict[str, Any]]]:
        """The known sites, keyed `attention` and `mlp`."""
        found: dict[str, list[dict[str, Any]]] = self.file.truth(**sizes)
        return found

    @property
    def dynamic(self) -> dict[str, dict[int, str]]:
        dims: dict[str, dict[int, str]] = self.file.DYNAMIC
        return dims

    @property
    def resized(self) -> Mapping[str, int]:
        return getattr(self.file, "RESIZED", {})

    @property
    def colliding(self) -> Mapping[str, int]:
        sizes: Mapping[str, int] = self.file.COLLIDING
        return sizes

    @property
    def export_fails(self) -> str | None:
        return getattr(self.file, "EXPORT_FAILS", None)

    @property
    def title(self) -> str:
        """The first line of the file's docstring."""
        return (self.file.__doc__ or "").splitlines()[0]


def _read_folder() -> dict[str, ZooEntry]:
    names = sorted(file.stem for file in Path(__file__).parent.glob("*.py") if not file.stem.startswith("_"))
    return {name: ZooEntry(name, importlib.import_module(f"{__name__}.{name}")) for name in names}


ZOO: dict[str, ZooEntry] = _read_folder()
