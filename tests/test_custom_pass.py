"""The example of a pass in a package of its own: found by name, checked by its golden, used without the CLI."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx.parser
import opgraft
import pytest
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.passes import _registry

sys.path.insert(0, str(Path(__file__).parent))
from golden import apply_pass, differences, read_goldens, write_goldens

FOLDER = Path(__file__).parent.parent / "examples" / "custom_pass"
GOLDENS = read_goldens(FOLDER / "replace-square.txt")


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What an installation would put into site-packages: the metadata made from the example's own pyproject.toml."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    points = [
        f"[{group}]\n" + "\n".join(f"{name} = {target}" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(points) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(FOLDER))
    _registry.outside_passes.cache_clear()
    yield
    _registry.outside_passes.cache_clear()
    sys.modules.pop("opgraft_replace_square", None)


@pytest.mark.usefixtures("_installed")
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_golden(golden: object, request: pytest.FixtureRequest) -> None:
    result = apply_pass(golden)
    if golden.kind == "near miss":
        assert not result.context.rewrites
        assert any(golden.sections["reason"] in str(m) for m in result.context.near_misses["replace-square"])
        return
    if request.config.getoption("--update-goldens"):
        golden.sections["after"] = result.text
        write_goldens(golden.file, GOLDENS)
    assert result.context.rewrites
    assert result.text == golden.sections["after"]
    assert not differences(golden, _registry.pass_class("replace-square").contract)


@pytest.mark.usefixtures("_installed")
def test_it_is_listed_and_runs_by_name() -> None:
    assert "replace-square" in _registry.known_passes()
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> f (float[N] x) => (float[N] y) <float two = {2}> { y = Pow(x, two) }'
    )
    program = capture_onnx(model)
    pipeline = opgraft.Pipeline.parse("replace-square")
    results = pipeline.run(program)
    assert [(r.name, r.n_rewrites) for r in results] == [("replace-square", 1)]
    assert [node.op_type for node in program.graph] == ["Mul"]
    assert "two" not in program.graph.initializers


def test_without_installation_it_is_unknown() -> None:
    _registry.outside_passes.cache_clear()
    with pytest.raises(opgraft.UsageError, match="no pass is named 'replace-square'"):
        opgraft.Pipeline.parse("replace-square")


def test_the_example_is_small() -> None:
    """One file and one golden; what it takes to add a pass must not grow."""
    lines = (FOLDER / "opgraft_replace_square.py").read_text().splitlines()
    assert len(lines) <= 45
    assert np.all([len(line) <= 120 for line in lines])
