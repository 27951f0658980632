"""Runs ONNX models in a child process with limits on time and memory: misbehaving costs one error.

    with Executor(memory_limit_bytes=8 << 30, time_limit_s=60) as executor:
        model = executor.load(Path("model.onnx"))
        outputs = executor.run(model, {"x": x})

`load(optimized=False)`, the default, is the reference executor by which the EXACT contract is defined: ONNX
Runtime with its optimizations off and one thread.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from opgraft.backends.onnxruntime.child import ChildProcess, ExecutionFailure
from opgraft.backends.onnxruntime.protocol import (
    Array,
    Value,
    aligned_buffer,
    describe,
    frame_parts,
    from_raw,
    restore,
    to_raw,
)

__all__ = [
    "ExecutionFailure",
    "Executor",
    "MemoryUse",
    "SessionHandle",
    "TensorInfo",
    "TimingSamples",
    "Value",
]

REFERENCE_CONFIG = {
    # A kernel that packs a constant operand ahead of time adds up in another order than the same kernel given
    # the operand at run time (MatMul, Gemm: other bits in every shape tried). Without packing, the result of
    # a node depends on the values of its inputs and not on whether they are initializers.
    "session.disable_prepacking": "1",
    "session.set_denormal_as_zero": "0",
}
# A serialized model above this size is written to a temporary file rather than held twice in the child.
_INLINE_MODEL_BYTES = 16 << 20


@dataclass(frozen=True)
class TensorInfo:
    """An input or output as the runtime declares it, e.g. `tensor(float)` with shape `("batch", 384)`."""

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass
class SessionHandle:
    """A loaded model. It survives a crash of the child: the next call loads it again."""

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    load_ms: float = 0.0
    where: str = ""
    keep: bool = True
    """False: the child frees the model after its next run."""
    _path: Path | None = None
    _model: bytes = b""
    _options: dict[str, Any] = field(default_factory=dict)
    _session_id: int = 0
    _child: ChildProcess | None = None
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


class Executor:
    """The parent's side of one worker process; calls from several threads take turns."""

    def __init__(
        self, *, memory_limit_bytes: int | None = None, time_limit_s: float = 120.0, start: bool = True
    ) -> None:
        """Starts the worker at once without waiting: its imports overlap with the caller's work.

        `memory_limit_bytes` defaults to the memory available on the machine when the worker starts.
        """
        self._memory_limit_bytes = memory_limit_bytes
        self.time_limit_s = time_limit_s
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._released: list[int] = []
        self._folder: str | None = None
        self._child: ChildProcess | None = None
        self._closed = False
        if start:
            self._child = self._start()

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def versions(self) -> dict[str, str]:
        """Versions of onnxruntime, numpy and Python in the child."""
        self._exchange({"command": "memory", "reset": False}, [], None)
        return dict(self._child.versions or {}) if self._child else {}

    def load(
        self,
        model: Path | str | bytes,
        *,
        optimized: bool = False,
        threads: int = 1,
        libraries: Sequence[Path] = (),
        keep: bool = True,
        config: Mapping[str, str] | None = None,
        weights_folder: Path | None = None,
        where: str = "",
    ) -> SessionHandle:
        """Load a model file, or a serialized model whose external weights lie in `weights_folder`.

        `optimized` turns all of the runtime's optimizations on (its defaults); otherwise they are all off.
        `config` are the runtime's session configuration entries; `libraries` its custom-operator libraries.
        """
        entries = dict({} if optimized else REFERENCE_CONFIG)
        if weights_folder is not None:
            entries["session.model_external_initializers_file_folder_path"] = str(weights_folder.resolve())
        handle = SessionHandle(keep=keep)
        handle._options = {
            "optimized": optimized,
            "threads": threads,
            "libraries": [str(Path(library).resolve()) for library in libraries],
            "config": {**entries, **(config or {})},
        }
        if isinstance(model, (str, Path)):
            handle._path = Path(model).absolute()
            handle.where = where or str(model)
        else:
            handle.where = where or "model in memory"
            if len(model) > _INLINE_MODEL_BYTES:
                handle._path = self._write_model(handle, model)
            else:
                handle._model = bytes(model)
        with self._lock:
            self._ensure_loaded(handle)
        return handle

    def run(
        self,
        handle: SessionHandle,
        inputs: Mapping[str, Value],
        outputs: Sequence[str] | None = None,
        *,
        time_limit_s: float | None = None,
    ) -> dict[str, Value]:
        """The outputs (all, or those named) for these inputs; None stands for an absent optional."""
        with self._lock:
            self._ensure_loaded(handle)
            described, buffers = _describe_inputs(inputs, handle.where)
            request = {
                "command": "run",
                "session": handle._session_id,
                "inputs": described,
                "outputs": None if outputs is None else list(outputs),
                "keep": handle.keep,
            }
            reply, answers = self._exchange(request, buffers, time_limit_s, handle.where)
            if not handle.keep:
                handle._child = None
        return {name: from_raw(restore(value, answers)) for name, value in reply["outputs"].items()}

    def run_once(
        self,
        model: Path | str | bytes,
        inputs: Mapping[str, Value],
        outputs: Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, Value]:
        """Load, run and free; `options` as for `load`."""
        handle = self.load(model, **{**options, "keep": False})
        try:
            return self.run(handle, inputs, outputs)
        finally:
            self.release(handle)

    def time(
        self,
        handles: Sequence[SessionHandle],
        inputs: Mapping[str, Value],
        *,
        rounds: int,
        warmup: int = 1,
        repeats: int = 0,
        min_sample_ms: float = 5.0,
        time_limit_s: float | None = None,
    ) -> TimingSamples:
        """Run the sessions in turns, `rounds` times, forwards and backwards alternately.

        A sample is the mean over `repeats` runs; 0 chooses as many as make the fastest one's sample
        `min_sample_ms` long.
        """
        with self._lock:
            for handle in handles:
                self._ensure_loaded(handle)
            where = ", ".join(dict.fromkeys(handle.where for handle in handles))
            described, buffers = _describe_inputs(inputs, where)
            request = {
                "command": "time",
                "sessions": [handle._session_id for handle in handles],
                "inputs": described,
                "rounds": rounds,
                "warmup": warmup,
                "repeats": repeats,
                "min_sample_ns": int(min_sample_ms * 1e6),
            }
            reply, _ = self._exchange(request, buffers, time_limit_s, where)
        n_runs = reply["repeats"]
        cpu_ns, wall_ns = (
            tuple(tuple(total / n_runs for total in samples) for samples in reply[clock])
            for clock in ("cpu_ns", "wall_ns")
        )
        return TimingSamples(cpu_ns, wall_ns, n_runs)

    def memory(self, *, reset: bool = False) -> MemoryUse:
        """Memory of the child; `reset` starts a new peak after this reading."""
        with self._lock:
            reply, _ = self._exchange({"command": "memory", "reset": reset}, [], None)
        return MemoryUse(reply["peak_bytes"], reply["resident_bytes"])

    def release(self, handle: SessionHandle) -> None:
        """Free a model; the handle must not be used afterwards."""
        with self._lock:
            if handle._child is not None and handle._child is self._child:
                self._released.append(handle._session_id)
            handle._child = None
            if handle._path is not None and self._folder and handle._path.is_relative_to(self._folder):
                handle._path.unlink(missing_ok=True)

    def close(self) -> None:
        """End the child and remove temporary files. Closing twice is harmless."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.stop()
                self._child = None
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _start(self) -> ChildProcess:
        limit = self._memory_limit_bytes
        return ChildProcess(available_memory_bytes() if limit is None else limit)

    def _ensure_loaded(self, handle: SessionHandle) -> None:
        if handle._child is not None and handle._child is self._child and handle._child.alive:
            return
        handle._session_id = next(self._ids)
        request = {
            "command": "load",
            "session": handle._session_id,
            "path": None if handle._path is None else str(handle._path),
            **handle._options,
        }
        buffers = [] if handle._path is not None else [_as_buffer(handle._model)]
        reply, _ = self._exchange(request, buffers, None, handle.where)
        handle.inputs, handle.outputs = (
            tuple(
                TensorInfo(name, kind, None if shape is None else tuple(shape))
                for name, kind, shape in reply[side]
            )
            for side in ("inputs", "outputs")
        )
        handle.load_ms = reply["load_ns"] / 1e6
        handle._child = self._child

    def _exchange(
        self, request: dict[str, Any], buffers: list[Array], time_limit_s: float | None, where: str = ""
    ) -> tuple[dict[str, Any], list[Array]]:
        with self._lock:
            if self._closed:
                raise RuntimeError("this Executor is closed")
            if self._child is None or not self._child.alive:
                self._child = self._start()
                self._released.clear()
            released, self._released = self._released, []
            parts = frame_parts({**request, "release": released}, buffers)
            try:
                return self._child.exchange(
                    parts, self.time_limit_s if time_limit_s is None else time_limit_s
                )
            except ExecutionFailure as failure:
                raise failure.at(where) from None

    def _write_model(self, handle: SessionHandle, model: bytes) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder = tempfile.mkdtemp(prefix="opgraft-")
                weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            descriptor, name = tempfile.mkstemp(dir=self._folder, suffix=".onnx")
        with os.fdopen(descriptor, "wb") as file:
            file.write(model)
        return Path(name)


def run_once(
    model: Path | str | bytes,
    inputs: Mapping[str, Value],
    outputs: Sequence[str] | None = None,
    *,
    memory_limit_bytes: int | None = None,
    time_limit_s: float = 120.0,
    **options: Any,
) -> dict[str, Value]:
    """Run a model once in a child of its own; `options` as for `Executor.load`."""
    with Executor(memory_limit_bytes=memory_limit_bytes, time_limit_s=time_limit_s) as executor:
        return executor.run_once(model, inputs, outputs, **options)


def available_memory_bytes() -> int | None:
    """What a new process can take without swapping: free memory of the machine and of the control group."""
    candidates = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        candidates.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in _CGROUP_FILES:
        try:
            candidates.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no such controller, or the limit is "max"
            continue
    return max(0, min(candidates))


_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def _describe_inputs(inputs: Mapping[str, Value], where: str) -> tuple[dict[str, Any], list[Array]]:
    buffers: list[Array] = []
    described = {}
    for name, value in inputs.items():
        try:
            described[name] = describe(to_raw(value), buffers)
        except (TypeError, ValueError) as error:
            raise ExecutionFailure("unsupported", f"input {name!r}: {error}", where=where) from None
    return described, buffers


def _as_buffer(model: bytes) -> Array:
    buffer = aligned_buffer(len(model))
    buffer[:] = memoryview(model)
    return buffer
