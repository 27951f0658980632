"""Child processes that generate and examine graphs one after the other; a crash or a hang costs one graph."""

from __future__ import annotations

import faulthandler
import multiprocessing
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np

# A graph takes milliseconds; this is for passes that do not end.
TIME_LIMIT_S = 60.0
_PAUSE_S = 3.0
_MEMORY_LIMIT_BYTES = 4 << 30
Row = dict[str, Any]
Tell = Callable[[str], None]
Job = Callable[[Any, Tell], Row]


@dataclass
class _Child:
    process: Any
    connection: Connection
    job: Any = None
    stage: str = ""
    since: float = 0.0


def run_jobs(
    work: Job, jobs: Iterable[Any], n_children: int = 1, *, time_limit_s: float = TIME_LIMIT_S
) -> Iterator[Row]:
    """Rows in the order in which they are done. `work(job, tell)` runs in a child; what it tells is the stage named in
    the row of a job that the child did not survive: `{"job": job, "outcome": "crashed", "stage": ..., "detail": ...}`.
    """
    pending = iter(jobs)
    children: list[_Child] = []
    try:
        for _ in range(n_children):
            children.append(_start(work))
            _give(children[-1], pending)
        seen = time.monotonic()
        while any(c.job is not None for c in children):
            busy = [c for c in children if c.job is not None]
            ready = wait([c.connection for c in busy], timeout=1.0)
            seen = _forgive_pause(busy, seen)
            for number, child in enumerate(children):
                if child.job is None:
                    continue
                row = _hear(child) if child.connection in ready else None
                if row is None and time.monotonic() - child.since > time_limit_s:
                    row = _lost(child, f"no end after {time_limit_s:g} s")
                if row is None:
                    continue
                if not child.process.is_alive() or row["outcome"] == "crashed":
                    _end(child)
                    children[number] = child = _start(work)
                yield row
                _give(child, pending)
    finally:
        for child in children:
            _end(child)


def _start(work: Job) -> _Child:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs))
    process.start()
    theirs.close()
    return _Child(process, ours)


def _forgive_pause(children: list[_Child], seen: float) -> float:
    """What no one looked at, as when all are stopped for a while, does not count as time of a job. Returns now."""
    now = time.monotonic()
    if now - seen > _PAUSE_S:
        for child in children:
            child.since += now - seen
    return now


def _give(child: _Child, pending: Iterator[Any]) -> None:
    child.job = next(pending, None)
    child.stage, child.since = "", time.monotonic()
    if child.job is not None:
        child.connection.send(child.job)


def _hear(child: _Child) -> Row | None:
    try:
        kind, content = child.connection.recv()
    except (EOFError, OSError):
        child.process.join(5)
        code = child.process.exitcode
        return _lost(child, signal.Signals(-code).name if code and code < 0 else f"exit code {code}")
    if kind == "stage":
        child.stage = content
        return None
    return {"job": child.job, **content}


def _lost(child: _Child, how: str) -> Row:
    return {"job": child.job, "outcome": "crashed", "stage": child.stage, "detail": f"{child.stage}: {how}"}


def _end(child: _Child) -> None:
    child.connection.close()
    child.process.kill()
    child.process.join()


def _serve(work: Job, connection: Connection) -> None:
    warnings.simplefilter("ignore")
    faulthandler.disable()  # the parent says what became of the child
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))
    np.seterr(all="ignore")
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        try:
            row = work(job, lambda stage: connection.send(("stage", stage)))
        except Exception:  # noqa: BLE001 - a defect of the fuzzer itself must not end the run unseen
            row = {"outcome": "fuzzer failed", "detail": traceback.format_exc(limit=-6)[-1500:]}
        connection.send(("row", row))
