"""Hostile and damaged files through the command line: one clear line, the right exit code, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time

import hostile_models as hm
import numpy as np
import onnx
import pytest
from opgraft.backends.onnxruntime.executor import ExecutionFailure, Executor
from opgraft.cli.main import main
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import InputError
from opgraft.ir.save import save

CASES = hm.hostile_files()
MIB = 1 << 20
X = np.random.default_rng(7).standard_normal((3, 4)).astype(np.float32)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder for the model and one for temporary files, both looked into afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "models").mkdir()
    return tmp_path


def listing(folder):
    # ONNX Runtime writes the file .ses into the folder for temporary files when it is imported.
    found = [p for p in folder.rglob("*") if p.name != ".ses"]
    return sorted((str(p.relative_to(folder)), p.lstat().st_size) for p in found)


def run(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def assert_one_line(err):
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert len(err) < 2500
    assert "Traceback" not in err


def test_the_suite_is_large_and_every_file_differs():
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused(case, workplace, capsys):
    path = case.make(workplace / "models")
    before = listing(workplace)
    start = time.monotonic()
    code, out, err = run([path], capsys)
    assert time.monotonic() - start < 20
    assert_one_line(err)
    assert case.words in err
    assert code == case.code, err
    assert not out
    assert listing(workplace) == before


@pytest.mark.parametrize("command", ["inspect", "explain", "verify", "bench"])
@pytest.mark.parametrize("name", ["missing", "text", "undefined_input", "external_path_escapes"])
def test_other_commands_refuse_alike(command, name, workplace, capsys):
    case = next(case for case in CASES if case.name == name)
    path = case.make(workplace / "models")
    more = {"explain": ["eliminate-identity"], "verify": [path], "bench": [path]}.get(command, [])
    code, _, err = run([command, path, *more], capsys)
    assert_one_line(err)
    assert case.words in err
    assert code == 3


@pytest.mark.parametrize("name", ["text", "thousand_nested_ifs", "external_link_to_a_device", "a_torch_checkpoint"])
def test_a_real_process_prints_the_same_line(name, workplace):
    case = next(case for case in CASES if case.name == name)
    path = case.make(workplace / "models")
    before = listing(workplace)
    done = subprocess.run(
        [sys.executable, "-m", "opgraft.cli.main", str(path)], capture_output=True, text=True, cwd=workplace, timeout=60
    )
    assert done.returncode == case.code
    assert_one_line(done.stderr)
    assert case.words in done.stderr
    assert not done.stdout
    assert listing(workplace) == before


def test_millions_of_empty_nodes_take_little_memory(workplace):
    case = next(case for case in CASES if case.name == "millions_of_empty_nodes")
    path = case.make(workplace / "models")
    script = (
        "import sys, resource\n"
        "from opgraft.ir.capture_onnx import capture_onnx\n"
        "start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    capture_onnx(sys.argv[1])\nexcept ValueError: pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, cwd=workplace)
    # The mapped file's own pages count too.
    assert int(done.stdout) * 1024 < path.stat().st_size + 20 * MIB


# Mutations


@pytest.mark.parametrize("data", list(hm.truncations()), ids=len)
def test_truncated(data, workplace, capsys):
    path = hm.write_model(workplace / "models", data)
    code, _, err = run([path, "--no-measure"], capsys)
    assert code == 3
    assert_one_line(err)
    assert [name for name, _ in listing(workplace / "models")] == ["m.onnx"]


@pytest.fixture(scope="module")
def executor():
    with Executor(memory_limit_bytes=2 << 30, time_limit_s=20) as shared:
        yield shared


def outcome(executor, path):
    """What the runtime makes of a model: the bits of its outputs, or nothing when it refuses it."""
    try:
        outputs = executor.run_once(path, {"x": X})
    except ExecutionFailure:
        return None
    return {name: value.tobytes() for name, value in outputs.items()}


@pytest.mark.parametrize("seed", range(8))
def test_bit_flips_are_refused_or_passed_through_whole(seed, tmp_path, executor):
    n_passed = 0
    for data in hm.bit_flips(seed, 40):
        path = hm.write_model(tmp_path, data)
        try:
            program = capture_onnx(path)
        except InputError as error:
            assert_one_line(f"error: {error}\n")
            continue
        n_passed += 1
        copy = tmp_path / "copy.onnx"
        save(program, copy, force=True)
        assert outcome(executor, copy) == outcome(executor, path)
    # A flip in a weight or a name's last letter leaves a model a model.
    assert 0 < n_passed < 40


# Too new to check


def test_newer_opset_passes_unverified_and_says_so(workplace, capsys):
    path = hm.write_model(workplace / "models", hm.model(opset=99))
    code, out, err = run([path, "--no-measure"], capsys)
    assert code == 8, err
    assert "unverified" in out
    assert "99" in out
    again = onnx.load(workplace / "models" / "m.opt.onnx")
    assert again.opset_import[0].version == 99
    assert again.graph.node == onnx.load(path).graph.node


@pytest.mark.parametrize("ir_version", [14, 1 << 40])
def test_newer_ir_version_passes_unverified_and_is_kept(ir_version, workplace, capsys):
    path = hm.write_model(workplace / "models", hm.model(ir_version=ir_version))
    code, out, err = run([path, "--no-measure"], capsys)
    assert code == 8, err
    assert "newer" in out
    assert onnx.load(workplace / "models" / "m.opt.onnx").ir_version == ir_version


# Models that the runtime does not survive


def crashing():
    """A chain of 20,000 functions that call each other: the runtime's recursion overflows its stack."""
    depth = 20_000
    imports = [onnx.helper.make_opsetid("", hm.OPSET), onnx.helper.make_opsetid("test", 1)]
    functions = []
    for level in range(depth):
        op_type, domain = (f"F{level + 1}", "test") if level + 1 < depth else ("Neg", "")
        body = [hm.node(op_type, ["a"], ["b"], domain=domain)]
        functions.append(onnx.helper.make_function("test", f"F{level}", ["a"], ["b"], body, imports))
    return hm.model([hm.node("F0", ["x"], ["y"], domain="test")], functions=functions)


def growing():
    """Each round of a loop doubles a tensor."""
    return looping([hm.node("Concat", ["v", "v"], ["w"], axis=0)])


def endless():
    """A loop of 2**62 rounds."""
    return looping([hm.node("Mul", ["v", "v"], ["w"])])


def looping(nodes):
    state = [hm.value_info("i", hm.INT64, []), hm.value_info("c", hm.BOOL, []), hm.value_info("v", hm.FLOAT, None)]
    results = [hm.value_info("d", hm.BOOL, []), hm.value_info("w", hm.FLOAT, None)]
    body = onnx.helper.make_graph([hm.node("Identity", ["c"], ["d"]), *nodes], "body", state, results)
    trips = [onnx.numpy_helper.from_array(np.array(2**62), "n"), onnx.numpy_helper.from_array(np.array(True), "t")]
    return hm.model([hm.node("Loop", ["n", "t", "x"], ["y"], body=body)], initializers=trips)


@pytest.mark.parametrize(
    ("make", "words", "time_limit_s"), [(crashing, "crash", 20), (growing, "memory", 20), (endless, "time", 1)]
)
def test_models_the_runtime_does_not_survive(make, words, time_limit_s, workplace, capsys):
    path = hm.write_model(workplace / "models", make())
    before = listing(workplace)
    start = time.monotonic()
    code, _, err = run([path, "--time-limit", str(time_limit_s), "--memory-limit", "1"], capsys)
    assert time.monotonic() - start < 60
    assert code == 6
    assert_one_line(err)
    assert words in err
    assert listing(workplace) == before
