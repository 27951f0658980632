"""What the executor knows of a model in its child process, and what it measured there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opgraft.backends.onnxruntime.child import ChildProcess


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the runtime declares it, e.g. `tensor(float)` with shape `("batch", 384)`."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None
    """None: not even the rank is known."""


def read_signature(rows: Sequence[Sequence[Any]]) -> tuple[TensorInfo, ...]:
    """From the form that the worker sends: name, type, shape."""
    return tuple(
        TensorInfo(name, kind, None if shape is None else tuple(shape)) for name, kind, shape in rows
    )


@dataclass(eq=False)
class SessionHandle:
    """A loaded model. It survives the death of its child: the next call loads it again."""

    where: str
    """The model's name in error messages."""
    keep: bool
    """False: the child frees the model after its next run."""
    options: dict[str, Any]
    path: Path | None
    model: bytes
    """The serialized model if there is no path."""
    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    load_ms: float = 0.0
    session_id: int = 0
    child: ChildProcess | None = field(default=None, repr=False)
    """The child that holds it now."""


@dataclass(frozen=True)
class TimingSamples:
    """Nanoseconds of one run, `[session][round]`, averaged over `repeats` runs per sample."""

    cpu_ns: tuple[tuple[float, ...], ...]
    wall_ns: tuple[tuple[float, ...], ...]
    repeats: int


@dataclass(frozen=True)
class MemoryUse:
    """Resident memory of the child: the highest since it started (or since the last reset), and now."""

    peak_bytes: int
    resident_bytes: int
