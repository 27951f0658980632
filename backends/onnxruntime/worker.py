"""The child process that runs ONNX Runtime, so that no model can crash, starve or hang the optimizer.

It answers one frame (`protocol.py`) at a time: read from standard input, answered on the original standard
output. Native libraries print where they like: file descriptor 1 is moved to standard error first. Imports
are kept to numpy and onnxruntime, because every run of opgraft waits for this process to be ready.
"""

from __future__ import annotations

import gc
import os
import platform
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import onnxruntime as ort
from opgraft.backends.onnxruntime.binding import (
    UnsupportedValueError,
    bind,
    read_results,
    session_options,
    signature,
)
from opgraft.backends.onnxruntime.protocol import Array, describe, frame_parts, frame_reader, restore

Reply = tuple[dict[str, Any], list[Array]]


class Worker:
    """The sessions of one child process and the commands on them."""

    def __init__(self) -> None:
        self._sessions: dict[int, ort.InferenceSession] = {}

    def answer(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        for session_id in header.get("release", ()):
            self._sessions.pop(session_id, None)
        command: Callable[[Mapping[str, Any], Sequence[Array]], Reply] = getattr(self, f"_{header['command']}")
        return command(header, buffers)

    def _load(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        path = header["path"]
        model = path if path is not None else buffers[0].tobytes()
        options = session_options(**header["options"])
        start_ns = time.perf_counter_ns()
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        load_ns = time.perf_counter_ns() - start_ns
        self._sessions[header["session"]] = session
        reply = {
            "load_ns": load_ns,
            "inputs": [signature(arg) for arg in session.get_inputs()],
            "outputs": [signature(arg) for arg in session.get_outputs()],
        }
        return reply, []

    def _run(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        session = self._sessions[header["session"]]
        feeds = {name: restore(value, buffers) for name, value in header["inputs"].items()}
        types = {arg.name: arg.type for arg in session.get_outputs()}
        names = list(types) if header["outputs"] is None else header["outputs"]
        for name in names:
            if types.get(name, "").startswith("sparse_tensor"):
                raise UnsupportedValueError(f"output {name!r} is a sparse tensor")
        results = bind(session, feeds, names)()
        if not header["keep"]:
            del self._sessions[header["session"]], session
        answers: list[Array] = []
        values = [describe(value, answers) for value in read_results(results, names, feeds)]
        return {"outputs": dict(zip(names, values, strict=True))}, answers

    def _time(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        feeds = {name: restore(value, buffers) for name, value in header["inputs"].items()}
        runs = []
        for session_id in header["sessions"]:
            session = self._sessions[session_id]
            runs.append(bind(session, feeds, [arg.name for arg in session.get_outputs()]))
        for _ in range(header["warmup"]):
            for run in runs:
                run()
        repeats = header["repeats"] or _choose_repeats(runs, header["min_sample_ns"])
        cpu_ns, wall_ns = _time_interleaved(runs, header["rounds"], repeats)
        return {"cpu_ns": cpu_ns, "wall_ns": wall_ns, "repeats": repeats}, []

    def _memory(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        usage = _memory_usage()
        if header["reset"]:
            # Writing 5 makes the present resident size the new peak (Linux, filesystems/proc.rst).
            with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
                file.write("5")
        return usage, []

    def _kernels(self, header: Mapping[str, Any], buffers: Sequence[Array]) -> Reply:
        # The registry is not in the public API; a runtime without it has none to tell.
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        kernels = [
            [kernel.domain, kernel.op_name, *kernel.version_range, kernel.type_constraints]
            for kernel in getattr(state, "get_all_opkernel_def", list)()
            if kernel.provider == "CPUExecutionProvider"
        ]
        return {"kernels": kernels}, []


def _choose_repeats(runs: Sequence[Callable[[], Any]], min_sample_ns: int) -> int:
    fastest_ns = min(_sample(run, 1)[1] for run in runs)
    return max(1, -(-min_sample_ns // max(1, fastest_ns)))


def _sample(run: Callable[[], Any], repeats: int) -> tuple[int, int]:
    if repeats > 1:
        # Untimed: it brings this session's data back into the caches, whoever ran before.
        run()
    cpu, wall = time.process_time_ns(), time.perf_counter_ns()
    for _ in range(repeats):
        run()
    return time.process_time_ns() - cpu, time.perf_counter_ns() - wall


def _time_interleaved(
    runs: Sequence[Callable[[], Any]], rounds: int, repeats: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Nanoseconds [run][round]; every other round goes backwards (ABBA), so that a linear drift cancels."""
    cpu_ns: list[list[int]] = [[] for _ in runs]
    wall_ns: list[list[int]] = [[] for _ in runs]
    gc.collect()
    gc.disable()
    try:
        for index in range(rounds):
            order = range(len(runs)) if index % 2 == 0 else reversed(range(len(runs)))
            for position in order:
                cpu, wall = _sample(runs[position], repeats)
                cpu_ns[position].append(cpu)
                wall_ns[position].append(wall)
    finally:
        gc.enable()
    return cpu_ns, wall_ns


def _memory_usage() -> dict[str, int]:
    # getrusage's maximum would include the parent's size at the time of the fork.
    fields = {}
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        fields = {line.partition(":")[0]: line.split() for line in file}
    if "VmHWM" in fields and "VmRSS" in fields:
        return {
            "peak_bytes": int(fields["VmHWM"][1]) * 1024,
            "resident_bytes": int(fields["VmRSS"][1]) * 1024,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"peak_bytes": peak_bytes, "resident_bytes": peak_bytes}


def _failure(error: BaseException) -> dict[str, Any]:
    text = f"{error}"
    if isinstance(error, MemoryError) or any(sign in text for sign in _OUT_OF_MEMORY):
        kind = "out of memory"
    elif isinstance(error, UnsupportedValueError) or "No corresponding Numpy type" in text:
        kind = "unsupported"
    else:
        kind = "rejected"
    return {"failure": {"kind": kind, "message": text or type(error).__name__}}


_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "ailed to allocate memory", "Cannot allocate memory")


def _is_of_runtime(error: Exception) -> bool:
    """Its own exceptions have no common base class; its bindings raise some of Python's."""
    own = type(error).__module__.startswith("onnxruntime")
    return own or isinstance(error, (MemoryError, RuntimeError, TypeError, ValueError))


def _limit(memory_limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory_limit_bytes:
        # RLIMIT_DATA counts private writable memory; RLIMIT_AS would count mapped weight files as well.
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit_bytes, memory_limit_bytes))


def _die_with_parent(requests: int) -> None:
    """Kill this process once nobody can send requests any more, even in the middle of a native loop."""
    poll = select.poll()
    poll.register(requests, 0)
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in poll.poll()):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _receive(descriptor: int) -> tuple[dict[str, Any], list[Array]]:
    reader = frame_reader()
    try:
        while True:
            target = next(reader)
            while target.nbytes:
                count = os.readv(descriptor, [target])
                if count == 0:
                    raise EOFError
                target = target[count:]
    except StopIteration as stop:
        frame: tuple[dict[str, Any], list[Array]] = stop.value
        return frame


def _send(descriptor: int, header: Mapping[str, Any], buffers: Sequence[Array]) -> None:
    for part in frame_parts(header, buffers):
        rest = part
        while rest.nbytes:
            rest = rest[os.write(descriptor, rest) :]


def serve(memory_limit_bytes: int = 0) -> None:
    """Answer requests until standard input closes."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    threading.Thread(target=_die_with_parent, args=(requests,), daemon=True).start()
    _limit(memory_limit_bytes)
    versions = {"onnxruntime": ort.__version__, "numpy": np.__version__, "python": platform.python_version()}
    _send(replies, {"versions": versions}, [])
    worker = Worker()
    while True:
        try:
            header, buffers = _receive(requests)
        except EOFError:
            return
        try:
            reply, answers = worker.answer(header, buffers)
        except Exception as error:
            if not _is_of_runtime(error):
                raise  # a defect here: the traceback on stderr says more than a refusal would
            reply, answers = _failure(error), []
        del buffers
        _send(replies, reply, answers)
        del answers


if __name__ == "__main__":
    serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
