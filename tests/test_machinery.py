"""The pass machinery: pipelines as text, matching, the worklist, rewriting, instruments, weights made lazily."""

from __future__ import annotations

import io
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.external_data_helper
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import onnx.reference
import onnx_ir
import pytest
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import ContractError, UsageError
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes, save
from opgraft.passes import _registry
from opgraft.passes._instruments import Dump, PrintGraph, StopAfter, Timing, VerifyEach, bisect_rewrites
from opgraft.passes._pass import Contract, NoMatch, PassContext, Replacement
from opgraft.passes._pattern import Operation, PatternBuilder, PatternPass, Variable, _Matcher
from opgraft.passes._pipeline import Group, Pipeline
from opgraft.passes._rewriter import Rewriter
from opgraft.passes._worklist import NodePass, run_group

sys.path.insert(0, str(Path(__file__).parent))
from golden_execution import run_model

HEADER = '<ir_version: 10, opset_import: ["" : 21, "local" : 1]>'


def program_of(text: str) -> Program:
    return capture_onnx(onnx.parser.parse_model(f"{HEADER} {text}"))


def op_types(program: Program) -> list[str]:
    return [node.op_type for node in program.graph]


def rewrite(pass_: NodePass, program: Program) -> PassContext:
    context = PassContext(program, keep_near_misses=True)
    run_group([pass_], program, context)
    return context


def assert_same(before: Program, after: Program, **inputs: np.ndarray) -> None:
    expected, actual = run_model(model_bytes(before), inputs), run_model(model_bytes(after), inputs)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(value, actual[name])


X = np.linspace(-2, 2, 12, dtype=np.float32).reshape(3, 4)


# Passes made for these tests


@dataclass(frozen=True)
class ReluToAbs(NodePass):
    """Relu(x) -> Abs(x)"""

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Relu",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        return [op.Abs(node.inputs[0])]


@dataclass(frozen=True)
class AbsToRelu(NodePass):
    """Abs(x) -> Relu(x)"""

    contract: ClassVar[Contract] = Contract.EXACT
    roots: ClassVar[tuple[str, ...]] = ("Abs",)

    def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
        return [op.Relu(node.inputs[0])]


@dataclass(frozen=True)
class NegNegToIdentity(PatternPass):
    """Neg(Neg(x)) -> Identity(x)"""

    contract: ClassVar[Contract] = Contract.EXACT

    def pattern(self, p: PatternBuilder, x: Variable) -> Operation:
        return p.Neg(p.Neg(x))

    def rewrite(self, op: Rewriter, x: onnx_ir.Value) -> onnx_ir.Value:
        return op.Identity(x)


@dataclass(frozen=True)
class AddThreeToSum(PatternPass):
    """Neg(x) + (y + 1) -> Sum(Neg(x), y, 1)"""

    contract: ClassVar[Contract] = Contract.NUMERIC

    def pattern(self, p: PatternBuilder, x: Variable, y: Variable) -> Operation:
        return p.Add(p.Neg(x), p.Add(y, 1.0))

    def rewrite(self, op: Rewriter, x: onnx_ir.Value, y: onnx_ir.Value) -> onnx_ir.Value:
        return op.Sum(op.Neg(x), y, op.constant(np.ones(1, np.float32), "one"))


@dataclass(frozen=True)
class Late(ReluToAbs):
    """Relu(x) -> Abs(x), after eliminate-identity, at opset 99"""

    after: ClassVar[tuple[str, ...]] = ("eliminate-identity",)
    needs: ClassVar[tuple[str, ...]] = ("opset>=99",)


# Pipelines


@pytest.mark.parametrize(
    "text",
    [
        "eliminate-identity",
        "eliminate-identity, eliminate-dead-code",
        "(eliminate-identity, fuse-conv-affine), eliminate-dead-code",
        "upgrade-opset{version=18}, inline-functions{functions=local.a:b}",
    ],
)
def test_pipelines_round_trip(text: str) -> None:
    assert str(Pipeline.parse(text)) == text
    assert str(Pipeline.parse(text.replace(", ", " ,\n "))) == text


def test_named_pipeline_expands() -> None:
    names = [p.name for p in Pipeline.parse("simplify").passes]
    assert "eliminate-identity" in names
    assert str(Pipeline.parse(str(Pipeline.parse("simplify")))) == str(Pipeline.parse("simplify"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eliminate-identty", "did you mean 'eliminate-identity'"),
        ("no-such-thing-at-all", "known: "),
        ("eliminate-identity{speed=3}", "its options: none"),
        ("upgrade-opset{verison=3}", "its options: version"),
        ("upgrade-opset{version=new}", "version='new' is not an integer"),
        ("upgrade-opset{version=3}", "is not 0 or one of"),
        ("(eliminate-identity", "expected"),
        ("eliminate-identity eliminate-dead-code", "expected ','"),
        ("(eliminate-dead-code)", "cannot be in a group"),
        ("Eliminate Identity!", "expected a pass"),
    ],
)
def test_wrong_pipeline_text(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("'", ".")):
        Pipeline.parse(text)


def test_order_and_needs_are_checked_before_anything_runs() -> None:
    identity = _registry.make_pass("eliminate-identity", {})
    with pytest.raises(UsageError, match="'late' must run after eliminate-identity"):
        Pipeline([Late(), identity])
    program = program_of("f (float[N] x) => (float[N] y) { a = Identity(x) y = Relu(a) }")
    with pytest.raises(UsageError, match=r"needs opset 99, the model has 21.*upgrade-opset"):
        Pipeline([identity, Late()]).run(program)
    assert op_types(program) == ["Identity", "Relu"]


def test_disabled_passes_and_the_limit_of_rewrites() -> None:
    text = "f (float[N] x) => (float[N] y) { a = Relu(x) b = Relu(a) y = Relu(b) }"
    program = program_of(text)
    run_group([ReluToAbs()], program, PassContext(program, disabled=frozenset({"relu-to-abs"})))
    assert op_types(program) == ["Relu"] * 3
    context = PassContext(program, max_rewrites=2)
    run_group([ReluToAbs()], program, context)
    assert sorted(op_types(program)) == ["Abs", "Abs", "Relu"]
    assert [r.number for r in context.rewrites] == [0, 1]


# Entry points


def _pretend_installed(monkeypatch: pytest.MonkeyPatch, **classes: Any) -> None:
    points = [
        SimpleNamespace(name=name.replace("_", "-"), load=lambda c=cls: c, dist=SimpleNamespace(name="outside"))
        for name, cls in classes.items()
    ]
    monkeypatch.setattr(_registry, "entry_points", lambda group: points)
    _registry.outside_passes.cache_clear()


@pytest.fixture(autouse=True)
def _forget_entry_points() -> Iterator[None]:
    yield
    _registry.outside_passes.cache_clear()


def test_outside_passes_work_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed(monkeypatch, relu_to_abs=ReluToAbs)
    assert Pipeline.parse("relu-to-abs").passes == [ReluToAbs()]


def test_outside_passes_cannot_shadow(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed(monkeypatch, eliminate_identity=ReluToAbs)
    with pytest.raises(ContractError, match="of package outside shadows a built-in"):
        Pipeline.parse("no-such-pass")


def test_outside_passes_must_be_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    _pretend_installed(monkeypatch, something=dict)
    with pytest.raises(ContractError, match="is not a Pass"):
        Pipeline.parse("something")


# Reasons


def test_reasons_are_made_when_read() -> None:
    class Loud:
        def __format__(self, spec: str) -> str:
            raise RuntimeError("formatted")

    miss = NoMatch("the shape is {}", None, Loud())
    with pytest.raises(RuntimeError, match="formatted"):
        str(miss)


def test_reasons_name_their_place() -> None:
    node = program_of("f (float[N] x) => (float[N] y) { y = Relu(x) }").graph[0]
    assert str(NoMatch("rank {}", node, 3)) == "rank 3 (at Relu 'y')"
    assert str(NoMatch("no {} here", node.inputs[0], "sign")) == "no sign here (at value 'x')"
    assert str(NoMatch("braces {} stay")) == "braces {} stay"


# Matching


def _chain(depth: int, leaf: str) -> str:
    """a_i = a_{i-1} + a_{i-1}: both orders of every Add lead to the same place."""
    lines = [f"a0 = {leaf}(x)", *(f"a{i} = Add(a{i - 1}, a{i - 1})" for i in range(1, depth + 1))]
    return f"f (float[N] x) => (float[N] a{depth}) {{ {' '.join(lines)} }}"


def _ladder(depth: int) -> str:
    """Two rails: a_i and b_i both add a_{i-1} and b_{i-1}, so that there are 2**depth ways down."""
    lines = ["a0 = Abs(x) b0 = Neg(x)"]
    lines += [f"a{i} = Add(a{i - 1}, b{i - 1}) b{i} = Add(b{i - 1}, a{i - 1})" for i in range(1, depth + 1)]
    return f"f (float[N] x) => (float[N] a{depth}) {{ {' '.join(lines)} }}"


def _adds(depth: int, leaf: Any) -> Operation:
    p = PatternBuilder()
    expression = leaf
    for i in range(depth):
        expression = p.Add(expression, Variable(f"v{i}"))
    return expression


@pytest.mark.parametrize("text", [_chain(12, "Abs"), _ladder(12)])
def test_commuted_patterns_take_linear_time(text: str) -> None:
    root = program_of(text).graph.outputs[0].producer()
    p, steps = PatternBuilder(), {}
    for leaf in ("Abs", "Sin"):
        matcher = _Matcher(root.graph)
        found = next(matcher.matches(_adds(12, getattr(p, leaf)(Variable("x"))), root), None)
        assert (found is not None) == (leaf == "Abs")
        steps[leaf] = matcher.steps
    assert max(steps.values()) < 12 * 12


def test_readings_are_bounded_when_checks_refuse_them_all() -> None:
    root = program_of(_ladder(20)).graph.outputs[0].producer()
    matcher = _Matcher(root.graph)
    n_readings = sum(1 for _ in matcher.matches(_adds(20, Variable("x")), root))
    assert 1 < n_readings < 10_000
    assert matcher.steps < 20_000


@pytest.mark.parametrize("body", ["b = Add(y, one) z = Add(a, b)", "b = Add(one, y) z = Add(b, a)"])
def test_both_orders_match(body: str) -> None:
    text = f"f (float[N] x, float[N] y) => (float[N] z) <float one = {{1}}> {{ a = Neg(x) {body} }}"
    program, before = program_of(text), program_of(text)
    assert len(rewrite(AddThreeToSum(), program).rewrites) == 1
    assert sorted(op_types(program)) == ["Neg", "Sum"]
    assert_same(before, program, x=X[0], y=X[1])


def test_an_inner_result_that_is_an_output_stays() -> None:
    program = program_of("f (float[N] x) => (float[N] y, float[N] a) { a = Neg(x) y = Neg(a) }")
    context = rewrite(NegNegToIdentity(), program)
    assert not context.rewrites
    assert "an inner result has other users (at value 'a')" in map(str, context.near_misses["neg-neg-to-identity"])


def test_an_inner_result_that_a_subgraph_reads_stays() -> None:
    text = """f (float[N] x, bool c) => (float[N] y, float[N] z) { a = Neg(x) y = Neg(a)
        z = If (c) <then_branch = g () => (float[N] p) { p = Abs(a) },
                    else_branch = h () => (float[N] q) { q = Abs(x) }> }"""
    assert not rewrite(NegNegToIdentity(), program_of(text)).rewrites


def test_a_match_does_not_reach_out_of_a_subgraph() -> None:
    """What is computed once outside must not be computed in every iteration."""
    text = """f (float[N] x, bool c) => (float[N] z) { a = Neg(x)
        z = If (c) <then_branch = g () => (float[N] p) { p = Neg(a) },
                    else_branch = h () => (float[N] q) { q = Abs(x) }> }"""
    assert not rewrite(NegNegToIdentity(), program_of(text)).rewrites


# The worklist


def _relus(n: int) -> Program:
    lines = ["a0 = Relu(x)", *(f"a{i} = Relu(a{i - 1})" for i in range(1, n))]
    return program_of(f"f (float[N] x) => (float[N] a{n - 1}) {{ {' '.join(lines)} }}")


def test_visits_grow_linearly() -> None:
    visits = []

    @dataclass(frozen=True)
    class Counting(ReluToAbs):
        """Relu(x) -> Abs(x), at every operator"""

        roots: ClassVar[tuple[str, ...]] = ()

        def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
            visits.append(node)
            return super().visit(node, op, context) if node.op_type == "Relu" else NoMatch("done", node)

    counts = []
    for n in (100, 400):
        visits.clear()
        assert len(rewrite(Counting(), _relus(n)).rewrites) == n
        counts.append(len(visits) / n)
    assert counts[1] <= counts[0] * 1.05
    assert counts[1] <= 5


def test_passes_that_undo_each_other_are_named() -> None:
    program = _relus(10)
    with pytest.raises(ContractError, match="passes abs-to-relu, relu-to-abs undo each other"):
        run_group([ReluToAbs(), AbsToRelu()], program, PassContext(program))


@pytest.mark.parametrize("operator", ["Relu", "Neg"])
def test_a_pass_is_tried_once_its_partner_is_there(operator: str) -> None:
    """The partner may be what another pass of the group makes; without one the pass is not asked, except for why."""
    asked = []

    @dataclass(frozen=True)
    class NegOfAbs(NodePass):
        """Neg(Abs(x)) -> Neg(x)"""

        contract: ClassVar[Contract] = Contract.EXACT
        roots: ClassVar[tuple[str, ...]] = ("Neg",)
        partners: ClassVar[tuple[str, ...]] = ("Abs",)

        def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
            asked.append(node)
            inner = node.inputs[0].producer() if node.inputs[0] is not None else None
            if inner is None or inner.op_type != "Abs":
                return NoMatch("no Abs", node)
            return [op.Neg(inner.inputs[0])]

    program = program_of(f"f (float[N] x) => (float[N] y) {{ a = Neg(x) b = {operator}(a) y = Neg(b) }}")
    context = PassContext(program)
    run_group([ReluToAbs(), NegOfAbs()], program, context)
    made = [rewrite.pass_name for rewrite in context.rewrites]
    assert made == (["relu-to-abs", "neg-of-abs"] if operator == "Relu" else [])
    assert bool(asked) == (operator == "Relu")
    if operator == "Neg":
        run_group([NegOfAbs()], program, PassContext(program, keep_near_misses=True))
        assert len(asked) == 3


def test_what_a_pass_made_before_it_gave_up_is_no_user() -> None:
    @dataclass(frozen=True)
    class Hesitant(NodePass):
        """Relu(x) -> Abs(x), almost"""

        contract: ClassVar[Contract] = Contract.EXACT
        roots: ClassVar[tuple[str, ...]] = ("Relu",)

        def visit(self, node: onnx_ir.Node, op: Rewriter, context: PassContext) -> Replacement | NoMatch:
            op.Add(node.inputs[0], op.constant(np.ones(4, np.float32)))
            return NoMatch("not after all", node)

    program = _relus(3)
    before = [len(v.uses()) for n in program.graph for v in n.inputs if v is not None]
    run_group([Hesitant(), ReluToAbs()], program, PassContext(program, disabled=frozenset({"relu-to-abs"})))
    assert [len(v.uses()) for n in program.graph for v in n.inputs if v is not None] == before
    run_group([Hesitant(), ReluToAbs()], program, PassContext(program))
    assert [n.op_type for n in program.graph] == ["Abs"] * 3
    assert not program.graph.initializers


# Rewriting


def test_an_output_keeps_name_type_and_shape() -> None:
    text = "f (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }"
    program = program_of(text)
    rewrite(ReluToAbs(), program)
    output = program.graph.outputs[0]
    assert output.name == "y"
    assert str(output.shape) == str(program_of(text).graph.outputs[0].shape)
    assert output.dtype == onnx_ir.DataType.FLOAT


def test_subgraphs_read_what_replaces_a_captured_value() -> None:
    text = """f (float[N] x, bool c) => (float[N] z) { n = Neg(x) m = Neg(n) a = Abs(m)
        z = If (c) <then_branch = g () => (float[N] p) { p = Sin(m) },
                    else_branch = h () => (float[N] q) { q = Neg(a) }> }"""
    program, before = program_of(text), program_of(text)
    assert len(rewrite(NegNegToIdentity(), program).rewrites) == 1
    for c in (True, False):
        assert_same(before, program, x=X[0], c=np.asarray(c))


def test_names_of_subgraphs_that_repeat() -> None:
    """Both branches name their values alike; new values must not clash with any of them."""
    text = """f (float[N] x, bool c) => (float[N] z) {
        z = If (c) <then_branch = g () => (float[N] p) { t = Neg(x) u = Neg(t) p = Abs(u) },
                    else_branch = g () => (float[N] q) { t = Neg(x) u = Neg(t) q = Sin(u) }> }"""
    program, before = program_of(text), program_of(text)
    assert len(rewrite(NegNegToIdentity(), program).rewrites) == 2
    for c in (True, False):
        assert_same(before, program, x=X[0], c=np.asarray(c))


def test_functions_get_constant_nodes() -> None:
    text = """f (float[N] x, float[N] y) => (float[N] z) { z = local.g(x, y) }
        <domain: "local", opset_import: ["" : 21]>
        g (x, y) => (z) { one = Constant <value = float {1}> () a = Neg(x) b = Add(y, one) z = Add(a, b) }"""
    program, before = program_of(text), program_of(text)
    assert len(rewrite(AddThreeToSum(), program).rewrites) == 1
    function = next(iter(program.model.functions.values()))
    assert not function.graph.initializers
    assert {n.op_type for n in function} == {"Neg", "Sum", "Constant"}
    assert_same(before, program, x=X[0], y=X[1])


def test_one_value_can_stand_for_two_outputs() -> None:
    """ONNX Runtime refuses such functions; the reference implementation runs them."""
    text = """f (float[N] x) => (float[N] y, float[N] z, float[N] w) { a = Neg(x) y, t = local.twice(a) z = Neg(t)
          b, w = local.same(x) }
        <domain: "local", opset_import: ["" : 21]> twice (x) => (y, y) { y = Abs(x) }
        <domain: "local", opset_import: ["" : 21]> same (x) => (x, x) { }"""
    program = program_of(text)
    model = onnx.ModelProto.FromString(model_bytes(program))
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": X[0]})
    Pipeline.parse("inline-functions").run(program)
    assert not program.model.functions
    assert [o.name for o in program.graph.outputs] == ["y", "z", "w"]
    actual = run_model(model_bytes(program), {"x": X[0]})
    for value, name in zip(expected, "yzw", strict=True):
        np.testing.assert_array_equal(value, actual[name])


def test_inlining_has_a_limit() -> None:
    """Forty levels of functions that call the next one twice would make 2**40 nodes."""
    functions = [
        f'<domain: "local", opset_import: ["" : 21, "local" : 1]> g{i} (x) => (y) '
        f"{{ a = local.g{i + 1}(x) y = local.g{i + 1}(a) }}"
        for i in range(40)
    ]
    functions.append('<domain: "local", opset_import: ["" : 21]> g40 (x) => (y) { y = Abs(x) }')
    program = program_of("f (float[N] x) => (float[N] y) { y = local.g0(x) } " + "\n".join(functions))
    context = PassContext(program, keep_near_misses=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opgraft.passes.canonicalize.inline_functions._MAX_NEW_NODES", 2000)
        Pipeline.parse("inline-functions").run(program, context)
    assert "would add more than 2000 nodes" in str(context.near_misses["inline-functions"][0])


# Instruments


def test_instruments(tmp_path: Path) -> None:
    stream, timing = io.StringIO(), Timing()
    instruments = [PrintGraph(stream), timing, Dump(tmp_path / "stages"), StopAfter("eliminate-identity")]
    program = program_of("f (float[N] x) => (float[N] y) { a = Identity(x) y = Relu(a) }")
    group = Group((_registry.make_pass("eliminate-identity", {}),))
    Pipeline([_registry.make_pass("eliminate-dead-code", {}), group, ReluToAbs()], instruments).run(program)
    assert op_types(program) == ["Relu"]
    assert stream.getvalue().count("# before") == 1
    assert "Identity" in stream.getvalue()
    assert [r.n_rewrites for r in timing.results] == [0, 1]
    assert sorted(f.name for f in (tmp_path / "stages").iterdir()) == ["00-input.onnx.txt", "02-group.onnx.txt"]
    dumped = onnx.parser.parse_model((tmp_path / "stages" / "02-group.onnx.txt").read_text())
    assert [node.op_type for node in dumped.graph.node] == ["Relu"]


def test_verify_each_names_the_stage() -> None:
    def compare(before: Program, after: Program) -> str:
        left, right = (run_model(model_bytes(p), {"x": X[0]})["y"] for p in (before, after))
        return "" if np.array_equal(left, right) else "output 'y'"

    program = program_of("f (float[4] x) => (float[4] y) { a = Identity(x) y = Relu(a) }")
    stages = [_registry.make_pass("eliminate-identity", {}), ReluToAbs()]
    with pytest.raises(ContractError, match="stage relu-to-abs: changes what the model computes: output 'y'"):
        Pipeline(stages, [VerifyEach(compare)]).run(program)


def test_bisection_finds_the_first_wrong_rewrite() -> None:
    runs = []

    def is_right(n: int) -> bool:
        runs.append(n)
        return n < 700

    assert bisect_rewrites(is_right, 1000) == 700
    assert len(runs) <= 13
    with pytest.raises(UsageError, match="before the first"):
        bisect_rewrites(lambda n: False, 10)
    with pytest.raises(UsageError, match="right after all"):
        bisect_rewrites(lambda n: True, 10)


# Weights


def test_changed_weights_are_made_while_they_are_written(tmp_path: Path) -> None:
    """Eight layers of 4 MiB, all changed: saving takes the memory of one, and reads none before."""
    n_layers, width = 8, 1024
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((width, width)).astype(np.float32) for _ in range(n_layers)]
    nodes = [
        onnx.helper.make_node("Gemm", [f"x{i}", f"w{i}"], [f"x{i + 1}"], alpha=0.25, transB=1) for i in range(n_layers)
    ]
    info = [onnx.helper.make_tensor_value_info(n, 1, ["N", width]) for n in ("x0", f"x{n_layers}")]
    initializers = [onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights)]
    graph = onnx.helper.make_graph(nodes, "layers", info[:1], info[1:], initializers)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(tmp_path / "in.onnx"), save_as_external_data=True, location="in.data")
    del model, graph, initializers

    program = capture_onnx(tmp_path / "in.onnx")
    tracemalloc.start()
    context = PassContext(program)
    Pipeline.parse("canonicalize-linear").run(program, context)
    after_pass = tracemalloc.get_traced_memory()[1]
    save(program, tmp_path / "out.onnx")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(context.rewrites) == n_layers
    assert after_pass < 1 << 20
    assert peak < 3.5 * weights[0].nbytes
    again = capture_onnx(tmp_path / "out.onnx")
    for i, weight in enumerate(weights):
        written = again.graph.initializers[f"w{i}_transposed"].const_value
        np.testing.assert_array_equal(written.numpy(), (weight.astype(np.float64) * 0.25).astype(np.float32).T)
