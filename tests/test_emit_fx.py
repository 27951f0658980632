"""Emission of torch modules: a sample of the evidence, and what a module looks like.

All of it: `make evidence-emit_fx`.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

sys.path.insert(0, str(Path(__file__).parent))
import evidence_emit_fx as evidence  # noqa: E402
from opgraft.backends.onnxruntime.executor import Executor, run_once  # noqa: E402
from opgraft.ir.capture import capture  # noqa: E402
from opgraft.ir.capture_onnx import capture_onnx  # noqa: E402
from opgraft.ir.compare import float32_error, within_tolerance  # noqa: E402
from opgraft.ir.emit_fx import emit_fx  # noqa: E402
from opgraft.ir.errors import ExecutionError, InputError, UsageError  # noqa: E402
from opgraft.ir.fx.ops_view import index_tensor, to_list, truncated_quotient  # noqa: E402
from opgraft.ir.inputs import input_cases  # noqa: E402
from opgraft.ir.normalize_export import SCOPE_KEY  # noqa: E402
from opgraft.ir.program import Program  # noqa: E402

pytestmark = pytest.mark.torch
MODELS = Path(__file__).parent / "models"
HEADER = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> graph '
UNSUPPORTED_OPERATORS = {
    # Strings, trees, images, training: no torch form.
    *("StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder"),
    *("LabelEncoder", "TreeEnsemble", "Binarizer", "ArrayFeatureExtractor"),
    *("Adagrad", "Adam", "Gradient", "Momentum", "FlexAttention"),
    *("DeformConv", "MelWeightMatrix", "NonMaxSuppression", "RoiAlign"),
    # In some forms only: 4-bit floats, an empty optional, Scan of opset 8.
    *("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Optional", "Scan"),
}


def program_of(text: str) -> Program:
    return capture_onnx(onnx.parser.parse_model(HEADER + text))


def run(program: Program, *arrays: Any, dtype: Any = None) -> list[np.ndarray]:
    result = emit_fx(program, dtype=dtype)(*(torch.from_numpy(np.array(a)) for a in arrays))
    return [r.numpy() for r in (result if isinstance(result, tuple) else (result,))]


# -- evidence ----------------------------------------------------------------------------------------------------------


def test_backend_tests() -> None:
    """Each in one of the forms; what is refused is refused for a known operator."""
    forms = [*evidence.FORMS, evidence.FLOAT64]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rows = []
        for case in evidence.backend_cases():
            form = forms[case.variant(len(forms), "emission")]
            if form != evidence.FLOAT64 or case.name not in evidence.ROUNDED_IN_FLOAT32:
                rows.append(evidence.backend_row(case, form))
    assert not [r for r in rows if r["outcome"] == evidence.FAILED]
    outcomes = Counter(r["outcome"] for r in rows)
    assert outcomes[evidence.PASSED] > 15 * outcomes[evidence.UNSUPPORTED]
    refused = [r["detail"] for r in rows if r["outcome"] == evidence.UNSUPPORTED]
    named = {found[1] for text in refused if (found := re.search(r"\((?:[\w.]+\.)?(\w+)\):", text))}
    assert named <= UNSUPPORTED_OPERATORS


@pytest.mark.parametrize(
    ("name", "stages"), [("bert", tuple(evidence.STAGES)), ("cnn", tuple(evidence.STAGES)), ("llama", ("simplify",))]
)
def test_models_equal_their_torch_reference_in_float64(name: str, stages: tuple[str, ...]) -> None:
    rows = list(evidence.model_rows(name, stages))
    assert tuple(r["form"] for r in rows) == stages
    assert not [r for r in rows if r["outcome"] != evidence.PASSED]


@pytest.mark.parametrize("name", ["cnn", "encoder", "decoder"])
def test_float32_agrees_with_the_runtime(name: str) -> None:
    """Two roundings of the same maths: each within four times the runtime's own float32 error, which is measured
    against the float64 module."""
    path = MODELS / f"{name}.onnx"
    program = capture_onnx(path)
    single, double = emit_fx(program), emit_fx(program, dtype="float64")
    (output,) = (v.name or "" for v in program.graph.outputs)
    n_compared = 0
    with Executor() as executor:
        handle = executor.load(path.read_bytes())
        for case in (c for c in input_cases(program, seed=1) if c.is_ordinary):
            try:
                wanted = executor.run(handle, case.arrays)
            except ExecutionError:
                continue  # a size that the model does not take
            arguments = [torch.from_numpy(case.arrays[v.name or ""]) for v in program.graph.inputs]
            exact, found = ({output: module(*arguments).numpy()} for module in (double, single))
            assert exact[output].dtype == np.float64
            assert not within_tolerance(wanted, found, float32_error(wanted, exact))
            n_compared += 1
    assert n_compared >= 3


def test_a_changed_weight_is_seen() -> None:
    subject = evidence.Subject("cnn")
    program = subject.program.clone()
    value = program.graph.initializers["narrow.weight"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array.reshape(-1)[3] *= 1 + 1e-6
    value.const_value = onnx_ir.Tensor(array, name=value.name)
    assert subject.error(emit_fx(program, dtype="float64")) > evidence.TOLERANCE


# -- what the module looks like ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def classifier() -> tuple[torch.nn.Module, Program]:
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.GELU(), torch.nn.LayerNorm(6))
    module = torch.nn.ModuleDict({"body": body, "forward_": torch.nn.Linear(6, 3)})

    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = module

        def forward(self, x: Any) -> Any:
            return self.parts["forward_"](self.parts["body"](x))

    made = Classifier().eval()
    return made, capture(made, (torch.randn(2, 8),), dynamic_shapes={"x": {0: "batch"}})


def test_weights_keep_their_names_and_share_memory(classifier: tuple[Any, Program]) -> None:
    module, program = classifier
    emitted = emit_fx(program)
    assert set(emitted.state_dict()) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        assert torch.equal(emitted.state_dict()[name], tensor)
        assert emitted.get_parameter(name).data_ptr() == tensor.data_ptr()
        assert not emitted.get_parameter(name).requires_grad
    wide = emit_fx(program, dtype="float64")
    assert {t.dtype for t in wide.state_dict().values()} == {torch.float64}
    wide.load_state_dict(module.state_dict())


def test_nodes_have_names_and_scopes(classifier: tuple[Any, Program]) -> None:
    program = classifier[1]
    nodes = {n.name: n for n in emit_fx(program).graph.nodes}
    for node in program.graph:
        assert node.name in nodes
        assert nodes[node.name].meta[SCOPE_KEY] == node.metadata_props[SCOPE_KEY]


def test_weights_of_a_file_are_mapped_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        emitted = emit_fx(capture_onnx(MODELS / "encoder.onnx"))
    assert any(name.startswith("bert.encoder.layer.0.") for name in emitted.state_dict())


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_shapes_are_no_tensors(name: str) -> None:
    """No number leaves a tensor, and none but those of masks and positions become one."""
    targets = [n.target for n in emit_fx(capture_onnx(MODELS / f"{name}.onnx")).graph.nodes]
    assert torch.ops.aten.sym_size.int in targets
    assert not {to_list, index_tensor, torch.ops.aten.item.default}.intersection(targets)


def test_a_module_runs_where_its_inputs_are() -> None:
    """What is made of sizes alone goes there too; the meta device refuses operands that are elsewhere."""
    text = """(float[N, 4] x, bool c) => (float[N, 4] y, int64[2] s, int64 size, float[N, 4] z, float[M, 4] w)
        <int64 zero = {0}, int64 one = {1}, int64[1] last = {1}> {
            s = Shape(x)
            size = Size(x)
            n1 = Shape <start = 0, end = 1> (x)
            n = Squeeze(n1)
            positions = Range(zero, n, one)
            column = Unsqueeze(positions, last)
            shifted = CastLike(column, x)
            blank = ConstantOfShape(s)
            moved = Add(x, shifted)
            y = Add(moved, blank)
            z = If(c) <then_branch = a () => (float[N, 4] p) { t = ConstantOfShape(s) p = Add(t, x) },
                       else_branch = b () => (float[N, 4] q) { q = Sub(x, shifted) }>
            e = EyeLike(x)
            w = Add(e, x)
        }"""
    program = program_of(text)
    x, c = torch.randn(3, 4), torch.tensor(True)
    wanted = emit_fx(program)(x, c)
    # A branch is chosen by its condition's value, which no tensor of the meta device has.
    found = emit_fx(program).to("meta")(x.to("meta"), c)
    assert [f.device.type for f in found] == ["meta"] * 5
    assert [f.shape for f in found] == [w.shape for w in wanted]
    for name in ("encoder", "decoder", "cnn"):
        program = capture_onnx(MODELS / f"{name}.onnx")
        arrays = next(iter(input_cases(program))).arrays
        inputs = (torch.from_numpy(arrays[v.name]).to("meta") for v in program.graph.inputs)
        found = emit_fx(program).to("meta")(*inputs)
        assert all(f.device.type == "meta" for f in (found if isinstance(found, tuple) else (found,)))


def test_division_of_sizes_is_toward_zero() -> None:
    """As ONNX divides integers; Python's own division rounds down."""
    for a, b in itertools.product((-7, -6, -1, 0, 1, 6, 7), (-3, -1, 1, 3)):
        assert truncated_quotient(a, b) == math.trunc(a / b), (a, b)


def test_names_that_are_no_paths() -> None:
    """A tensor where a module would have to be, a word that modules have themselves, an input that is no identifier."""
    text = """(float[4] x) => (float[4] y)
        <float[4] a = {1, 2, 3, 4}, float[4] b = {1, 1, 1, 1}, float[4] forward = {2, 2, 2, 2}>
        { s = Add(x, a) t = Mul(s, b) y = Mul(t, forward) }"""
    model = onnx.parser.parse_model(HEADER + text)
    renamed = {"x": "input:0", "b": "a.b"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(n, n) for n in node.input]
    for item in (*model.graph.input, *model.graph.initializer):
        item.name = renamed.get(item.name, item.name)
    emitted = emit_fx(capture_onnx(model))
    x = torch.arange(4.0)
    assert torch.equal(emitted(input_0=x), (x + torch.tensor([1.0, 2, 3, 4])) * 2)
    assert list(emitted.state_dict()) == ["a", "a_b", "forward_"]


def test_an_input_with_a_default_can_be_left_out() -> None:
    program = program_of("(float[n] x, float[1] w = {2.0}) => (float[n] y) { y = Mul(x, w) }")
    emitted, x = emit_fx(program), torch.arange(3.0)
    assert torch.equal(emitted(x), x * 2)
    assert torch.equal(emitted(x, torch.tensor([3.0])), x * 3)


def test_inputs_may_come_in_their_own_type() -> None:
    program = program_of("(float[n] x, int64[n] i) => (float[n] y) { c = Cast<to=1>(i) y = Add(x, c) }")
    x, i = np.array([0.1, 0.2], np.float32), np.array([1, 2])
    (found,) = run(program, x, i, dtype="float64")
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, x.astype(np.float64) + i)


def test_refusals_name_operator_and_node() -> None:
    program = program_of("(float[n] x) => (float[n] y) { y = com.microsoft.NoSuchOperator(x) }")
    next(iter(program.graph)).name = "odd one"
    with pytest.raises(InputError, match=r"node 'odd one' \(com.microsoft.NoSuchOperator\): .* no torch form"):
        emit_fx(program)
    with pytest.raises(UsageError, match="bfloat16"):
        emit_fx(program, dtype="bfloat16")  # type: ignore[arg-type]


# -- semantics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepdims", [0, 1, 2, -1])
@pytest.mark.parametrize("node", ["ReduceMean<axes=[1], {}>(x)", "ArgMax<axis=1, {}>(x)", "ReduceProd<{}>(s)"])
def test_only_one_keeps_dims(node: str, keepdims: int) -> None:
    """The runtime reads any other number as zero; the last node is arithmetic on sizes."""
    made = node.format(f"keepdims={keepdims}")
    text = HEADER.replace("18", "13") + f"(float[n,m] x) => (y) {{ s = Shape(x) r = {made} y = Shape(r) }}"
    model = onnx.parser.parse_model(text)
    x = np.ones((3, 4), np.float32)
    wanted = run_once(model.SerializeToString(), {"x": x})["y"]
    np.testing.assert_array_equal(run(capture_onnx(model), x)[0], wanted)


LOW, HIGH = -(2**31), 2**31 - 1
LEFT = np.array([-7, 7, -8, 8, 3, -3, HIGH, LOW, 0], np.int32)
RIGHT = np.array([2, -2, 3, -3, 5, 5, -2, 2, -9], np.int32)


@pytest.mark.parametrize("node", ["Div(a, b)", "Mod(a, b)", "Mod<fmod=1>(a, b)", "Mul(a, b)", "Add(a, b)", "Sub(a, b)"])
def test_integers_are_exact(node: str) -> None:
    """Division toward zero, remainders of either sign, and overflow, as the runtime has them."""
    text = f"(int32[n] a, int32[n] b) => (int32[n] y) {{ y = {node} }}"
    model = onnx.parser.parse_model(HEADER + text).SerializeToString()
    wanted = run_once(model, {"a": LEFT, "b": RIGHT})["y"]
    np.testing.assert_array_equal(run(program_of(text), LEFT, RIGHT)[0], wanted)


@pytest.mark.parametrize(
    ("node", "wanted"),
    [
        ("Div(a, b)", np.floor_divide),
        ("Mod(a, b)", np.remainder),
        ("Max(a, b)", np.maximum),
        ("Min(a, b)", np.minimum),
        ("Add(a, b)", np.add),
        ('BitShift<direction="RIGHT">(a, b)', lambda a, b: a >> np.minimum(b, 63)),
    ],
)
def test_unsigned_integers_of_64_bits(node: str, wanted: Any) -> None:
    """torch has no arithmetic on them."""
    a = np.array([0, 1, 2**63, 2**64 - 1, 2**64 - 2, 5, 2**63 + 7], np.uint64)
    b = np.array([1, 3, 7, 2**63, 2**64 - 1, 2, 10], np.uint64)
    if "Shift" in node:
        b = np.arange(7, dtype=np.uint64) * 9
    program = program_of(f"(uint64[n] a, uint64[n] b) => (uint64[n] y) {{ y = {node} }}")
    np.testing.assert_array_equal(run(program, a, b)[0], wanted(a, b))


CONTROL_FLOW = {
    "if on data": """{ s = ReduceSum<keepdims=0>(x) z = Constant<value_float=0.0>() c = Greater(s, z)
        y = If(c) <then_branch = t() => (float[n,m] a) { a = Mul(x, s) },
                   else_branch = e() => (float[n,m] b) { b = Sub(x, s) }> }""",
    "if on a size": """{ s = Shape(x) i = Constant<value_int=0>() d = Gather(s, i) k = Constant<value_int=2>()
        c = Less(k, d) y = If(c) <then_branch = t() => (float[n,m] a) { a = Neg(x) },
                                  else_branch = e() => (float[n,m] b) { b = Exp(x) }> }""",
    "loop of three steps": """{ k = Constant<value_int=3>() c = Constant<value = bool {1}>()
        y = Loop(k, c, x) <body = b(int64 i, bool ci, float[n,m] a) => (bool co, float[n,m] o)
            { co = Identity(ci) f = Cast<to=1>(i) o = Add(a, f) }> }""",
    "slice backwards": """{ s = Constant<value_ints=[-1]>() e = Constant<value_ints=[-9223372036854775807]>()
        a = Constant<value_ints=[1]>() y = Slice(x, s, e, a, s) }""",
    "shape arithmetic": """{ s = Shape(x) t = ReduceProd<keepdims=1>(s) o = Constant<value_ints=[1]>()
        q = Concat<axis=0>(o, t) r = Reshape(x, q) n = Neg(r) y = Reshape(n, s) }""",
    "function": """{ y = local.twice<k=3.0>(x) }""",
}
FUNCTION = """ <domain: "local", opset_import: ["" : 18]> twice <k>(a) => (b) { c = Constant<value_float: float = @k>()
    b = Mul(a, c) }"""


@pytest.mark.parametrize("name", CONTROL_FLOW)
def test_control_flow_at_two_sizes_exported_and_compiled(name: str) -> None:
    text = HEADER.replace('"com.microsoft" : 1', '"local" : 1') + "(float[n,m] x) => (float[n,m] y) "
    model = onnx.parser.parse_model(text + CONTROL_FLOW[name] + FUNCTION * (name == "function"))
    emitted = emit_fx(capture_onnx(model))
    feeds = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in ((3, 4), (2, 5))]
    feeds[1] = -np.abs(feeds[1])
    auto = torch.export.Dim.AUTO
    exported = torch.export.export(emitted, (torch.from_numpy(feeds[0]),), dynamic_shapes=({0: auto, 1: auto},))
    modules = [emitted, evidence.compiled(emitted)]
    # A size that decides which branch is taken is decided when the module is exported.
    modules += [exported.module()] if name != "if on a size" else []
    for feed in feeds:
        wanted = run_once(model.SerializeToString(), {"x": feed})["y"]
        for module in modules:
            found = module(torch.from_numpy(feed)).numpy()
            assert found.shape == wanted.shape
            # One or two roundings of sums of at most twelve numbers.
            np.testing.assert_allclose(found, wanted, rtol=4e-7, atol=4e-6)


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_loop_whose_end_a_run_tells(steps: int) -> None:
    text = """(float[2] x, int64 k) => (float[2] y, float[t,2] ys) { c = Constant<value = bool {1}>()
        y, ys = Loop(k, c, x) <body = b(int64 i, bool ci, float[2] a) => (bool co, float[2] o, float[2] s)
            { co = Identity(ci) f = Cast<to=1>(i) o = Add(a, f) s = Mul(o, x) }> }"""
    x = np.array([1.5, -2.0], np.float32)
    wanted = run_once(onnx.parser.parse_model(HEADER + text).SerializeToString(), {"x": x, "k": np.array(steps)})
    for found, want in zip(run(program_of(text), x, np.array(steps)), wanted.values(), strict=True):
        np.testing.assert_array_equal(found, want)  # small multiples of a half


CONTRIB = {
    "Gelu": "y = com.microsoft.Gelu(x)",
    "FastGelu": "y = com.microsoft.FastGelu(x, b)",
    "BiasGelu": "y = com.microsoft.BiasGelu(x, b)",
    "QuickGelu": "y = com.microsoft.QuickGelu<alpha=1.5>(x)",
    "FusedMatMul": "y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(x, x)",
    "SkipLayerNormalization": "y = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, x, b, b)",
    "SkipSimplifiedLayerNormalization": "y = com.microsoft.SkipSimplifiedLayerNormalization<epsilon=0.001>(x, x, b)",
    "SimplifiedLayerNormalization": "y = SimplifiedLayerNormalization<axis=-1, epsilon=0.001>(x, b)",
}


@pytest.mark.parametrize("name", CONTRIB)
def test_operators_of_the_runtime(name: str) -> None:
    text = f"(float[2,3,8] x, float[8] b) => (float[r,s,t] y) {{ {CONTRIB[name]} }}"
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, 3, 8)).astype(np.float32), rng.standard_normal(8).astype(np.float32)
    wanted = run_once(onnx.parser.parse_model(HEADER + text).SerializeToString(), {"x": x, "b": b})["y"]
    # Numbers below ten, a dozen roundings of 6e-8, and the runtime's approximation of erf and tanh.
    np.testing.assert_allclose(run(program_of(text), x, b)[0], wanted, rtol=1e-5, atol=1e-5)
