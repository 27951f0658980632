"""The capability probe against the installed runtime, and its cache against damage."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from opgraft.backends import cache
from opgraft.backends.onnxruntime import capabilities, capability_cases
from opgraft.backends.onnxruntime.capabilities import newest_opset, probe
from opgraft.backends.onnxruntime.capability_cases import CASES
from opgraft.backends.onnxruntime.capability_models import build_model, cast_inputs
from opgraft.backends.onnxruntime.executor import ExecutionFailure, Executor
from opgraft.ir.errors import UsageError
from opgraft.ir.target import Target, known_targets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return probe(use_cache=False)


def test_newest_opset_is_the_newest_that_runs(probed):
    newest = newest_opset(use_cache=False)
    assert newest == probed.newest_opset
    # Asked a second way: sessions of this process, on an operator that the probe does not use.
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    ort_errors = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented)

    def loads(opset):
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Sigmoid", ["x"], ["y"])], "g", infos[:1], infos[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options)
        except ort_errors:
            return False
        return True

    assert loads(newest)
    assert newest >= onnx.defs.onnx_opset_version() or not loads(newest + 1)


def test_every_case_is_answered(probed):
    asked = {(case.operator, case.domain, dtype) for case in CASES for dtype in case.dtypes}
    assert {(s.operator, s.domain, s.dtype) for s in probed.supports} == asked
    assert len(probed.supports) == sum(len(case.dtypes) for case in CASES)


def test_nothing_contradicts_numpy(probed):
    # A "wrong" here is a wrong reference of ours, or a defect of the runtime that passes have to know about.
    assert [support for support in probed.supports if support.status == "wrong"] == []


def test_what_every_runtime_supports(probed):
    for operator in ("MatMul", "Gemm", "Conv", "LayerNormalization"):
        assert probed.support(operator).status == "kernel", operator
        assert probed.has_kernel(operator, "float32")
    assert probed.runs("MatMulInteger", "int8")
    assert probed.runs("FusedMatMul", domain="com.microsoft")
    # No float16 arithmetic in these CPU kernels: it runs, but through casts to float32.
    assert not probed.has_kernel("Gemm", "float16") or probed.support("Gemm", "float16").status == "kernel"
    assert not probed.runs("NoSuchOperator")
    assert not probed.has_kernel("NoSuchOperator")
    assert not probed.runs("MatMul", "complex64")


def test_kernel_table_agrees_with_what_ran(probed):
    # A registered kernel of a floating-point type that is refused would make passes choose what does not load.
    for support in probed.supports:
        # Where the operator's schema refuses a type, a kernel registered for it is never reached.
        if support.status == "no" and "Type Error" not in support.reason:
            assert not probed.has_kernel(support.operator, support.dtype, support.domain), support


def test_kernel_versions(probed):
    assert probed.has_kernel("Softmax", opset=12)
    assert probed.has_kernel("Softmax", opset=13)
    assert probed.has_kernel("RMSNormalization", opset=23)
    assert not probed.has_kernel("RMSNormalization", opset=22)
    # The kernel of RoiAlign-16 stands for what opset 16 says of it, not for what opset 22 made of it.
    assert probed.has_kernel("RoiAlign", opset=21)
    assert not probed.has_kernel("RoiAlign", opset=22)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.operator)
def test_references_notice_a_wrong_input(case):
    # A reference that ignored an input would call a wrong kernel right.
    inputs = cast_inputs(case, case.dtypes[0])
    exact = {name: x.astype(np.float64) if x.dtype.kind not in "iu" else x for name, x in inputs.items()}
    expected = case.reference(*exact.values())
    assert np.isfinite(expected).all()
    for name, x in exact.items():
        # Caches that are empty and lengths that say "all of it" have no value to change.
        if x.size == 0 or name in ("seqlens_k", "total_sequence_length"):
            continue
        changed = {**exact, name: np.flip(x) + 1 if x.dtype.kind == "f" else x ^ 1}
        assert not np.allclose(case.reference(*changed.values()), expected, rtol=0.01), name


def test_planted_wrong_reference_is_reported(monkeypatch, probed):
    swapped = next(case for case in CASES if case.operator == "Gemm")
    planted = replace(swapped, reference=lambda a, b, c: a @ b - c, dtypes=("float32",))
    with Executor() as executor:
        monkeypatch.setattr(capability_cases, "CASES", (planted,))
        (support,) = capabilities._probe_cases(executor, probed)
    assert support.status == "wrong"
    assert not support.runs


def test_unknown_operator_says_why():
    case = replace(CASES[0], operator="NoSuchOperator")
    inputs = cast_inputs(case, "float32")
    with Executor() as executor, pytest.raises(ExecutionFailure, match="NoSuchOperator"):
        executor.run_once(build_model(case, inputs, 21), inputs)


def test_answers_are_cached(monkeypatch, probed):
    monkeypatch.setattr(capabilities, "_probe_cases", lambda *_: iter(probed.supports))
    first = probe()
    monkeypatch.setattr(capabilities, "Executor", None)  # any further measurement fails
    assert probe() == first
    assert newest_opset() == first.newest_opset
    with pytest.raises(TypeError):
        probe(use_cache=False)
    with pytest.raises(TypeError):
        probe(threads=2)  # another key
    monkeypatch.setattr(capabilities, "processor_model", lambda: "another processor")
    with pytest.raises(TypeError):
        probe()


DAMAGES = {
    "truncated": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "not JSON": lambda text: "capabilities",
    "another key": lambda text: json.dumps({**json.loads(text), "key": "x"}),
    "another format": lambda text: json.dumps({**json.loads(text), "format": 99}),
    "list": lambda text: "[]",
    "value of another shape": lambda text: json.dumps({**json.loads(text), "value": {"supports": 3}}),
    "value of another type": lambda text: json.dumps({**json.loads(text), "value": [1]}),
    "field missing": lambda text: json.dumps(
        {**json.loads(text), "value": {"supports": [], "kernels": [], "runtime": "x"}}
    ),
    "deeply nested": lambda text: "[" * 100_000,
    "binary": lambda text: "\udcff\udcfe",
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_probed_again(monkeypatch, probed, damage):
    monkeypatch.setattr(capabilities, "_probe_cases", lambda *_: iter(probed.supports))
    expected = probe()
    for path in cache.cache_dir().iterdir():
        path.write_text(damage(path.read_text()), errors="surrogateescape")
    assert probe() == expected
    assert newest_opset() == expected.newest_opset
    for path in cache.cache_dir().iterdir():
        json.loads(path.read_text())


def test_other_machines_cannot_be_probed():
    foreign = [name for name in known_targets() if not Target.load(name).is_host]
    for name in foreign:
        with pytest.raises(UsageError, match="another machine"):
            probe(Target.load(name))
    assert foreign


def test_cache_is_keyed_and_leaves_nothing_half_written(tmp_path):
    assert cache.cache_dir() == tmp_path / "opgraft"
    assert cache.load("things", "a") is None
    assert cache.store("things", "a", {"x": [1, None, "ü"]})
    assert cache.load("things", "a") == {"x": [1, None, "ü"]}
    assert cache.load("things", "b") is None
    assert cache.load("others", "a") is None
    assert all(path.suffix == ".json" for path in cache.cache_dir().iterdir())
    with pytest.raises(ValueError, match="cache name"):
        cache.load("../escape", "a")
    with pytest.raises(TypeError):
        cache.store("things", "a", object())
    assert cache.load("things", "a") == {"x": [1, None, "ü"]}


def test_unwritable_cache_costs_nothing_but_time(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert not cache.store("things", "a", 1)
    assert cache.load("things", "a") is None


def test_cache_folder_follows_the_specification(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for invalid in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", invalid)
        assert cache.cache_dir() == tmp_path / ".cache" / "opgraft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.store("things", "a", 1)
    (path,) = cache.cache_dir().iterdir()
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 or os.name == "nt"
