"""Keep sympy out of the start of the command line: onnx_ir imports it for dim arithmetic that we never ask it for.

sympy is most of the time that `import onnx_ir` takes. Of it, onnx_ir needs at import only the names of five functions;
anything else loads the real module, then and there. For processes of our own only: see `main`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

_NAMED_AT_IMPORT = {"Max", "Min", "floor", "sqrt", "Mod", "ceiling"}


class _DeferredSympy(ModuleType):
    """Stands in `sys.modules` for sympy until something is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name in _NAMED_AT_IMPORT:
            return _forward(name)
        return getattr(_real_sympy(), name)


def _forward(name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        return getattr(_real_sympy(), name)(*arguments, **options)

    return call


def _real_sympy() -> ModuleType:
    if isinstance(sys.modules.get("sympy"), _DeferredSympy):
        del sys.modules["sympy"]
    return import_module("sympy")


def defer_sympy() -> None:
    """Put the stand-in in place, unless sympy is loaded already."""
    if "sympy" not in sys.modules:
        sys.modules["sympy"] = _DeferredSympy("sympy")
