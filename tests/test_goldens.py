"""Every pass by its goldens: the text it makes, and the numbers of both sides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from opgraft.passes._pass import Contract
from opgraft.passes._registry import builtin_modules, pass_class
from opgraft.passes._worklist import NodePass

sys.path.insert(0, str(Path(__file__).parent))
from golden import Golden, apply_pass, differences, print_model, read_goldens, write_goldens

FOLDER = Path(__file__).parent / "goldens"
FILES = sorted(FOLDER.glob("*.txt"))


def _parameters() -> list[object]:
    goldens = [golden for file in FILES for golden in read_goldens(file)]
    return [pytest.param(golden, id=golden.label) for golden in goldens]


@pytest.mark.parametrize("golden", _parameters())
def test_golden(golden: Golden, request: pytest.FixtureRequest) -> None:
    name = f"tests/test_goldens.py::test_golden[{golden.label}]"
    again = f"\nagain: pytest '{name}'   (--update-goldens accepts the text)"
    result = apply_pass(golden)
    if golden.kind == "near miss":
        assert not result.context.rewrites, f"the pass rewrote {result.context.rewrites[0].site}{again}"
        assert result.text == print_model(result.before, result.drawn), f"the pass changed the graph{again}"
        misses = [str(m) for m in result.context.near_misses.get(golden.pass_name, [])]
        assert misses or not issubclass(pass_class(golden.pass_name), NodePass), f"the pass gives no reason{again}"
        expected = golden.sections.get("reason", "")
        assert not expected or any(expected in m for m in misses), f"no reason says {expected!r}: {misses}{again}"
        return
    assert result.context.rewrites, f"the pass did nothing: {result.context.near_misses}{again}"
    if request.config.getoption("--update-goldens"):
        _update(golden, result.text)
    else:
        assert result.text == golden.sections.get("after", ""), f"another text{again}"
    kept = {r.contract for r in result.context.rewrites}
    wrong = differences(golden, Contract.EXACT if kept == {Contract.EXACT} else pass_class(golden.pass_name).contract)
    assert not wrong, f"{len(wrong)} differences: {wrong[0]}{again}"


def _update(golden: Golden, text: str) -> None:
    goldens = read_goldens(golden.file)
    for other in goldens:
        if (other.kind, other.name, other.options) == (golden.kind, golden.name, golden.options):
            other.sections["after"] = text
    write_goldens(golden.file, goldens)


@pytest.mark.parametrize("name", sorted(builtin_modules()))
def test_every_pass_has_a_case_and_a_near_miss(name: str) -> None:
    file = FOLDER / f"{name}.txt"
    assert file.exists(), f"write tests/goldens/{name}.txt; the format is described in tests/golden.py"
    kinds = [golden.kind for golden in read_goldens(file)]
    assert {"case", "near miss"} <= set(kinds), f"{file.name} needs a case and a near miss, has {kinds}"


def test_goldens_belong_to_passes() -> None:
    assert {file.stem for file in FILES} <= set(builtin_modules())


def test_a_wrong_rewrite_fails(tmp_path: Path) -> None:
    """The runner itself: a pass that breaks its contract is caught by the numbers, not by the text."""
    file = tmp_path / "eliminate-identity.txt"
    file.write_text(_PLANTED)
    golden = read_goldens(file)[0]
    assert not differences(golden, Contract.EXACT)
    cls = pass_class("eliminate-identity")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "roots", ("Abs",))
        assert differences(golden, Contract.EXACT)
        assert differences(golden, Contract.NUMERIC)


_PLANTED = """=== case: planted
--- before
<ir_version: 10, opset_import: ["" : 21]> f (float[N] x) => (float[N] y) { a = Abs(x) b = Identity(a) y = Neg(b) }
"""
