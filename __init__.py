"""opgraft: a graph-rewriting optimizer for neural networks that proves and measures what it does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "OpgraftError": "opgraft.ir.errors",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'opgraft' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
