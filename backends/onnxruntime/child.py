"""One worker process seen from its parent: frames with a deadline, and a diagnosis when it dies."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal, TypeAlias

from opgraft.backends.onnxruntime.protocol import Array, ProtocolError, frame_reader
from opgraft.ir.errors import ExecutionError

FailureKind: TypeAlias = Literal["rejected", "unsupported", "crashed", "out of memory", "timed out"]

_VERBS: dict[str, str] = {
    "rejected": "rejects it",
    "unsupported": "cannot exchange this value",
    "crashed": "crashed",
    "out of memory": "ran out of memory",
    "timed out": "did not finish",
}
_REMEDIES: dict[str, str] = {
    "timed out": "raise the time limit if the model really needs longer",
    "out of memory": "raise the memory limit, free memory, or use smaller inputs",
    "crashed": "a defect of the runtime or of a custom operator: report it there with this model",
}
_STARTUP_LIMIT_S = 120.0
_STDERR_BYTES = 1 << 16
_READ_BYTES = 1 << 16
_MESSAGE_CHARACTERS = 600
_BOOTSTRAP = (
    "import sys; limit = int(sys.argv[1]); sys.path[:] = sys.argv[2:];"
    "from opgraft.backends.onnxruntime.worker import serve; serve(limit)"
)


class ExecutionFailure(ExecutionError):
    """The runtime did not deliver; says how: `kind`, the `signal` that ended the child, its last `stderr`."""

    def __init__(
        self, kind: FailureKind, message: str, *, where: str = "", signal: int | None = None, stderr: str = ""
    ) -> None:
        self.kind = kind
        self.is_fatal = kind in ("crashed", "out of memory", "timed out")
        self.message = message
        self.signal = signal
        self.stderr = stderr
        super().__init__(
            f"ONNX Runtime {_VERBS[kind]}: {message}", where=where, remedy=_REMEDIES.get(kind, "")
        )

    def at(self, where: str) -> ExecutionFailure:
        """The same failure with the model it happened in."""
        return ExecutionFailure(self.kind, self.message, where=where, signal=self.signal, stderr=self.stderr)


class ChildProcess:
    """A running worker. After any failure but a reply that says so, it is dead and has to be replaced."""

    def __init__(self, memory_limit_bytes: int | None) -> None:
        path = [entry or os.getcwd() for entry in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP, str(memory_limit_bytes or 0), *path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            # Its own process group: one signal ends it and whatever a custom operator started.
            start_new_session=True,
            # The worker only moves bytes with numpy, whose BLAS would reserve memory for a thread per core.
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr = (pipe.fileno() for pipe in pipes if pipe)
        os.set_blocking(self._stdin, False)
        self._complaints = bytearray()
        self.versions: dict[str, str] | None = None
        # Also runs at interpreter exit, but not in a process forked from this one.
        self._finalizer = weakref.finalize(self, _end_process, self._process, os.getpid())

    @property
    def alive(self) -> bool:
        return self._finalizer.alive and self._process.poll() is None

    def stop(self) -> None:
        self._finalizer()

    def exchange(
        self, request: Sequence[memoryview], time_limit_s: float
    ) -> tuple[dict[str, Any], list[Array]]:
        """Send a frame and return the reply, or raise ExecutionFailure."""
        try:
            if self.versions is None:
                hello, _ = self._exchange((), time.monotonic() + _STARTUP_LIMIT_S, _STARTUP_LIMIT_S)
                self.versions = hello["versions"]
            header, buffers = self._exchange(request, time.monotonic() + time_limit_s, time_limit_s)
        except BaseException:
            # Interrupted or failed in the middle of a frame: nothing later could be understood.
            self.stop()
            raise
        failure = header.get("failure")
        if failure:
            raise ExecutionFailure(
                failure["kind"], _one_line(failure["message"]), stderr=self._complaint_text()
            )
        return header, buffers

    def _exchange(
        self, request: Sequence[memoryview], deadline: float, limit_s: float
    ) -> tuple[dict[str, Any], list[Array]]:
        # Writing, reading and draining stderr take turns in one loop: no full pipe can block the others.
        unsent = list(reversed(request))
        reader = frame_reader()
        target = next(reader)
        poll = select.poll()
        for descriptor in (self._stdout, self._stderr):
            poll.register(descriptor, select.POLLIN)
        if unsent:
            poll.register(self._stdin, select.POLLOUT)
        while True:
            wait_s = deadline - time.monotonic()
            ready = poll.poll(max(0.0, wait_s) * 1000)
            if not ready and wait_s <= 0:
                raise ExecutionFailure(
                    "timed out", f"no answer within {limit_s:g} s", stderr=self._complaint_text()
                )
            for descriptor, _ in ready:
                if descriptor == self._stderr:
                    if not self._drain_stderr():
                        poll.unregister(self._stderr)
                elif descriptor == self._stdin:
                    if not self._write(unsent):
                        poll.unregister(self._stdin)
                else:
                    count = os.readv(self._stdout, [target])
                    if count == 0:
                        raise self._diagnose()
                    target = target[count:]
                    if target.nbytes == 0:
                        try:
                            target = next(reader)
                        except StopIteration as stop:
                            frame: tuple[dict[str, Any], list[Array]] = stop.value
                            return frame
                        except (ProtocolError, ValueError, MemoryError) as error:
                            raise ExecutionFailure(
                                "crashed", f"its answer is no frame ({error})", stderr=self._complaint_text()
                            ) from None

    def _write(self, unsent: list[memoryview]) -> bool:
        """Send what the pipe takes; False when nothing is left to send."""
        try:
            count = os.write(self._stdin, unsent[-1])
        except BlockingIOError:
            return True
        except BrokenPipeError:
            return False  # the end of its stdout tells why
        unsent[-1] = unsent[-1][count:]
        if unsent[-1].nbytes == 0:
            unsent.pop()
        return bool(unsent)

    def _drain_stderr(self) -> bool:
        data = os.read(self._stderr, _READ_BYTES)
        self._complaints += data
        del self._complaints[:-_STDERR_BYTES]
        return bool(data)

    def _complaint_text(self) -> str:
        return self._complaints.decode(errors="replace").strip()

    def _diagnose(self) -> ExecutionFailure:
        """Why the child is gone."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5.0)
        poll = select.poll()
        poll.register(self._stderr, select.POLLIN)
        while poll.poll(0) and self._drain_stderr():
            pass
        stderr = self._complaint_text()
        last_line = _one_line(stderr.rpartition("\n")[2]) if stderr else ""
        code = self._process.returncode
        number = -code if code is not None and code < 0 else None
        if "bad_alloc" in stderr or "MemoryError" in stderr:
            return ExecutionFailure("out of memory", last_line, signal=number, stderr=stderr)
        if number == signal.SIGKILL:
            message = "killed by the system, which does so when memory runs out"
            return ExecutionFailure("out of memory", message, signal=number, stderr=stderr)
        how = f"killed by {_signal_name(number)}" if number else f"ended with exit code {code}"
        message = f"{how}: {last_line}" if last_line else how
        return ExecutionFailure("crashed", message, signal=number, stderr=stderr)


def _end_process(process: subprocess.Popen[bytes], owner_pid: int) -> None:
    if os.getpid() != owner_pid:
        return
    # Before it is reaped, so that the group's number cannot have been given to somebody else.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with suppress(OSError):
                pipe.close()
    process.wait()


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# What the runtime's messages carry for its own developers:
_NOISE = (
    # "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : "
    (re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "), ""),
    # "/onnxruntime_src/onnxruntime/core/a.cc:12 void* onnxruntime::F(size_t) const [with T = int] "
    (re.compile(r"\S*/onnxruntime_src/\S+:\d+ .*?\)(?: const)?(?: \[with [^\]]*\])? "), ""),
    (
        re.compile(r"Non-zero status code returned while running (\w+) node\. Name:'(.*?)' Status Message: "),
        r"\1 '\2': ",
    ),
    (re.compile(r" ''(?=:)"), ""),
)


def _one_line(message: str) -> str:
    text = " ".join(message.split())
    for pattern, replacement in _NOISE:
        text = pattern.sub(replacement, text)
    return text if len(text) <= _MESSAGE_CHARACTERS else text[: _MESSAGE_CHARACTERS - 3] + "..."
