"""Verification catches every planted wrong rewrite, takes it back and names it, and accuses no right one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import pytest
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.cli.driver import Driver, Options
from opgraft.cli.prove import prove
from opgraft.ir.program import Program
from opgraft.passes._pass import PassContext
from opgraft.passes._pipeline import Pipeline
from planted import PLANTED

MODELS = Path(__file__).parent / "models"
NAMES = ("cnn", "encoder", "decoder")


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor() as shared:
        yield shared


def fires(kind: str, model: str) -> bool:
    from opgraft.ir.capture_onnx import capture_onnx

    program = capture_onnx(MODELS / f"{model}.onnx")
    return Pipeline([PLANTED[kind]()]).run(program, PassContext(program))[0].n_rewrites > 0


CASES = [(kind, model) for kind in PLANTED for model in NAMES if fires(kind, model)]


def graph_text(program: Program) -> str:
    return onnx_ir.to_proto(program.model).SerializeToString(deterministic=True).hex()


def run(model: str, pipeline: Pipeline, executor: Executor, folder: Path) -> tuple[Driver, Program]:
    options = Options(passes=pipeline, measure=False)
    driver = Driver(MODELS / f"{model}.onnx", options)
    driver._executor = executor
    driver._folder = folder
    attempt, _ = prove(driver, driver.attempt(record=True), "candidate.onnx")
    return driver, attempt.program


def test_every_kind_has_a_site() -> None:
    assert len(PLANTED) >= 20
    assert {kind for kind, _ in CASES} == set(PLANTED)


@pytest.mark.parametrize(("kind", "model"), CASES, ids=lambda part: str(part))
def test_wrong_rewrite_is_taken_back_and_named(kind: str, model: str, executor: Executor, tmp_path: Path) -> None:
    wrong = PLANTED[kind]()
    driver, program = run(model, Pipeline([wrong]), executor, tmp_path)
    assert [entry["pass"] for entry in driver.report.refuted] == [wrong.name]
    assert "rewrite" in driver.report.refuted[0]["reason"]
    assert graph_text(program) == graph_text(driver.original)


@pytest.mark.parametrize("model", NAMES)
def test_right_passes_are_not_accused(model: str, executor: Executor, tmp_path: Path) -> None:
    driver, _ = run(model, Pipeline.parse("optimize"), executor, tmp_path)
    assert driver.report.refuted == []
    assert driver.report.outcome == "verified"


@pytest.mark.parametrize("model", NAMES)
def test_only_the_wrong_pass_is_lost_among_right_ones(model: str, executor: Executor, tmp_path: Path) -> None:
    kind = {"cnn": "activation_dropped", "encoder": "mask_dropped", "decoder": "causal_mask_off_by_one"}[model]
    wrong = PLANTED[kind]()
    stages = Pipeline.parse("optimize").stages
    driver, _ = run(model, Pipeline([*stages[:2], wrong, *stages[2:]]), executor, tmp_path)
    assert {entry["pass"] for entry in driver.report.refuted} == {wrong.name}
    assert set(driver.taken_back) == {wrong.name}
