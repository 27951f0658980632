"""The path of one model through the driver: what is kept, what is taken back, what is not even started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
from opgraft.backends.measure import PairedRatio
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.cli.driver import Driver, Options, optimize
from opgraft.cli.given_inputs import read_inputs
from opgraft.cli.prove import prove
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import InputError, OutputError, UsageError
from opgraft.ir.program import Program
from opgraft.passes._pass import Contract, Pass, PassContext
from opgraft.passes._pipeline import Instrument, Pipeline
from planted import PLANTED

MODELS = Path(__file__).parent / "models"
CNN, ENCODER, DECODER = (MODELS / f"{name}.onnx" for name in ("cnn", "encoder", "decoder"))


def model_bytes(program: Program) -> bytes:
    return onnx_ir.to_proto(program.model).SerializeToString(deterministic=True)


def stages(text: str) -> list[Any]:
    return Pipeline.parse(text).stages


# -- where nothing runs -----------------------------------------------------------------------------------------------


def test_rewriting_alone_starts_no_child_and_captures_once(tmp_path: Path) -> None:
    """The modules that a rewrite-only run imports say what it did not do."""
    code = f"""
import sys
from opgraft.ir import capture_onnx as module
real, calls = module.capture_onnx, []
module.capture_onnx = lambda *a, **k: calls.append(a) or real(*a, **k)
from opgraft.cli.main import main
try: main([{str(ENCODER)!r}, '-o', {str(tmp_path / "out.onnx")!r}, '--verify', 'off', '--no-measure', '-q'])
except SystemExit as stop: print(stop.code)
print(len(calls))
print(' '.join(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    status, n_captures, modules = done.stdout.splitlines()
    assert (status, n_captures) == ("0", "1")
    unwanted = {"onnxruntime", "rich", "torch", "tvm", "networkx", "onnxscript", "opgraft.cli.prove",
                "opgraft.cli.decisions", "opgraft.backends.onnxruntime.executor", "opgraft.ir.verify",
                "opgraft.ir.cost"}  # fmt: skip
    assert not unwanted & set(modules.split())


def test_a_given_program_is_never_rewritten() -> None:
    program = capture_onnx(DECODER)
    before = model_bytes(program)
    for verify in ("off", "final"):
        result = optimize(program, options=Options(verify=verify, measure=False))
        assert model_bytes(program) == before
        assert sum(result.report.nodes_after.values()) < sum(result.report.nodes_before.values())


# -- evidence per stage and guilt -------------------------------------------------------------------------------------


def run_wrong(kind: str, model: Path, verify: str, tmp_path: Path) -> Driver:
    right = stages("optimize")
    pipeline = Pipeline([*right[:1], PLANTED[kind](), *right[1:]])
    driver = Driver(model, Options(passes=pipeline, measure=False, verify=verify))
    driver.reproducer_folder = tmp_path / "refuted"
    with driver:
        prove(driver, driver.attempt(record=True), "candidate.onnx")
    return driver


def hide_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without local evidence the stages and the bisection have to find the guilty."""
    monkeypatch.setattr("opgraft.cli.prove._check_regions", lambda driver, attempt: None)


@pytest.mark.parametrize("verify", ["final", "each"])
def test_broken_stage_and_rewrite_are_named(verify: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_regions(monkeypatch)
    driver = run_wrong("attention_scaled_by_eleven_tenths", ENCODER, verify, tmp_path)
    (entry,) = driver.report.refuted
    assert entry["stage"] == entry["pass"]
    assert entry["reason"].startswith("rewrite ")
    before, after = Path(entry["reproducer"]["before"]), Path(entry["reproducer"]["after"])
    arrays = read_inputs(Path(entry["reproducer"]["inputs"]))
    with Executor() as executor:
        one, two = executor.run_once(before, arrays), executor.run_once(after, arrays)
    assert any(not np.allclose(one[name], two[name], rtol=1e-3, atol=1e-5, equal_nan=True) for name in one)
    if verify == "each":
        outcomes = {row["stage"]: row["outcome"] for row in driver.report.evidence["stages"]}
        assert set(outcomes.values()) == {"verified"}


def test_region_of_a_reproducer_is_small(tmp_path: Path) -> None:
    driver = run_wrong("activation_dropped", CNN, "final", tmp_path)
    (entry,) = driver.report.refuted
    n_nodes = len(onnx.load(entry["reproducer"]["before"]).graph.node)
    assert n_nodes < len(onnx.load(CNN).graph.node) / 2


def test_second_reproducer_gets_a_number(tmp_path: Path) -> None:
    folders = set()
    for _ in range(2):
        (entry,) = run_wrong("activation_dropped", CNN, "final", tmp_path).report.refuted
        folders.add(Path(entry["reproducer"]["before"]).parent.name)
    assert folders == {"activation-dropped", "activation-dropped-2"}


def test_exact_stage_must_keep_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that says EXACT and rounds otherwise is within the tolerance of NUMERIC, and still refuted."""

    @dataclass(frozen=True)
    class ReciprocalTwice(Pass):
        """Div(x, c) -> Div(x, c) with other bits"""

        contract: ClassVar[Contract] = Contract.EXACT

        def run(self, program: Program, context: PassContext) -> int:
            node = next((n for n in program.graph if n.op_type == "Tanh" and "done" not in n.meta), None)
            if node is None or not context.allows(self.name):
                return 0
            node.meta["done"] = True
            up = onnx_ir.tensor(np.float32(3.0), name="three")
            three = onnx_ir.Value(name="three", const_value=up, type=onnx_ir.TensorType(up.dtype), shape=up.shape)
            program.graph.initializers["three"] = three
            scaled = onnx_ir.node("Mul", [node.inputs[0], three])
            back = onnx_ir.node("Div", [scaled.outputs[0], three])
            program.graph.insert_before(node, [scaled, back])
            node.replace_input_with(0, back.outputs[0])
            context.applied(self, "Tanh")
            return 1

    path = tmp_path / "tanh.onnx"
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[B, 64] x) => (float[B, 64] y) { a = Neg(x) y = Tanh(a) }'
    path.write_bytes(onnx.parser.parse_model(text).SerializeToString())
    result = optimize(path, options=Options(passes=Pipeline([ReciprocalTwice()]), measure=False, verify="each"))
    (entry,) = result.report.refuted
    assert (entry["pass"], entry["stage"]) == ("reciprocal-twice", "reciprocal-twice")
    assert result.report.outcome == "verified"
    assert [n.op_type for n in result.program.graph] == ["Neg", "Tanh"]


def test_original_that_disagrees_with_itself_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training-mode Dropout draws anew in each session."""
    path = tmp_path / "dropout.onnx"
    path.write_bytes(
        onnx.parser.parse_model(
            '<ir_version: 8, opset_import: ["": 18]> g (float[B, 64] x) => (float[B, 64] y) {\n'
            "r = Constant<value_float = 0.5>() t = Constant<value = bool {1}>() i = Identity(x)\n"
            "y = Dropout(i, r, t) }"
        ).SerializeToString()
    )
    result = optimize(path, options=Options(measure=False))
    assert result.report.refuted == []
    assert result.report.outcome == "unverified"


# -- never slower -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FakeComparison:
    """A measurement with a known answer."""

    ratio: PairedRatio
    threads: int = 1
    clock: str = "cpu"
    baseline_ms: float = 1.0
    candidate_ms: float = 1.0
    self_ratio: PairedRatio = field(default_factory=lambda: PairedRatio(1.0, 0.99, 1.01, 25))
    noisy: bool = False

    @property
    def is_slower(self) -> bool:
        return self.ratio.is_slower

    @property
    def is_faster(self) -> bool:
        return self.ratio.is_faster


def test_slow_rewrites_are_taken_back_and_replayed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def compare(executor: Any, baseline: Any, candidate: Path, inputs: Any, **_: Any) -> FakeComparison:
        n_nodes = len(onnx.load(candidate).graph.node)
        slow = n_nodes < len(onnx.load(DECODER).graph.node)
        return FakeComparison(PairedRatio(1.2, 1.1, 1.3, 25) if slow else PairedRatio(1.0, 0.99, 1.01, 25))

    monkeypatch.setattr("opgraft.backends.onnxruntime.timing.compare_latency", compare)
    result = optimize(DECODER, tmp_path / "out.onnx")
    assert result.report.decision == "input kept: every rewrite was slower"
    assert result.report.outcome == "verified"
    assert result.decisions is not None
    assert "fuse-div-mul" in result.decisions.taken_back
    assert result.report.nodes_after == result.report.nodes_before
    again = optimize(DECODER, tmp_path / "again.onnx", options=Options(decisions=result.decisions))
    assert again.report.decision == "replayed"
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()


def test_one_slow_measurement_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compare(*_: Any, pairs: int, threads: int, **__: Any) -> FakeComparison:
        calls.append((pairs, threads))
        first = len(calls) == 1
        return FakeComparison(PairedRatio(1.02, 1.001, 1.05, 25) if first else PairedRatio(1.0, 0.99, 1.01, 75))

    monkeypatch.setattr("opgraft.backends.onnxruntime.timing.compare_latency", compare)
    result = optimize(DECODER, options=Options(threads=(1,)))
    assert result.report.decision == "kept: not slower"
    assert result.decisions is not None
    assert result.decisions.taken_back == {}
    assert [threads for _, threads in calls] == [1, 1]


# -- bookkeeping ------------------------------------------------------------------------------------------------------


def test_instruments_see_one_run_only() -> None:
    @dataclass
    class Count(Instrument):
        n_stages: int = 0

        def before_stage(self, *_: Any) -> None:
            self.n_stages += 1

    count = Count()
    optimize(CNN, options=Options(measure=False, verify="each", instruments=[count]))
    assert count.n_stages == len(stages("optimize"))


def test_instrument_that_stops_stops_every_attempt() -> None:
    class StopAtOnce(Instrument):
        def after_stage(self, *_: Any) -> bool:
            return True

    options = Options(measure=False, passes="eliminate-dead-code, fuse-div-mul", instruments=[StopAtOnce()])
    driver = Driver(DECODER, options)
    assert [len(driver.attempt().stages) for _ in range(2)] == [1, 1]
    assert driver.attempt().fired == set()


def test_sizes_count_external_data(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(onnx.load(CNN), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    for verify in ("off", "final"):
        output = tmp_path / f"{verify}.onnx"
        report = optimize(path, output, options=Options(measure=False, verify=verify)).report
        assert report.bytes_before == path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
        data = output.with_name(output.name + ".data")
        assert report.bytes_after == output.stat().st_size + (data.stat().st_size if data.exists() else 0)
    with pytest.raises(OutputError, match="weights"):
        optimize(path, tmp_path / "weights.bin", options=Options(measure=False, force=True))
    assert not list(tmp_path.glob(".opgraft-*"))


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="known: passes"):
        Options.of(colour="blue")
    with pytest.raises(UsageError):
        Options(verify="sometimes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cpu"):
        Driver(CNN, Options(target="abacus"))
    with pytest.raises(InputError, match="image"):
        Driver(CNN, Options(inputs=[{"other": np.ones(1)}]))


def test_report_numbers_beyond_json_are_text() -> None:
    from opgraft.cli.report import Report

    data = Report("x", evidence={"max_abs_error": float("inf"), "errors": (float("nan"), 1.0)}).to_json()
    assert json.loads(json.dumps(data, allow_nan=False))["evidence"] == {"max_abs_error": "inf", "errors": ["nan", 1.0]}


# -- what end-to-end verification can see -----------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "hidden"), [("1.0", []), ("0.0000001", ["fuse-div-mul"])])
def test_rewrites_that_no_output_shows_are_named(tmp_path: Path, scale: str, hidden: list[str]) -> None:
    path = tmp_path / "model.onnx"
    text = f"""<ir_version: 8, opset_import: ["": 18]>
    g (float[B, 8] x) => (float[B, 8] y) {{
        one = Constant<value_float = 1.0>()
        e = Exp(x)
        r = Div(one, e)
        m = Mul(x, r)
        c = Constant<value_float = {scale}>()
        s = Mul(m, c)
        y = Sub(x, s)
    }}"""
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    path.write_bytes(model.SerializeToString())
    report = optimize(path, options=Options(passes="fuse-div-mul", measure=False)).report
    assert report.outcome == "verified"
    assert {p.name: p.n_rewrites for p in report.passes} == {"fuse-div-mul": 1}
    assert report.evidence["not_observable"] == hidden
