"""`optimize inspect`: blocks, roles, the drawing, the check."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from opgraft.cli.main import cli
from test_sites import ATTENTION, CONSTANTS, HEAD, REST


@pytest.fixture
def model(tmp_path: Path) -> Path:
    body = f"{ATTENTION} m = Identity (s) {REST} z = Add (x, y)"
    text = f"f (float[B,T,16] x) => (float[B,T,16] z) <{CONSTANTS}> {{ {body} }}"
    proto = onnx.parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name in ("wq", "wk", "wv", "wo"):
        array = rng.standard_normal((16, 16)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    return path


def run(*words: object) -> str:
    result = CliRunner().invoke(cli, ["inspect", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_blocks_are_listed(model: Path) -> None:
    text = run(model)
    assert "attention  4 heads x 4" in text
    assert "[batch B, token T, channel 16]" in text
    assert "dims with a role:" in text


def test_data(model: Path) -> None:
    data = json.loads(run(model, "--json", "--check"))
    (attention,) = data["sites"]["attention"]
    assert (attention["heads"], attention["kv_heads"], attention["mask"], attention["rotary"]) == (4, 4, [], False)
    assert data["sites"]["roles"]["p"] == ["batch", "head", "token-as-query", "token-as-key"]
    assert data["check"]["interventions"] > 0
    assert data["check"]["wrong"] == []


def test_the_cost_holds_what_the_file_does_not_record(model: Path) -> None:
    """Two products of 4 heads x 4 over T x T scores, 2 operations each; the rest of attention comes on top."""
    lines = json.loads(run(model, "--json"))["cost"]
    found = re.match(r"FLOPs (\d+)\*B\*T\*\*2 ", lines[0])
    assert found is not None, lines[0]
    assert 64 < int(found[1]) < 128
    assert not [line for line in lines if "unknown cost" in line]


def test_the_drawing_is_a_picture(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "blocks.svg"
    run(model, "--svg", path)
    root = ElementTree.fromstring(path.read_text())
    words = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "attention" in words
    assert "4 heads x 4" in words


def test_a_drawing_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "blocks.svg"
    path.write_text("mine")
    result = CliRunner().invoke(cli, ["inspect", str(model), "--svg", str(path)])
    assert result.exit_code != 0
    assert path.read_text() == "mine"
    run(model, "--svg", path, "--force")
    assert path.read_text() != "mine"
