"""Latency comparison: does the interval cover, does it decide rightly, does it see a planted slow-down?"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from opgraft.backends.measure import MIN_PAIRS, paired_ratio
from opgraft.backends.onnxruntime import timing
from opgraft.backends.onnxruntime.executor import Executor, TimingSamples
from opgraft.backends.onnxruntime.timing import compare_latency, measure_footprint


def noise_normal(random, n):
    return np.exp(0.01 * random.standard_normal(n))


def noise_interrupted(random, n):
    """Never below the true time; one sample in ten is up to half again as long."""
    spikes = np.where(random.random(n) < 0.1, random.random(n) * 0.5, 0)
    return 1 + 0.002 * np.abs(random.standard_normal(n)) + spikes


def noise_heavy(random, n):
    return 1 + 0.01 * np.abs(random.standard_cauchy(n))


NOISES = [noise_normal, noise_interrupted, noise_heavy]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("n_pairs", [15, 16, 40])
def test_interval_covers_the_true_ratio(noise, n_pairs):
    true_ratio = 0.9
    n_trials = 600
    covered = 0
    for trial in range(n_trials):
        random = np.random.default_rng(trial)
        state = np.exp(0.3 * np.sin(np.arange(n_pairs)))  # the machine's, shared by the two sides of a pair
        baseline, candidate = state * noise(random, n_pairs), true_ratio * state * noise(random, n_pairs)
        estimate = paired_ratio(baseline, candidate, resamples=2000, seed=trial)
        covered += estimate.low <= true_ratio <= estimate.high
    # 95 % promised; 600 trials see it with a standard error of 0.9 %, and three of those are allowed.
    assert covered / n_trials >= 0.95 - 0.027
    # An interval that always covers says nothing: the widest order statistics used here cover 98.5 %.
    assert covered / n_trials <= 0.9985


def test_decisions():
    random = np.random.default_rng(0)
    baseline = noise_normal(random, 15)
    slower, faster = (paired_ratio(baseline, ratio * noise_normal(random, 15)) for ratio in (1.05, 0.95))
    assert slower.is_slower
    assert not slower.is_faster
    assert faster.is_faster
    assert not faster.is_slower
    same = paired_ratio(baseline, baseline)
    assert (same.ratio, same.low, same.high) == (1, 1, 1)
    assert not same.is_slower
    assert not same.is_faster


def test_one_outlier_decides_nothing():
    baseline = np.ones(15)
    candidate = np.full(15, 0.99)
    candidate[3] = 1000.0
    assert paired_ratio(baseline, candidate).is_faster


def test_same_samples_same_interval():
    random = np.random.default_rng(0)
    baseline, candidate = noise_heavy(random, 20), noise_heavy(random, 20)
    assert paired_ratio(baseline, candidate, seed=3) == paired_ratio(baseline, candidate, seed=3)


def test_pairs_matter_not_sides():
    # The machine became three times slower half way: medians of the sides would show nothing but that.
    random = np.random.default_rng(1)
    state = np.where(np.arange(20) < 10, 1.0, 3.0)
    estimate = paired_ratio(state * noise_normal(random, 20), 1.1 * state * noise_normal(random, 20))
    assert estimate.is_slower
    assert estimate.high - estimate.low < 0.05


@pytest.mark.parametrize(
    ("baseline", "candidate"),
    [
        ([1.0] * 15, [1.0] * 14),
        ([1.0] * (MIN_PAIRS - 1), [1.0] * (MIN_PAIRS - 1)),
        ([1.0] * 14 + [0.0], [1.0] * 15),
        ([1.0] * 14 + [float("nan")], [1.0] * 15),
        ([1.0] * 14 + [-1.0], [1.0] * 15),
    ],
)
def test_bad_samples_are_refused(baseline, candidate):
    with pytest.raises(ValueError, match=r"samples|pairs|latency"):
        paired_ratio(baseline, candidate)


def matmul_chain(n_layers, size=96, n_weights=1):
    """`n_layers` products one after the other; only the first weight is used, the rest is load."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array((random.standard_normal((size, size)) / size**0.5).astype(np.float32), f"w{index}")
        for index in range(n_weights)
    ]
    names = ["x", *(f"t{layer}" for layer in range(n_layers - 1)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[layer], f"w{layer % n_weights}"], [names[layer + 1]])
        for layer in range(n_layers)
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [size, size]) for name in "xy")
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString(), {"x": np.ones((size, size), np.float32)}


@pytest.mark.parametrize("threads", [1, 2])
def test_planted_slow_down_is_seen(threads):
    model, inputs = matmul_chain(8)
    longer, _ = matmul_chain(32)
    with Executor() as executor:
        slower = compare_latency(executor, model, longer, inputs, threads=threads, attempts=1)
        faster = compare_latency(executor, longer, model, inputs, threads=threads, attempts=1)
    assert slower.clock == ("cpu" if threads == 1 else "wall")
    assert slower.is_slower
    assert faster.is_faster
    # Four times the work; with two threads, waking the second one is part of each run.
    assert (2.5 if threads == 1 else 1.5) < slower.ratio.ratio < 6.0
    assert slower.ratio.n_pairs == 15
    sample_ms = slower.baseline_ms * slower.repeats
    assert sample_ms > 2.5, "samples are too short to be trusted"


def test_samples_are_interleaved_and_per_run():
    model, inputs = matmul_chain(4)
    with Executor() as executor:
        handles = [executor.load(model), executor.load(model)]
        samples = executor.time(handles, inputs, rounds=6, repeats=3)
        assert samples.repeats == 3
        assert [len(rounds) for rounds in samples.cpu_ns] == [6, 6]
        assert [len(rounds) for rounds in samples.wall_ns] == [6, 6]
        # One thread cannot use more CPU time than passes; clocks tick a little differently.
        assert np.median(samples.cpu_ns) <= 1.1 * np.median(samples.wall_ns)
        longer = executor.time(handles, inputs, rounds=2, min_sample_ms=20.0)
        assert longer.repeats * np.max(longer.wall_ns) / 1e6 > 10


class ScriptedExecutor:
    """Answers with times written down beforehand: one list of [session][round] per attempt."""

    time_limit_s = 120.0

    def __init__(self, second_baselines):
        self.second_baselines = list(second_baselines)
        self.n_rounds = []
        self.released = []

    def load(self, model, **options):
        return model

    def release(self, handle):
        self.released.append(handle)

    def time(self, handles, inputs, *, rounds, repeats=0, **options):
        if repeats == 0:
            return TimingSamples(((1e6,),) * 3, ((1e6,),) * 3, 5)
        self.n_rounds.append(rounds)
        second = self.second_baselines.pop(0) * 1e6
        times = tuple((value,) * rounds for value in (1e6, 0.5e6, second))
        return TimingSamples(times, times, repeats)


def test_unequal_baselines_are_measured_again_then_flagged():
    settled = ScriptedExecutor([1.1, 0.9, 1.01])
    comparison = compare_latency(settled, b"a", b"b", {}, pairs=15, attempts=3)
    assert settled.n_rounds == [15, 30, 60]
    assert (comparison.noisy, comparison.n_attempts) == (False, 3)
    assert comparison.self_ratio.ratio == pytest.approx(1.01)
    assert comparison.is_faster
    assert settled.released == [b"a", b"b", b"a"]
    restless = compare_latency(ScriptedExecutor([1.1, 1.1]), b"a", b"b", {}, attempts=2)
    assert (restless.noisy, restless.n_attempts) == (True, 2)
    assert timing.SELF_RATIO_TOLERANCE == 0.02


def test_slow_models_are_measured_in_several_requests():
    scripted = ScriptedExecutor([1.0] * 99)
    scripted.time_limit_s = 0.2  # a round of 15 ms, a quarter of the limit: two rounds per request
    compare_latency(scripted, b"a", b"b", {}, pairs=15)
    assert scripted.n_rounds == [2] * 7 + [1]


def test_footprint_counts_the_model():
    small, inputs = matmul_chain(2, size=64)
    large, large_inputs = matmul_chain(8, size=1024, n_weights=8)  # 32 MiB of weights
    light, heavy = measure_footprint(small, inputs), measure_footprint(large, large_inputs)
    assert light.load_ms > 0
    assert heavy.peak_bytes - light.peak_bytes > 32 << 20
    assert light.peak_bytes < 32 << 20
