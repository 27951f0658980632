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
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from opgraft.backends.onnxruntime.child import ChildProcess, ExecutionFailure
from opgraft.backends.onnxruntime.memory import available_memory_bytes
from opgraft.backends.onnxruntime.protocol import (
    Array,
    Value,
    describe,
    frame_parts,
    from_raw,
    restore,
    to_raw,
)
from opgraft.backends.onnxruntime.session_handle import (
    MemoryUse,
    SessionHandle,
    TensorInfo,
    TimingSamples,
    read_signature,
)

__all__ = [
    "REFERENCE_CONFIG",
    "ExecutionFailure",
    "Executor",
    "MemoryUse",
    "SessionHandle",
    "TensorInfo",
    "TimingSamples",
    "Value",
    "run_once",
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


class Executor:
    """The parent's side of one worker process; calls from several threads take turns."""

    def __init__(
        self, *, memory_limit_bytes: int | None = None, time_limit_s: float = 120.0, start: bool = True
    ) -> None:
        """Starts the worker at once without waiting: its imports overlap with the caller's work.

        `memory_limit_bytes` defaults to the memory available on the machine when the worker starts;
        `time_limit_s` bounds each call, loading and running apart.
        """
        self._memory_limit_bytes = memory_limit_bytes
        self.time_limit_s = time_limit_s
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._released: deque[int] = deque()
        self._folder: str | None = None
        self._closed = False
        self._child: ChildProcess | None = self._start() if start else None

    def __enter__(self) -> Executor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def versions(self) -> dict[str, str]:
        """Versions of onnxruntime, numpy and Python in the child."""
        with self._lock:
            self.memory()
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
        `config` are the runtime's session configuration entries, `libraries` its custom-operator libraries.
        The child keeps the model until the handle is released or forgotten, or with `keep=False` for one run.
        """
        entries = dict({} if optimized else REFERENCE_CONFIG)
        if weights_folder is not None:
            entries["session.model_external_initializers_file_folder_path"] = str(weights_folder.resolve())
        options = {
            "optimized": optimized,
            "threads": threads,
            "libraries": [str(Path(library).resolve()) for library in libraries],
            "config": {**entries, **(config or {})},
        }
        if isinstance(model, (str, Path)):
            handle = SessionHandle(where or str(model), keep, options, Path(model).absolute(), b"")
        else:
            path = self._write_model(model) if len(model) > _INLINE_MODEL_BYTES else None
            handle = SessionHandle(
                where or "model in memory", keep, options, path, b"" if path else bytes(model)
            )
            if path:
                weakref.finalize(handle, path.unlink, missing_ok=True)
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
                "session": handle.session_id,
                "inputs": described,
                "outputs": None if outputs is None else list(outputs),
                "keep": handle.keep,
            }
            reply, answers = self._exchange(request, buffers, handle.where, time_limit_s)
            if not handle.keep:
                handle.child = None
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
        where = ", ".join(dict.fromkeys(handle.where for handle in handles))
        with self._lock:
            for handle in handles:
                self._ensure_loaded(handle)
            described, buffers = _describe_inputs(inputs, where)
            request = {
                "command": "time",
                "sessions": [handle.session_id for handle in handles],
                "inputs": described,
                "rounds": rounds,
                "warmup": warmup,
                "repeats": repeats,
                "min_sample_ns": int(min_sample_ms * 1e6),
            }
            reply, _ = self._exchange(request, buffers, where, time_limit_s)
        n_runs = reply["repeats"]
        cpu_ns, wall_ns = (
            tuple(tuple(total / n_runs for total in samples) for samples in reply[clock])
            for clock in ("cpu_ns", "wall_ns")
        )
        return TimingSamples(cpu_ns, wall_ns, n_runs)

    def memory(self, *, reset: bool = False) -> MemoryUse:
        """Memory of the child; `reset` starts a new peak after this reading."""
        reply, _ = self._exchange({"command": "memory", "reset": reset})
        return MemoryUse(reply["peak_bytes"], reply["resident_bytes"])

    def kernels(self) -> list[list[Any]]:
        """The runtime's CPU kernels: domain, operator, first and last opset, types per type variable."""
        reply, _ = self._exchange({"command": "kernels"})
        kernels: list[list[Any]] = reply["kernels"]
        return kernels

    def release(self, handle: SessionHandle) -> None:
        """Free a model now; should the handle be used again, it is loaded again."""
        self._released.append(handle.session_id)
        handle.child = None

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

    def start(self) -> None:
        """Start the child now if there is none; does not wait for it."""
        with self._lock:
            self._living_child()

    def _living_child(self) -> ChildProcess:
        if self._closed:
            raise RuntimeError("this Executor is closed")
        if self._child is None or not self._child.alive:
            self._child = self._start()
        return self._child

    def _start(self) -> ChildProcess:
        limit = self._memory_limit_bytes
        return ChildProcess(available_memory_bytes() if limit is None else limit)

    def _ensure_loaded(self, handle: SessionHandle) -> None:
        if handle.child is not None and handle.child is self._child and handle.child.alive:
            return
        handle.session_id = next(self._ids)
        request = {
            "command": "load",
            "session": handle.session_id,
            "path": str(handle.path) if handle.path else None,
            "options": handle.options,
        }
        buffers = [] if handle.path else [np.frombuffer(handle.model, np.uint8)]
        reply, _ = self._exchange(request, buffers, handle.where)
        handle.inputs, handle.outputs = read_signature(reply["inputs"]), read_signature(reply["outputs"])
        handle.load_ms = reply["load_ns"] / 1e6
        handle.child = self._child
        # A handle nobody holds any more is freed with the next request. (Numbers are never used twice.)
        weakref.finalize(handle, self._released.append, handle.session_id).atexit = False

    def _exchange(
        self,
        request: Mapping[str, Any],
        buffers: Sequence[Array] = (),
        where: str = "",
        time_limit_s: float | None = None,
    ) -> tuple[dict[str, Any], list[Array]]:
        with self._lock:
            child = self._living_child()
            released = [self._released.popleft() for _ in range(len(self._released))]
            parts = frame_parts({**request, "release": released}, buffers)
            try:
                return child.exchange(parts, self.time_limit_s if time_limit_s is None else time_limit_s)
            except ExecutionFailure as failure:
                raise failure.at(where) from None

    def _write_model(self, model: bytes) -> Path:
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


def _describe_inputs(inputs: Mapping[str, Value], where: str) -> tuple[dict[str, Any], list[Array]]:
    buffers: list[Array] = []
    described = {}
    for name, value in inputs.items():
        try:
            described[name] = describe(to_raw(value), buffers)
        except (TypeError, ValueError) as error:
            raise ExecutionFailure("unsupported", f"input {name!r}: {error}", where=where) from None
    return described, buffers
