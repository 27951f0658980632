"""`timm` without torchvision, which it imports for datasets and transforms that random models do not need.

    from timm_import import timm

Names that timm takes from torchvision are found in stand-in modules as classes that cannot be used. Each stand-in has
an import specification, without which the ONNX exporter complains when it looks through the loaded modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch

_MODULES = ("ops", "ops.misc", "transforms", "transforms.functional", "datasets", "utils", "models")
_DEEPER = ("models.feature_extraction",)
# Interpolation modes are read at import, as members of an enumeration.
_MODES = {"NEAREST": 0, "LANCZOS": 1, "BILINEAR": 2, "BICUBIC": 3, "BOX": 4, "HAMMING": 5}


class _StandIn(ModuleType):
    """A module that has every name."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Unusable,), dict(_MODES))


class _Unusable:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{type(self).__name__} is torchvision's, which is not installed")


class _FrozenBatchNorm2d(torch.nn.Module):
    """Only asked for by `isinstance`."""


def _install() -> None:
    root = _StandIn("torchvision")
    sys.modules["torchvision"] = root
    for name in (*_MODULES, *_DEEPER):
        module = _StandIn(f"torchvision.{name}")
        sys.modules[module.__name__] = module
        parent, _, own = module.__name__.rpartition(".")
        setattr(sys.modules[parent], own, module)
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = _FrozenBatchNorm2d  # type: ignore[attr-defined]


if importlib.util.find_spec("torchvision") is None:
    _install()
timm: Any = importlib.import_module("timm")
