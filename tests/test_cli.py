"""The command line: what it prints, writes and returns. Every documented exit code is met."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from opgraft.cli.main import main
from planted import PLANTED

MODELS = Path(__file__).parent / "models"
CNN, ENCODER, DECODER = (MODELS / f"{name}.onnx" for name in ("cnn", "encoder", "decoder"))


@dataclass
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Call the command line in this process, as a pipe sees it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: Any) -> Done:
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        signal.signal(signal.SIGTERM, before)
        text = capsys.readouterr()
        return Done(int(stop.value.code or 0), text.out, text.err)

    return call


def process(*arguments: Any, **environment: str) -> Done:
    """Call the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "opgraft.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONSAFEPATH": "1", **environment},
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def model_file(path: Path, text: str) -> Path:
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    return path


def small(path: Path, body: str, opset: int = 18, domain: str = "") -> Path:
    """A model of [B, 4] -> [B, 4]; two Identity nodes give the passes something to do."""
    extra = f', "{domain}": 1' if domain else ""
    return model_file(
        path,
        f'<ir_version: 8, opset_import: ["": {opset}{extra}]>\n'
        f"g (float[B, 4] x) => (float[B, 4] y) {{ a = Identity(x)\n {body} \n y = Identity(b) }}",
    )


@pytest.fixture
def tanh(tmp_path: Path) -> Path:
    return small(tmp_path / "tanh.onnx", "b = Tanh(a)")


def plant(monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    """Make a wrong pass usable by name, as one of another package is; returns its name."""
    wrong = PLANTED[kind]

    class Point:
        def load(self) -> type:
            return wrong

    name = wrong().name
    monkeypatch.setattr("opgraft.passes._registry.outside_passes", lambda: {name: Point()})
    return name


def names_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} - {"cache"}


# -- optimize ---------------------------------------------------------------------------------------------------------


def test_default_output_is_verified_and_smaller(run: Run, tanh: Path) -> None:
    done = run(tanh, "--no-measure")
    assert (done.code, done.err) == (0, "")
    assert "verified on" in done.out
    assert [n.op_type for n in onnx.load(tanh.with_name("tanh.opt.onnx")).graph.node] == ["Tanh"]
    assert names_in(tanh.parent) == {"tanh.onnx", "tanh.opt.onnx"}


def test_same_bytes_in_two_processes_with_other_hash_seeds(tmp_path: Path) -> None:
    written = []
    for seed in ("1", "2"):
        output = tmp_path / f"{seed}.onnx"
        done = process(DECODER, "-o", output, "--no-measure", "--quiet", PYTHONHASHSEED=seed)
        assert (done.code, done.out, done.err) == (0, "", "")
        written.append(output.read_bytes())
    assert written[0] == written[1]


def test_verification_does_not_change_the_bytes(run: Run, tmp_path: Path) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    run(ENCODER, "-o", one, "--no-measure", "--verify", "off", "-q")
    run(ENCODER, "-o", two, "--no-measure", "--verify", "each", "-q")
    assert one.read_bytes() == two.read_bytes()


def test_report_as_json_is_plain_json(run: Run, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = run(DECODER, "-o", tmp_path / "out.onnx", "--no-measure", "--json", "--report", report)

    def refuse(text: str) -> Any:
        raise AssertionError(f"{text} is no JSON")

    data = json.loads(done.out, parse_constant=refuse)
    assert json.loads(report.read_text(), parse_constant=refuse) == data
    assert data["outcome"] == "verified"
    assert data["bytes_after"] == (tmp_path / "out.onnx").stat().st_size
    assert data["bytes_before"] == DECODER.stat().st_size
    assert sum(data["nodes_after"].values()) < sum(data["nodes_before"].values())


def test_measured_run_reports_latency_and_footprint(run: Run, tmp_path: Path) -> None:
    done = run(ENCODER, "-o", tmp_path / "out.onnx", "--json", "--threads-unknown")
    assert done.code == 2
    done = run(ENCODER, "-o", tmp_path / "out.onnx", "--json")
    data = json.loads(done.out)
    assert {row["threads"] for row in data["latency"]} == {1, 2}
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in data["latency"])
    assert set(data["footprint"]) == {"before", "after"}
    assert all(side["load_ms"] > 0 and side["peak_bytes"] > 0 for side in data["footprint"].values())


def test_summary_fits_80_columns_without_colours(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    done = run(DECODER, "-o", tmp_path / "out.onnx", "--no-measure")
    lines = [line for line in done.out.splitlines() if str(MODELS) not in line and str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in done.out
    assert "fuse-div-mul" in done.out


def test_dry_run_writes_nothing(run: Run, tanh: Path) -> None:
    done = run(tanh, "--dry-run", "--no-measure", "--decisions", tanh.with_name("decisions.json"))
    assert done.code == 0
    assert names_in(tanh.parent) == {"tanh.onnx"}


def test_output_exists_or_is_the_input(run: Run, tanh: Path) -> None:
    original = tanh.read_bytes()
    (tanh.parent / "taken.onnx").write_text("mine")
    assert run(tanh, "-o", tanh.parent / "taken.onnx", "--no-measure").code == 4
    assert (tanh.parent / "taken.onnx").read_text() == "mine"
    link = tanh.with_name("link.onnx")
    link.symlink_to(tanh)
    for output in (tanh, link):
        assert run(tanh, "-o", output, "--force", "--no-measure").code == 4
    for option in ("--report", "--decisions"):
        path = tanh if option == "--report" else tanh.with_name("tanh.opt.onnx")
        assert run(tanh, option, path, "--no-measure", "-q", "--force").code == 4
    assert tanh.read_bytes() == original


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "abacus"], "known targets: cpu"),
        (["--passes", "eliminate-identiti"], "did you mean 'eliminate-identity'"),
        (["--passes", "eliminate-identity{fast=1}"], "has no option"),
        (["--opset", "3"], "version=3"),
        (["--stop-after", "fold-nothing"], "no stage"),
        (["--print-after", "fold-nothing"], "no stage"),
        (["--verify", "maybe"], "maybe"),
        (["--time-limit", "0"], "not positive"),
        (["--decisions", "new.json", "--verify", "off"], "nothing is decided"),
    ],
)
def test_usage_errors_name_the_known(run: Run, tanh: Path, arguments: list[str], words: str) -> None:
    done = run(tanh, *arguments, "--no-measure")
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert names_in(tanh.parent) == {"tanh.onnx"}


def test_missing_model_and_missing_package(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tmp_path / "none.onnx").code == 3
    from opgraft.ir.errors import MissingExtraError

    def missing(*_: Any, **__: Any) -> None:
        raise MissingExtraError("torch is not installed", remedy="pip install opgraft[torch]")

    monkeypatch.setattr("opgraft.cli.driver.capture", missing)
    done = run(CNN, "--no-measure")
    assert done.code == 5
    assert "pip install opgraft[torch]" in done.err


def test_a_bug_shows_its_traceback(tanh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("opgraft.cli.driver.capture", broken)
    with pytest.raises(ZeroDivisionError):
        main([str(tanh), "--no-measure"])


def test_other_opset(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    assert run(DECODER, "-o", output, "--opset", "21", "--no-measure").code == 0
    assert onnx.load(output).opset_import[0].version == 21


def test_an_opset_that_cannot_be_reached_is_told(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 11]>
    f (float[1, 4, 5, 6] x) => (float[A, B, C, D] y) { y = GlobalLpPool (x) }"""
    model, output = model_file(tmp_path / "pool.onnx", text), tmp_path / "out.onnx"
    done = run(model, "-o", output, "--opset", "22", "--no-measure")
    assert done.code == 0
    assert "the result is at opset 11, not 22" in " ".join(done.out.split())
    assert onnx.load(output).opset_import[0].version == 11
    assert "no kernel for GlobalLpPool-22" in run("explain", model, "upgrade-opset{version=22}").out


def test_a_conversion_that_rounds_is_reported_as_numeric(run: Run, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 21]> f (float[N, 6] x) => (float[N, 6] y) { [n] y = Gelu (x) }'
    model = model_file(tmp_path / "gelu.onnx", text)
    contracts = {}
    for opset in (18, 22):
        done = run(model, "-o", tmp_path / "out.onnx", "--opset", str(opset), "--no-measure", "--force", "--json")
        data = json.loads(done.out)
        assert data["outcome"] == "verified"
        contracts[opset] = [p["contract"] for p in data["passes"] if p["name"] == "upgrade-opset"], data["contract"]
    assert contracts == {18: (["numeric"], "numeric"), 22: (["exact"], "exact")}


def test_other_target_is_an_estimate(run: Run, tmp_path: Path) -> None:
    done = run(DECODER, "--target", "android-arm64", "--json", "--dry-run")
    data = json.loads(done.out)
    assert "estimated" in data["decision"]
    assert data["latency"] == []
    assert 0 < data["estimate"]["after"]["ms"] <= data["estimate"]["before"]["ms"]
    assert data["estimate"]["sizes"] == {"batch": 1, "length": 128}


def test_print_dump_and_stop(run: Run, tanh: Path, tmp_path: Path) -> None:
    done = run(tanh, "--print-after", "eliminate-identity", "--dump", tmp_path / "dump", "--no-measure", "--dry-run")
    assert "# before" in done.err
    assert done.err.count("# after") == 1
    assert "00-input.onnx.txt" in names_in(tmp_path / "dump")
    done = run(DECODER, "--stop-after", "eliminate-dead-code", "--passes", "eliminate-dead-code, fuse-div-mul",
               "--json", "--dry-run", "--no-measure")  # fmt: skip
    assert [p["name"] for p in json.loads(done.out)["passes"]] == ["eliminate-dead-code"]


# -- refuted and unverified -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verify", ["final", "each"])
def test_wrong_rewrite_gives_code_7_and_a_reproducer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    name = plant(monkeypatch, "activation_dropped")
    output = tmp_path / "out.onnx"
    done = run(CNN, "-o", output, "--passes", f"simplify, {name}", "--no-measure", "--verify", verify, "--json")
    assert done.code == 7
    data = json.loads(done.out)
    assert data["outcome"] == "verified"
    assert [entry["pass"] for entry in data["refuted"]] == [name]
    files = data["refuted"][0]["reproducer"]
    assert set(files) == {"before", "after", "inputs"}
    assert Path(files["before"]).parent == tmp_path / "out.refuted" / name
    assert run("verify", files["before"], files["after"], "--inputs", files["inputs"]).code == 7
    assert run("verify", CNN, output, "--contract", "exact").code == 0


def test_dry_run_writes_no_reproducer(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = plant(monkeypatch, "activation_dropped")
    done = run(CNN, "-o", tmp_path / "out.onnx", "--passes", name, "--no-measure", "--dry-run")
    assert done.code == 7
    assert f"taken back: {name}" in done.out
    assert names_in(tmp_path) == set()


def test_custom_operator_passes_with_local_evidence(run: Run, tmp_path: Path) -> None:
    model = small(tmp_path / "custom.onnx", "c = Tanh(a)\n b = acme.Whirl(c)", domain="acme")
    done = run(model, "--no-measure")
    assert done.code == 8
    assert "unverified" in done.out
    assert "Whirl" in done.out
    written = onnx.load(tmp_path / "custom.opt.onnx")
    assert "Whirl" in [n.op_type for n in written.graph.node]
    assert run(model, "--no-measure", "--allow-unverified", "--force").code == 0


def test_locally_proven_rewrites_around_a_custom_operator_are_kept(run: Run, tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 18, "acme": 1]>
    g (float[B, 4] x) => (float[B, 4] y) {
        r = Relu(x)
        p = Transpose<perm = [1, 0]>(r)
        q = Transpose<perm = [1, 0]>(p)
        y = acme.Whirl(q)
    }"""
    model = tmp_path / "custom.onnx"
    model.write_bytes(onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text)).SerializeToString())
    done = run(model, "--json")
    data = json.loads(done.out)
    assert (done.code, data["outcome"]) == (8, "unverified")
    assert "local evidence only" in data["outcome_reason"]
    assert data["evidence"]["regions"] == {"compose-transposes": 1}
    assert [n.op_type for n in onnx.load(tmp_path / "custom.opt.onnx").graph.node] == ["Relu", "Whirl"]


def test_unproven_rewrites_of_an_unverifiable_model_are_not_kept(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small(tmp_path / "custom.onnx", "c = Relu(a)\n b = acme.Whirl(c)", domain="acme")
    done = run(model, "--no-measure", "--passes", plant(monkeypatch, "activation_dropped"))
    assert done.code == 8
    written = onnx.load(tmp_path / "custom.opt.onnx")
    assert [n.op_type for n in written.graph.node] == [n.op_type for n in onnx.load(model).graph.node]


def test_opset_of_the_future_passes_through_unchanged(run: Run, tmp_path: Path) -> None:
    future = onnx.defs.onnx_opset_version() + 1
    model = small(tmp_path / "future.onnx", "b = Tanh(a)", opset=future)
    for options in ([], ["--verify", "off"]):
        done = run(model, "--no-measure", "--force", *options)
        assert done.code == (0 if options else 8)
        assert f"operator set {future} is newer" in done.out
        written = onnx.load(tmp_path / "future.opt.onnx")
        assert [n.op_type for n in written.graph.node] == ["Identity", "Tanh", "Identity"]


def test_random_operators_cannot_be_verified(run: Run, tmp_path: Path) -> None:
    model = small(tmp_path / "random.onnx", "r = RandomNormalLike(a)\n b = Add(a, r)")
    done = run(model, "--no-measure")
    assert done.code == 8
    assert "random operators" in done.out
    assert "RandomNormalLike" in [n.op_type for n in onnx.load(tmp_path / "random.opt.onnx").graph.node]


def test_runtime_that_rejects_the_model(run: Run, tmp_path: Path) -> None:
    """A Reshape that never fits: valid to the checker, impossible to run."""
    model = small(tmp_path / "broken.onnx", "s = Constant<value_ints = [7, 3]>()\n b = Reshape(a, s)")
    assert run(model, "--no-measure").code == 8
    assert (tmp_path / "broken.opt.onnx").exists()
    assert run("verify", model, model).code == 8
    assert run("bench", model, model, "--pairs", "6").code == 6


# -- decisions --------------------------------------------------------------------------------------------------------


def test_decisions_replay_to_the_same_bytes_and_refuse_others(run: Run, tmp_path: Path) -> None:
    decisions = tmp_path / "decisions.json"
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert run(DECODER, "-o", one, "--no-measure", "--decisions", decisions, "-q").code == 0
    written = json.loads(decisions.read_text())
    assert written["taken_back"] == {}
    # What a measurement would have decided:
    decisions.write_text(json.dumps({**written, "taken_back": {"fuse-div-mul": "slower"}}))
    for output in (one, two):
        done = run(DECODER, "-o", output, "--decisions", decisions, "--force", "--json")
        data = json.loads(done.out)
        assert (done.code, data["decision"], data["latency"]) == (0, "replayed", [])
        assert "Reciprocal" in data["nodes_after"]
    assert one.read_bytes() == two.read_bytes()
    for other in ([ENCODER], [DECODER, "--target", "cuda"], [DECODER, "--passes", "eliminate-dead-code"],
                  [DECODER, "--opset", "21"]):  # fmt: skip
        done = run(*other, "-o", one, "--force", "--decisions", decisions)
        assert done.code == 2
        assert "belongs to" in done.err
    decisions.write_text("{}")
    assert run(DECODER, "-o", one, "--force", "--decisions", decisions).code == 3


# -- given inputs -----------------------------------------------------------------------------------------------------


def test_given_inputs_are_used(run: Run, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, image=np.ones((2, 3, 16, 16), np.float32))
    done = run(CNN, "--inputs", inputs, "--no-measure", "--dry-run", "--json")
    assert json.loads(done.out)["evidence"]["cases"][0] == "given 1"


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"image": np.ones((2, 3, 16, 16))}, "float64"),
        ({"image": np.ones((2, 3, 16), np.float32)}, "shape"),
        ({"image": np.ones((2, 3, 16, 17), np.float32)}, "shape"),
        ({"picture": np.ones(1)}, "'picture'"),
        ({}, "'image' is missing"),
        ({"image": np.array([{}], dtype=object)}, "objects"),
    ],
)
def test_given_inputs_that_do_not_fit(run: Run, tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, **arrays)
    done = run(CNN, "--inputs", inputs, "--dry-run")
    assert done.code == 3
    assert words in done.err


def test_given_inputs_that_are_no_archive(run: Run, tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.npz"
    inputs.write_bytes(b"PK\x03\x04 and then nothing")
    assert run(CNN, "--inputs", inputs, "--dry-run").code == 3
    assert run(CNN, "--inputs", tmp_path / "none.npz", "--dry-run").code == 3


# -- the other subcommands --------------------------------------------------------------------------------------------


def test_verify_tells_models_apart(run: Run, tanh: Path, tmp_path: Path) -> None:
    other = small(tmp_path / "other.onnx", "b = Sigmoid(a)")
    assert run("verify", tanh, tanh, "--contract", "exact").code == 0
    done = run("verify", tanh, other, "--json")
    assert done.code == 7
    assert json.loads(done.out)["outcome"] == "refuted"


def test_bench_reports_both(run: Run, tanh: Path) -> None:
    done = run("bench", tanh, tanh, "--pairs", "6", "--threads", "1", "--json")
    data = json.loads(done.out)
    assert done.code == 0
    assert [row["threads"] for row in data["latency"]] == [1]
    assert data["latency"][0]["before_ms"] > 0


def test_inspect_counts(run: Run) -> None:
    data = json.loads(run("inspect", CNN, "--json", "--dim", "batch=2", "--target", "cuda").out)
    proto = onnx.load(CNN)
    assert data["n_nodes"] == len(proto.graph.node)
    assert data["inputs"][0]["name"] == "image"
    assert data["weight_bytes"] == sum(onnx.numpy_helper.to_array(t).nbytes for t in proto.graph.initializer)
    assert "roofline on cuda" in data["cost"][-1]
    assert run("inspect", CNN, "--dim", "batch").code == 2


def test_explain_says_why_not(run: Run, tmp_path: Path) -> None:
    done = run("explain", DECODER, "fuse-div-mul")
    assert done.code == 0
    assert "fuse-div-mul: 5 rewrites" in done.out
    done = run("explain", DECODER, "eliminate-nop-reshape")
    assert "no match" in done.out
    assert run("explain", DECODER, "no-such-pass").code == 2


def test_listings(run: Run) -> None:
    passes = json.loads(run("passes", "--json").out)
    assert {"fuse-div-mul", "eliminate-dead-code"} <= {p["name"] for p in passes["passes"]}
    assert all(p["equation"] and p["contract"] in ("exact", "numeric") for p in passes["passes"])
    assert "simplify" in run("passes").out
    assert "cuda" in run("targets").out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert done.code == 0
    assert "_OPTIMIZE_COMPLETE" in done.out
    assert "_OPGRAFT_COMPLETE" in run("completion", shell, "--command", "opgraft").out


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("optimize ver", "plain,verify"),
        ("optimize mod", "file,mod"),
        ("optimize m.onnx --no-mea", "plain,--no-measure"),
    ],
)
def test_completion_completes(words: str, wanted: str) -> None:
    count = str(len(words.split()) - 1)
    program = "from opgraft.cli.main import cli; cli.main(prog_name='optimize')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONSAFEPATH": "1", "_OPTIMIZE_COMPLETE": "bash_complete", "COMP_WORDS": words,
             "COMP_CWORD": count},
    )  # fmt: skip
    assert wanted in done.stdout.splitlines()


def test_version_and_help(run: Run) -> None:
    from opgraft import __version__

    assert run("--version").out.strip() == f"opgraft {__version__}"
    for command in ("", "optimize", "inspect", "explain", "verify", "bench", "passes", "targets", "completion"):
        done = run(*([command] if command else []), "--help")
        assert done.code == 0
        assert "Usage:" in done.out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_runs_leave_nothing_behind(tmp_path: Path, number: int, code: int) -> None:
    output = tmp_path / "out.onnx"
    child = subprocess.Popen(
        [sys.executable, "-m", "opgraft.cli.main", str(DECODER), "-o", str(output), "-q"],
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        stderr=subprocess.PIPE,
        # A shell's background job ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    # The temporary folder is the sign that the work is under way.
    while not list(tmp_path.glob(".opgraft-*")) and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(number)
    assert child.wait(60) == code
    assert list(tmp_path.iterdir()) == []
