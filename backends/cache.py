"""Small measured facts (capabilities, peaks) kept in the user's cache folder as JSON, written atomically."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_FORMAT = 1


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/opgraft`, or `~/.cache/opgraft`; not created until something is stored."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path is invalid and has to be ignored.
    base = Path(configured) if os.path.isabs(configured) else Path.home() / ".cache"
    return base / "opgraft"


def load(name: str, key: str) -> Any | None:
    """The value stored under `name` for exactly this `key`; None if absent, unreadable or damaged."""
    file_name = _file_name(name, key)
    try:
        entry = json.loads((cache_dir() / file_name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, RuntimeError):
        return None
    if not isinstance(entry, dict) or entry.get("format") != _FORMAT or entry.get("key") != key:
        return None
    return entry.get("value")


def store(name: str, key: str, value: Any) -> bool:
    """Keep a JSON value; False if the folder cannot be written, which only costs a later probe."""
    text = json.dumps({"format": _FORMAT, "key": key, "value": value}, separators=(",", ":"), sort_keys=True)
    file_name = _file_name(name, key)
    try:
        path = cache_dir() / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    except (OSError, RuntimeError):
        return False
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        return False
    return True


def _file_name(name: str, key: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise ValueError(f"cache name {name!r}: lower-case letters, digits and hyphens only")
    digest = hashlib.sha256(key.encode()).hexdigest()[:20]
    return f"{name}-{digest}.json"
