"""A sample of `make evidence-emit_architectures`, and that it finds what it looks for."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))
import evidence_emit_architectures as evidence  # noqa: E402
from emitted_modules_table import table  # noqa: E402
from opgraft.ir.emit_fx import emit_fx  # noqa: E402

pytestmark = pytest.mark.torch
NAME = "zoo_rank_mixer"


@pytest.fixture(scope="module")
def subject() -> evidence.Subject:
    return evidence.subject_of(evidence.everything()[NAME])


@pytest.fixture(scope="module")
def rows(subject: evidence.Subject) -> list[dict[str, Any]]:
    with evidence.quiet():
        made = [{"name": NAME, "cell": cell, **row} for cell, row in evidence.from_torch(subject)]
        program = subject.captured
        emitted = emit_fx(program, dtype="float64")
        found = subject.run(program, emitted)
        for cell, make in (
            ("exported", lambda: subject.exported(program, emitted)),
            ("compiled", lambda: evidence.compiled(emitted)),
        ):
            made.append({"name": NAME, "cell": cell, **evidence.same(subject, program, make, found)})
    return made


def test_a_sample(rows: list[dict[str, Any]]) -> None:
    assert [row["cell"] for row in rows] == ["torch", "file", "simplified", "exported", "compiled"]
    assert {row["outcome"] for row in rows} == {"passed"}
    assert rows[0]["names"] > 3
    assert not rows[0]["lost"]
    assert not rows[2]["lost"]


def test_a_changed_weight_and_a_lost_name_are_seen(subject: evidence.Subject) -> None:
    program = subject.captured.clone()
    name, value = next((n, v) for n, v in program.graph.initializers.items() if n in subject.double.state_dict())
    assert value.const_value is not None
    array = value.const_value.numpy()
    array = array * (1 + 1e-6 * np.random.default_rng(0).standard_normal(array.shape))
    value.const_value = onnx_ir.Tensor(array, name=name)
    emitted = emit_fx(program, dtype="float64")
    row = subject.held(subject.captured, subject.run(program, emitted), captured=True)
    assert row["outcome"] == "failed"
    assert set(row["errors"]) == {"torch", "torch, numbers in float32", "evaluator"}
    assert name in subject.names_lost(subject.captured, emitted)[1]


def test_the_table_tells_every_cell(rows: list[dict[str, Any]]) -> None:
    cells = ["torch", "file", "simplified", "exported", "compiled", "dynamo-23"]
    found = {(row["name"], row["cell"]): row for row in rows}
    found[NAME, "dynamo-23"] = {"name": NAME, "cell": "dynamo-23", "outcome": "export failed", "detail": "no operator"}
    settings = {"tolerance": 1e-10, "head_dim": 16, "backend": "eager", "n_earlier": 2}
    text = table(found, [NAME, "other"], cells, "versions", **settings)
    assert "Of earlier sources: 2 cells." in text
    assert "Not yet run: 6 cells." in text
    assert f"- {NAME}, dynamo-23: export failed: no operator" in text
    assert text.count("| **export failed** |") == 1


def test_errors_are_relative_and_shapes_count() -> None:
    one, two = torch.tensor([1.0, 4.0], dtype=torch.float64), torch.tensor([1.0, 4.5], dtype=torch.float64)
    assert evidence.relative_error([one], [two]) == 0.125
    assert evidence.relative_error([one], [one[:1]]) == np.inf
    assert evidence.relative_error([one], [one.float()]) == np.inf
    assert evidence.relative_error([one], [torch.full_like(one, np.nan)]) == np.inf
