"""Is the candidate model slower or faster than the baseline? Interleaved runs in one child, with intervals.

Three sessions run in turns: the baseline, the candidate, and the baseline a second time. The ratio of the two
baselines is 1 in truth, so what is measured for it shows what the machine's noise does to the answer.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from opgraft.backends.measure import PairedRatio, paired_ratio
from opgraft.backends.onnxruntime.executor import Executor, SessionHandle, Value

# Two baselines that differ by more than this were not measured under the same conditions.
SELF_RATIO_TOLERANCE = 0.02
# Of the time limit, what one request may be expected to take: the rest is for a machine that becomes busy.
_BATCH_SHARE = 0.25


@dataclass(frozen=True)
class LatencyComparison:
    """Latency of the candidate against the baseline, on the clock that counts for this number of threads."""

    threads: int
    clock: Literal["cpu", "wall"]
    baseline_ms: float
    candidate_ms: float
    """Medians."""
    ratio: PairedRatio
    self_ratio: PairedRatio
    """The baseline's second session over its first."""
    noisy: bool
    """The baselines still differed by more than SELF_RATIO_TOLERANCE after the last attempt."""
    n_attempts: int
    repeats: int
    """Runs per sample."""

    @property
    def is_slower(self) -> bool:
        return self.ratio.is_slower

    @property
    def is_faster(self) -> bool:
        return self.ratio.is_faster


@dataclass(frozen=True)
class Footprint:
    """What a model costs apart from its latency, measured in a child of its own."""

    load_ms: float
    peak_bytes: int
    """Resident memory while loading and running it, above the idle runtime's."""


def compare_latency(
    executor: Executor,
    baseline: Path | str | bytes,
    candidate: Path | str | bytes,
    inputs: Mapping[str, Value],
    *,
    pairs: int = 15,
    threads: int = 1,
    optimized: bool = True,
    libraries: Sequence[Path] = (),
    attempts: int = 3,
    min_sample_ms: float = 5.0,
    seed: int = 0,
) -> LatencyComparison:
    """Measure both models on the same inputs: CPU time with one thread, wall time with several.

    CPU time does not count what other processes take, but with several threads it would hide waiting. When
    the two sessions of the baseline differ, all is repeated with twice the pairs, `attempts` times at most.
    """
    # Threads that spin while their session is idle would take the cores on which the next one is measured; within
    # a run they still spin, as they do for a user.
    config = {"session.force_spinning_stop": "1"} if threads > 1 else {}
    handles = []
    try:
        for model in (baseline, candidate, baseline):
            handles.append(
                executor.load(model, optimized=optimized, threads=threads, libraries=libraries, config=config)
            )
        for attempt in range(1, attempts + 1):
            times_ns, repeats = _sample(
                executor, handles, inputs, pairs << (attempt - 1), threads, min_sample_ms
            )
            self_ratio = paired_ratio(times_ns[0], times_ns[2], seed=seed)
            noisy = abs(self_ratio.ratio - 1.0) > SELF_RATIO_TOLERANCE
            if not noisy:
                break
    finally:
        for handle in handles:
            executor.release(handle)
    return LatencyComparison(
        threads=threads,
        clock=_clock(threads),
        baseline_ms=statistics.median(times_ns[0]) / 1e6,
        candidate_ms=statistics.median(times_ns[1]) / 1e6,
        ratio=paired_ratio(times_ns[0], times_ns[1], seed=seed),
        self_ratio=self_ratio,
        noisy=noisy,
        n_attempts=attempt,
        repeats=repeats,
    )


def measure_footprint(
    model: Path | str | bytes,
    inputs: Mapping[str, Value],
    *,
    threads: int = 1,
    optimized: bool = True,
    libraries: Sequence[Path] = (),
    memory_limit_bytes: int | None = None,
    time_limit_s: float = 120.0,
) -> Footprint:
    """Load time and peak memory of one model, in a fresh child so that no earlier model counts."""
    with Executor(memory_limit_bytes=memory_limit_bytes, time_limit_s=time_limit_s) as executor:
        idle_bytes = executor.memory(reset=True).resident_bytes
        handle = executor.load(model, optimized=optimized, threads=threads, libraries=libraries)
        executor.run(handle, inputs)
        return Footprint(handle.load_ms, max(0, executor.memory().peak_bytes - idle_bytes))


def _clock(threads: int) -> Literal["cpu", "wall"]:
    return "cpu" if threads == 1 else "wall"


def _sample(
    executor: Executor,
    handles: Sequence[SessionHandle],
    inputs: Mapping[str, Value],
    rounds: int,
    threads: int,
    min_sample_ms: float,
) -> tuple[list[list[float]], int]:
    """Nanoseconds [session][round] and runs per sample, in as many requests as the time limit asks for."""
    warmup = executor.time(handles, inputs, rounds=1, warmup=1, min_sample_ms=min_sample_ms)
    round_s = sum(samples[0] for samples in warmup.wall_ns) * warmup.repeats / 1e9
    # An even number of rounds in each request, so that forward and backward orders stay balanced.
    batch = max(2, int(executor.time_limit_s * _BATCH_SHARE / round_s) // 2 * 2)
    times_ns: list[list[float]] = [[] for _ in handles]
    while len(times_ns[0]) < rounds:
        n_rounds = min(batch, rounds - len(times_ns[0]))
        samples = executor.time(handles, inputs, rounds=n_rounds, warmup=1, repeats=warmup.repeats)
        measured = samples.cpu_ns if _clock(threads) == "cpu" else samples.wall_ns
        for kept, new in zip(times_ns, measured, strict=True):
            kept.extend(new)
    return times_ns, warmup.repeats
