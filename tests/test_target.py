"""Targets as data, and the measured peaks of this machine."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
from opgraft.backends import cache
from opgraft.backends.onnxruntime import peaks as peaks_module
from opgraft.ir.errors import ExecutionError, UsageError
from opgraft.ir.target import BASES, Figure, Peaks, Target, known_targets

REQUIRED = {
    "cpu",
    "x86-64-avx512",
    "x86-64-avx2",
    "android-arm64",
    "ios-arm64",
    "cuda",
    "raspberry-pi-5",
    "web-wasm",
}


def test_known_targets_start_with_this_machine():
    assert known_targets()[0] == "cpu"
    assert set(known_targets()) >= REQUIRED


@pytest.mark.parametrize("name", [name for name in known_targets() if name != "cpu"])
def test_shipped_targets_claim_no_measurement(name):
    target = Target.load(name)
    figures = [*target.peaks.flops_per_s.values(), target.peaks.launch_s]
    figures += [figure for _, figure in target.peaks.bytes_per_s]
    for figure in figures:
        assert figure.basis in set(BASES) - {"measured"}
        assert figure.source
        assert figure.value > 0
    limits = [limit for limit, _ in target.peaks.bytes_per_s]
    bandwidths = [figure.value for _, figure in target.peaks.bytes_per_s]
    assert limits == sorted(limits)
    # Larger working sets live in slower memory.
    assert bandwidths == sorted(bandwidths, reverse=True)
    assert target.kind in {"cpu", "gpu", "edge"}
    assert not target.is_host
    assert 11 <= target.newest_opset <= onnx.defs.onnx_opset_version()
    text = target.describe()
    assert "measured" not in text
    assert all(figure.basis in text for figure in figures)


def test_host_is_detected():
    host = Target.load("cpu")
    assert host.is_host
    assert host.peaks is None
    assert "not measured" in host.describe()
    assert host.cores == len(os.sched_getaffinity(0))
    if os.path.exists("/proc/meminfo"):
        total_kb = int(Path("/proc/meminfo").read_text().split()[1])
        assert host.memory_bytes == total_kb * 1024
    flags = Path("/proc/cpuinfo").read_text() if os.path.exists("/proc/cpuinfo") else ""
    assert ("avx2" in host.isa) == (" avx2 " in flags)


def test_newest_opset_of_the_host_is_the_last_accepted():
    newest = Target.load("cpu").newest_opset

    def accepted(opset):
        info = onnx.helper.make_tensor_value_info
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", 1, [2])], [info("y", 1, [2])]
        )
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception:  # noqa: BLE001 - the runtime's errors share no narrower base
            return False
        return True

    assert accepted(newest)
    assert not accepted(newest + 1)


def test_unknown_target_lists_the_known_and_suggests():
    with pytest.raises(UsageError) as caught:
        Target.load("androd-arm64")
    assert "did you mean 'android-arm64'" in str(caught.value)
    assert all(name in str(caught.value) for name in known_targets())
    with pytest.raises(UsageError) as caught:
        Target.load("../../etc/passwd")
    assert "did you mean" not in str(caught.value)


PEAKS = Peaks(
    threads=1,
    flops_per_s={"float32": Figure(100e9, "measured"), "int8": Figure(400e9, "measured")},
    bytes_per_s=((1000, Figure(50e9, "measured")), (10_000, Figure(10e9, "measured"))),
    launch_s=Figure(1e-6, "measured"),
)


def test_peaks_by_type_and_working_set():
    assert PEAKS.arithmetic("uint8").value == 400e9
    assert PEAKS.arithmetic("float16").value == 100e9
    assert [PEAKS.bandwidth(size).value for size in (0, 1000, 1001, 10**9)] == [50e9, 50e9, 10e9, 10e9]
    assert "100 GFLOP/s (measured)" in Target.load("cpu").with_peaks(PEAKS).describe()


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def count_children(monkeypatch, stdout, **fields):
    calls = []

    def run(command, **options):
        calls.append(command)
        if "raises" in fields:
            raise fields["raises"]
        return SimpleNamespace(stdout=stdout, returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_peaks_are_measured_once_per_key(empty_cache, monkeypatch):
    calls = count_children(monkeypatch, json.dumps(asdict(PEAKS)))
    assert peaks_module.measured_peaks(1) == PEAKS
    assert peaks_module.measured_peaks(1) == PEAKS
    assert len(calls) == 1
    peaks_module.measured_peaks(2)
    assert len(calls) == 2
    peaks_module.measured_peaks(1, use_cache=False)
    assert len(calls) == 3
    assert {command[-1] for command in calls} == {"1", "2"}


def test_damaged_cache_entry_is_measured_again(empty_cache, monkeypatch):
    calls = count_children(monkeypatch, json.dumps(asdict(PEAKS)))
    peaks_module.measured_peaks(1)
    entries = list(cache.cache_dir().iterdir())
    assert len(entries) == 1
    entry = json.loads(entries[0].read_text())
    del entry["value"]["launch_s"]
    entries[0].write_text(json.dumps(entry))
    assert peaks_module.measured_peaks(1) == PEAKS
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("failure", "text"),
    [
        ({"stdout": "not json"}, "no result"),
        ({"stdout": "", "raises": subprocess.TimeoutExpired("x", 60)}, "60 s"),
        (
            {"stdout": "", "raises": subprocess.CalledProcessError(-11, "x", stderr="a\nlast line")},
            "last line",
        ),
    ],
)
def test_failed_measurement_is_an_error_and_is_not_kept(empty_cache, monkeypatch, failure, text):
    count_children(monkeypatch, **failure)
    with pytest.raises(ExecutionError, match=text):
        peaks_module.measured_peaks(1)
    assert not cache.cache_dir().exists()


def test_real_measurement_is_plausible(empty_cache):
    measured = peaks_module.measured_peaks(1)
    assert measured.threads == 1
    # Wide bounds, to catch a wrong unit: a core of the last fifteen years does 1 GFLOP/s and not 100 TFLOP/s.
    assert 1e9 < measured.flops_per_s["float32"].value < 1e14
    assert 1e9 < measured.flops_per_s["int8"].value < 1e15
    assert [limit for limit, _ in measured.bytes_per_s] == list(peaks_module.WORKING_SETS_BYTES)
    bandwidths = [figure.value for _, figure in measured.bytes_per_s]
    assert all(1e8 < value < 1e13 for value in bandwidths)
    assert bandwidths == sorted(bandwidths, reverse=True)
    assert 1e-8 < measured.launch_s.value < 1e-3
    assert peaks_module.measured_peaks(1) == measured
