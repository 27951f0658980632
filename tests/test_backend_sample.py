"""A sample of the ONNX backend tests in five forms through the lossless pipeline, and what the harness can see.

All of them: `make evidence-backend`.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import parser
from opgraft.passes._pass import Contract, NoMatch
from opgraft.passes._registry import pass_class

sys.path.insert(0, str(Path(__file__).parent))
import backend_forms
import backend_harness
from backend_forms import FORMS, Case, load_cases
from backend_harness import FAILED, PASSED, Harness

SEED = 20
SAMPLE_SIZE = 170
"""Of which the runtime passes about four in five."""


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as opened, warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield opened


@pytest.fixture(scope="module")
def cases(harness: Harness) -> list[Case]:
    sample = random.Random(SEED).sample(load_cases(light=False), SAMPLE_SIZE)
    return [case for case in sample if harness.passes(case)]


@pytest.mark.parametrize("form", FORMS)
def test_sample(form: str, harness: Harness, cases: list[Case]) -> None:
    rows = [harness.examine(case, form) for case in cases]
    failures = [f"{row['test']}: {row['detail']}" for row in rows if row["outcome"] == FAILED]
    assert not failures, "\n".join(failures)
    outcomes = Counter(row["outcome"] for row in rows)
    assert sum(outcomes[o] for o in PASSED) > 0.9 * len(cases) > 100, outcomes
    assert sum(bool(row.get("changed")) for row in rows) > 5


# -- the forms are what they say ---------------------------------------------------------------------------------------


def _case() -> Case:
    model = parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]> f (float[2, 3] x, float[3] w) => (float[2, 3] y)
        <float[3] b = {1.0, 2.0, 3.0}> {
            scaled = Mul(x, w)
            h = Constant <value = float {0.5}> ()
            halved = Mul(scaled, h)
            shifted = Add(halved, b)
            y = LeakyRelu <alpha = 0.25> (shifted)
        }""")
    x, w = np.arange(-3, 3, dtype=np.float32).reshape(2, 3), np.array([1, -2, 4], np.float32)
    shifted = x * w * np.float32(0.5) + np.array([1, 2, 3], np.float32)
    expected = np.where(shifted < 0, shifted * np.float32(0.25), shifted)
    return Case("example", "node", model, [{"x": x, "w": w}], [expected])


def _variant(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(Case, "variant", lambda self, count, salt="": number % count)


def _operators(graph: onnx.GraphProto) -> list[str]:
    return [node.op_type for node in graph.node]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", range(4))
def test_every_variant_computes_the_case(
    form: str, number: int, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    _variant(monkeypatch, number)
    case = _case()
    onnx.checker.check_model(FORMS[form](case).model, full_check=True)
    row = harness.examine(case, form)
    assert row["outcome"] in PASSED, row


def test_a_wrong_form_is_no_evidence(harness: Harness) -> None:
    case = _case()
    case.expected = [case.expected[0] + 1]
    assert "the form itself is wrong" in harness.examine(case, "doubled")["detail"]


def test_initializers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = backend_forms.with_initializers(_case()).model
    assert not model.graph.input
    assert {t.name for t in model.graph.initializer} == {"x", "w", "b"}


def test_doubled_shares_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    for own_data in (0, 1):
        _variant(monkeypatch, own_data)
        graph = backend_forms.doubled(_case()).model.graph
        operators = Counter(_operators(graph))
        assert operators == {"Mul": 4, "Add": 2, "LeakyRelu": 2, "Constant": 1, "Unsqueeze": 2}
        assert [v.name for v in graph.input] == (["x", "form_second_x"] if own_data else ["x"])
        users = Counter(name for node in graph.node for name in node.input)
        assert users["w"] == users["b"] == users["h"] == users["form_axes"] == 2
        assert len(graph.output) == 2


def test_function(monkeypatch: pytest.MonkeyPatch) -> None:
    for parametric in (0, 1):
        _variant(monkeypatch, parametric)
        model = backend_forms.in_function(_case()).model
        assert _operators(model.graph) == ["Body"]
        assert not model.graph.initializer
        body = model.functions[0]
        assert [n.op_type for n in body.node] == ["Constant", "Mul", "Constant", "Mul", "Add", "LeakyRelu"]
        assert bool(body.attribute) == bool(parametric)
        assert body.node[-1].attribute[0].ref_attr_name == (body.attribute[0] if parametric else "")


def test_control_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (operator, bodies, n_inputs) in enumerate((("If", 2, 3), ("If", 2, 2), ("Loop", 1, 3), ("Loop", 1, 2))):
        _variant(monkeypatch, number)
        graph = backend_forms.in_control_flow(_case()).model.graph
        assert _operators(graph) == [operator]
        assert len(graph.input) == n_inputs
        inner = [a.g for a in graph.node[0].attribute]
        assert len(inner) == bodies
        for body in inner:
            assert _operators(body)[:5] == ["Mul", "Constant", "Mul", "Add", "LeakyRelu"]
            assert list(body.node[0].input) == ["x", "w"]
            assert bool(body.initializer) == bool(number % 2)


# -- the harness can fail ----------------------------------------------------------------------------------------------


def _plant(monkeypatch: pytest.MonkeyPatch, root: str, contract: Contract, make: object) -> None:
    """`eliminate-identity` becomes a pass that rewrites nodes of type `root`, once each."""
    cls = pass_class("eliminate-identity")

    def visit(self: object, node: onnx_ir.Node, op: object, context: object) -> object:
        return [make(op, node)] if "wrong" not in (node.name or "") else NoMatch("done", node)  # type: ignore[operator]

    monkeypatch.setattr(cls, "roots", (root,))
    monkeypatch.setattr(cls, "contract", contract)
    monkeypatch.setattr(cls, "visit", visit)


def _input_for_output(op: object, node: onnx_ir.Node) -> onnx_ir.Value | None:
    return node.inputs[0]


def _another_slope(op: object, node: onnx_ir.Node) -> onnx_ir.Value:
    return op.op("Elu", [node.inputs[0]], like=node.outputs[0])[0]  # type: ignore[attr-defined]


def _scaled_too_much(op: object, node: onnx_ir.Node) -> onnx_ir.Value:
    factor = op.constant(np.array(0.25001, np.float32))  # type: ignore[attr-defined]
    return op.op("PRelu", [node.inputs[0], factor], like=node.outputs[0])[0]  # type: ignore[attr-defined]


def _sign_of_zero(op: object, node: onnx_ir.Node) -> onnx_ir.Value:
    zero = op.constant(np.array(0.0, np.float32))  # type: ignore[attr-defined]
    return op.op("Sub", [zero, node.inputs[0]], like=node.outputs[0])[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("contract", [Contract.EXACT, Contract.NUMERIC])
@pytest.mark.parametrize("make", [_input_for_output, _another_slope, _scaled_too_much])
def test_a_wrong_pass_is_caught(
    make: object, contract: Contract, form: str, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plant(monkeypatch, "LeakyRelu", contract, make)
    case = _case()
    case.pipelines = ("eliminate-identity",)
    row = harness.examine(case, form)
    assert row["outcome"] == FAILED
    assert contract.value in row["detail"] or "undo each other" in row["detail"], row


@pytest.mark.parametrize("form", [f for f in FORMS if f != "initializers"])
def test_a_wrong_sign_of_zero_is_caught(form: str, harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 - x for -x differs at zero alone, which the recorded inputs do not hold: the adversarial ones do."""
    _plant(monkeypatch, "Neg", Contract.EXACT, _sign_of_zero)
    model = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> f (float[4] x) => (float[4] y) {y = Neg(x)}')
    feed = {"x": np.array([1, 2, 3, 4], np.float32)}
    case = Case("negation", "node", model, [feed], pipelines=("eliminate-identity",))
    row = harness.examine(case, form)
    assert row["outcome"] == FAILED
    assert "sign of zero" in row["detail"]


def test_an_invalid_result_is_caught(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    _plant(monkeypatch, "LeakyRelu", Contract.EXACT, lambda op, node: op.op("NoSuchOperator", [node.inputs[0]])[0])
    case = _case()
    case.pipelines = ("eliminate-identity",)
    assert harness.examine(case, "as is")["outcome"] == FAILED


def test_every_contract_is_compared(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A numeric pass does not excuse an exact one: the exact ones run again by themselves."""
    calls: list[object] = []
    compare = Harness._compare

    def counted(self: Harness, candidate: bytes, evidence: object, errors: object = None) -> None:
        calls.append(errors)
        compare(self, candidate, evidence, errors)  # type: ignore[arg-type]

    monkeypatch.setattr(backend_harness.Harness, "_compare", counted)
    _plant(monkeypatch, "LeakyRelu", Contract.NUMERIC, _same_slope)
    case = _case()
    case.pipelines = ("eliminate-identity",)
    assert harness.examine(case, "as is")["outcome"] == "within tolerance"
    assert [errors is None for errors in calls] == [False, True]


def _same_slope(op: object, node: onnx_ir.Node) -> onnx_ir.Value:
    factor = op.constant(np.array(0.25, np.float32))  # type: ignore[attr-defined]
    return op.op("PRelu", [node.inputs[0], factor], like=node.outputs[0])[0]  # type: ignore[attr-defined]
