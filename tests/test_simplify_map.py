"""`docs/simplify.md` against the peers: no rule of theirs is missing, and every pass named exists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from opgraft.passes._registry import known_passes

DOCS = Path(__file__).parent.parent / "docs"
VERDICTS = ("wrong", "useless", "lowering")
RULES: dict[str, list[str]] = json.loads((DOCS / "simplify_rules.json").read_text())


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for line in (DOCS / "simplify.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and cells[0] in RULES:
            peer, rule, ours, note = cells
            yield peer, rule, ours, note


ROWS = list(_rows())


@pytest.mark.parametrize("peer", RULES)
def test_every_rule_has_one_row(peer: str) -> None:
    listed = [rule for name, rule, _, _ in ROWS if name == peer]
    assert sorted(listed) == sorted(RULES[peer])


def test_every_row_names_passes_or_gives_a_reason() -> None:
    known = set(known_passes())
    for peer, rule, ours, note in ROWS:
        if ours in VERDICTS:
            assert note, f"{peer} {rule}: {ours}, but why?"
            continue
        named = re.findall(r"`([a-z0-9-]+)`", ours)
        assert named, f"{peer} {rule}: neither a pass nor a verdict: {ours!r}"
        assert set(named) <= known, f"{peer} {rule}: no such pass: {set(named) - known}"


def test_onnxoptimizer() -> None:
    peer = pytest.importorskip("onnxoptimizer")
    assert set(peer.get_fuse_and_elimination_passes()) <= set(RULES["onnxoptimizer"])


def test_onnxsim() -> None:
    peer = pytest.importorskip("onnxsim.onnxsim_cpp2py_export")
    assert set(peer._list_optimizers()) <= set(RULES["onnxsim"])


def test_onnxslim() -> None:
    pytest.importorskip("onnxslim")
    from onnxslim.core.pattern.registry import DEFAULT_FUSION_PATTERNS

    # The package's attribute of this name is a function.
    dead = import_module("onnxslim.core.optimization.dead_node_elimination")

    assert set(DEFAULT_FUSION_PATTERNS) <= set(RULES["OnnxSlim"])
    source = Path(dead.__file__ or "").read_text()
    operators = re.findall(r'node\.op == "(\w+)"', source)
    assert len(operators) > 10
    missing = [op for op in operators if f"dead {op}" not in RULES["OnnxSlim"]]
    assert not missing


def test_onnxscript_rules() -> None:
    rewriter = pytest.importorskip("onnxscript.rewriter")
    listed = set(RULES["onnxscript"])
    rules = rewriter._DEFAULT_REWRITE_RULES
    # Rules that carry no name are known by the module attribute that holds them.
    names = {
        id(value): attribute
        for module in vars(rewriter).values()
        if getattr(module, "__name__", "").startswith("onnxscript.rewriter.rules.common.")
        for attribute, value in vars(module).items()
        if attribute.endswith("_rule")
    }
    missing = {r.name or names.get(id(r), "") for r in rules} - listed
    # `rule.commute()` makes copies, which no attribute holds; their originals are checked below.
    assert missing <= {""}, missing
    assert {n for i, n in names.items() if n in _attributes_of_unnamed(rewriter)} <= listed


def _attributes_of_unnamed(rewriter: object) -> set[str]:
    modules = (
        getattr(rewriter, n) for n in ("_no_op", "_broadcast_to_matmul", "_cast_constant_of_shape", "_collapse_slices")
    )
    return {attribute for module in modules for attribute in vars(module) if attribute.endswith("_rule")}


def test_onnxscript_folding() -> None:
    folding = pytest.importorskip("onnxscript.optimizer._constant_folding")
    operators = {operator for _, operator in folding.registry.op_evaluators}
    assert {f"fold {operator}" for operator in operators} <= set(RULES["onnxscript"])


def test_onnxscript_passes() -> None:
    optimizer = pytest.importorskip("onnxscript.optimizer._optimizer")
    passes = re.findall(r"common_passes\.(\w+Pass)\b", Path(optimizer.__file__).read_text())
    assert len(passes) > 5
    assert set(passes) <= set(RULES["onnxscript"])
