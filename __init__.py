"""opgraft: a graph-rewriting optimizer for neural networks that proves and measures what it does."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# Name -> module, imported at the first use: `import opgraft` costs nothing.
_PUBLIC = {
    "Contract": "opgraft.passes._pass",
    "Group": "opgraft.passes._pipeline",
    "InputError": "opgraft.ir.errors",
    "NoMatch": "opgraft.passes._pass",
    "NodePass": "opgraft.passes._worklist",
    "OpgraftError": "opgraft.ir.errors",
    "Options": "opgraft.cli.options",
    "Pass": "opgraft.passes._pass",
    "PassContext": "opgraft.passes._pass",
    "PatternPass": "opgraft.passes._pattern",
    "Pipeline": "opgraft.passes._pipeline",
    "Program": "opgraft.ir.program",
    "Target": "opgraft.ir.target",
    "UsageError": "opgraft.ir.errors",
    "capture": "opgraft.ir.capture",
    "emit_fx": "opgraft.ir.emit_fx",
    "find_sites": "opgraft.ir.sites",
    "optimize": "opgraft.cli.api",
    "save": "opgraft.ir.save",
    "verify": "opgraft.cli.api",
}

__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'opgraft' has no attribute {name!r}; it has {', '.join(sorted(_PUBLIC))}")


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
