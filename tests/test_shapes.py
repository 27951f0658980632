"""Shape analysis against what the runtime produces: every claimed size and element must be the observed one."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnxruntime
import pytest
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.dims import Size, evaluate, names_of
from opgraft.ir.errors import InputError
from opgraft.ir.program import Program
from opgraft.ir.record_shapes import record_shapes
from opgraft.ir.shapes import ShapeAnalysis, analyze_shapes, is_opaque

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend

MODELS = Path(__file__).parent / "models"


def run_all(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the main graph, from ONNX Runtime with its optimizations off."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:], exposed.graph.value_info[:]
    exposed.graph.output.extend(
        onnx.ValueInfoProto(name=name) for node in model.graph.node for name in node.output if name
    )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def check_claims(
    program: Program, facts: ShapeAnalysis, observed: Mapping[str, Any], bindings: Mapping[str, int]
) -> tuple[int, int]:
    """Compare every claim; opaque names too must each stand for one number. Returns sizes (checked, all)."""
    bound = dict(bindings)
    claims: list[tuple[str, Size, int]] = []
    n_sizes = 0
    for node in program.graph:
        for value in node.outputs:
            array = observed.get(value.name or "")
            if not isinstance(array, np.ndarray):
                continue
            n_sizes += array.ndim
            sizes, content = facts.sizes(value), facts.integers(value)
            if sizes is not None:
                assert len(sizes) == array.ndim, f"{value.name}: rank {len(sizes)}, observed {array.shape}"
                for size, number in zip(sizes, array.shape, strict=True):
                    # ONNX Runtime reduces an empty tensor to the shape that it had; what follows broadcasts with it.
                    if array.size or size != 1:
                        claims.append((f"dims of {value.name}", size, number))
            if content is not None:
                assert content.elements.shape == array.shape, f"{value.name}: elements of {content.elements.shape}"
                pairs = zip(content.elements.reshape(-1).tolist(), array.reshape(-1).tolist(), strict=True)
                claims += [(f"elements of {value.name}", e, int(n)) for e, n in pairs if e is not None]
            if value.dtype is None and (dtype := facts.dtype(value)) is not None and array.dtype != object:
                assert dtype.numpy() == array.dtype, value.name
    for _, size, number in claims:
        if not isinstance(size, int) and is_opaque(size) and size.is_name:
            bound.setdefault(str(size), number)
    n_checked = 0
    for what, size, number in claims:
        if names_of(size) <= bound.keys():
            assert evaluate(size, bound) == number, f"{what}: {size} at {bindings}, observed {number}"
            n_checked += what.startswith("dims") and not is_opaque(size)
    return n_checked, n_sizes


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("batch", [0, 1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 5, 7])
def test_transformers_at_several_bindings(name: str, batch: int, length: int) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    del model.graph.value_info[:]
    program = capture_onnx(model)
    facts = analyze_shapes(program)
    ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 40
    observed = run_all(model, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    n_checked, n_sizes = check_claims(program, facts, observed, {"batch": batch, "length": length})
    assert not batch * length or n_checked == n_sizes, f"{n_checked} of {n_sizes} sizes known"


@pytest.mark.parametrize(("batch", "size"), [(1, 32), (3, 33), (2, 48)])
def test_convolutions_at_several_bindings(batch: int, size: int) -> None:
    model = onnx.load(MODELS / "cnn.onnx")
    image = model.graph.input[0]
    dims = image.type.tensor_type.shape.dim
    for axis, name in ((0, "B"), (2, "H"), (3, "W")):
        dims[axis].Clear()
        dims[axis].dim_param = name
    del model.graph.value_info[:]
    program = capture_onnx(model)
    facts = analyze_shapes(program)
    observed = run_all(model, {image.name: np.ones((batch, 3, size, size + 2), np.float32)})
    n_checked, n_sizes = check_claims(program, facts, observed, {"B": batch, "H": size, "W": size + 2})
    assert n_checked == n_sizes


VIEWS = """<ir_version: 10, opset_import: ["" : 21]>
views (float[A, B, 6] x, float[A, B, 1] z) => (float[m] y)
<int64[3] t1 = {0, -1, 3}, int64[2] t2 = {-1, 6}, int64[1] one = {1}, int64[1] two = {2}, int64[1] zero = {0},
 int64[1] minus = {-1}, int64[1] minus_two = {-2}, int64[1] huge = {9223372036854775807}, int64 s0 = {0},
 int64 s1 = {1}, int64[6] pads = {0, 1, 0, 0, 2, -1}, int64[3] repeats = {1, 2, 3},
 int64[2] halves = {2, 4}, int64[1] three = {3}>
{
  r1 = Reshape (x, t1)
  r2 = Reshape (x, t2)
  tr = Transpose <perm = [2, 0, 1]> (x)
  f = Flatten <axis = 2> (x)
  sl1 = Slice (x, one, huge, one)
  sl2 = Slice (x, minus_two, huge, one)
  sl3 = Slice (x, zero, minus, one)
  sl4 = Slice (x, one, minus, one, two)
  sl5 = Slice (x, zero, three, one)
  shape = Shape (x)
  a = Gather <axis = 0> (shape, s0)
  b = Gather <axis = 0> (shape, s1)
  a1 = Unsqueeze (a, zero)
  b1 = Unsqueeze (b, zero)
  sl6 = Slice (x, zero, b1, one)
  sl7 = Slice (x, zero, a1, one)
  ab = Mul (a1, b1)
  target = Concat <axis = 0> (ab, two, minus)
  r3 = Reshape (x, target)
  half = Div (ab, two)
  less = Sub (a1, one)
  toward_zero = Div (less, three)
  windows = Add (toward_zero, one)
  counted = Expand (one, windows)
  bigger = Max (half, a1)
  smaller = Min (a1, b1)
  same = Equal (a1, a1)
  cond = Greater (ab, minus)
  chosen = Where (cond, a1, b1)
  filled = ConstantOfShape (target_shape)
  target_shape = Concat <axis = 0> (a1, one, chosen)
  rows = Range (s0, b, s1)
  down = Range (b, s0, s_minus)
  s_minus = Neg (s1)
  p = Pad (x, pads)
  ti = Tile (x, repeats)
  sp1, sp2 = Split <axis = 2> (x, halves)
  e = Expand (z, shape)
  sum = Add (x, z)
  red = ReduceSum <keepdims = 0> (x, one)
  mm = MatMul (tr, sum)
  nz = NonZero (x)
  nzt = Transpose (nz)
  nz2 = Mul (nz, nz)
  again = Shape (nz)
  flat = Reshape (x, minus)
  y = Add (flat, flat)
}
"""


@pytest.mark.parametrize(("a", "b"), [(1, 1), (2, 3), (3, 2), (0, 2), (1, 0), (4, 4)])
def test_views_and_integer_arithmetic(a: int, b: int) -> None:
    lines = VIEWS.splitlines()
    order = [i for i, line in enumerate(lines) if " target_shape = " in line or " s_minus = " in line]
    for index in order:  # written where they read best, moved to where they are needed
        lines.insert(lines.index("  chosen = Where (cond, a1, b1)") + 1, lines.pop(index))
    model = onnx.parser.parse_model("\n".join(x for x in lines if b or "r1 =" not in x))
    model.graph.node.remove(next(n for n in model.graph.node if n.output[0] == "mm"))
    program = capture_onnx(model)
    facts = analyze_shapes(program)
    rng = np.random.default_rng(0)
    feeds = {
        "x": rng.standard_normal((a, b, 6)).astype(np.float32),
        "z": rng.standard_normal((a, b, 1)).astype(np.float32),
    }
    if a * b == 0:  # ONNX Runtime refuses to infer -1 there
        kept = [n for n in model.graph.node if n.output[0] not in ("r1", "r3")]
        del model.graph.node[:]
        model.graph.node.extend(kept)
    observed = run_all(model, feeds)
    n_checked, n_sizes = check_claims(program, facts, observed, {"A": a, "B": b})
    assert n_sizes - n_checked <= 4, "only what NonZero finds is unknown"


@pytest.fixture(scope="module")
def recorded_cases() -> list[backend.Case]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about the infinities that the tests are made of
        cases = [*backend.installed_node_cases(), *backend.installed_file_cases()]
    return [c for c in cases if c.data_sets and all(isinstance(v, np.ndarray) for s in c.data_sets[0] for v in s)]


@pytest.mark.parametrize("form", ["symbolic inputs", "constant inputs"])
def test_operators_of_the_standard(form: str, recorded_cases: list[backend.Case]) -> None:
    """Every operator's own test models: inputs with named dims, or all of them constants."""
    n_known = n_all = n_cases = 0
    for case in recorded_cases:
        inputs, outputs = case.data_sets[0]
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        if len(inputs) != len(model.graph.input) or not all(v.type.HasField("tensor_type") for v in model.graph.input):
            continue
        bindings = _change_inputs(model, inputs, form)
        for output in model.graph.output:
            output.type.tensor_type.ClearField("shape")
        del model.graph.value_info[:]
        try:
            program = capture_onnx(model)
        except InputError:
            continue
        observed = dict(zip([o.name for o in model.graph.output], outputs, strict=False))
        try:
            known, total = check_claims(program, analyze_shapes(program), observed, bindings)
        except AssertionError as error:
            raise AssertionError(f"{case.name}: {error}") from error
        n_cases, n_known, n_all = n_cases + 1, n_known + known, n_all + total
    assert n_cases > 1300
    # What is left: the contents of inputs (in the first form), results that depend on data, a few rare operators.
    assert n_known > (0.84 if form == "constant inputs" else 0.62) * n_all, (n_cases, n_known, n_all)


def _change_inputs(model: onnx.ModelProto, arrays: list[np.ndarray], form: str) -> dict[str, int]:
    """Give every dim of the inputs a name, or bake the inputs in. Returns the sizes of the names."""
    graph = model.graph
    if form == "constant inputs":
        for value, array in zip(graph.input, arrays, strict=True):
            graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
        del graph.input[:]
        return {}
    bindings = {}
    for value, array in zip(graph.input, arrays, strict=True):
        shape = value.type.tensor_type.shape
        shape.ClearField("dim")
        for axis, size in enumerate(array.shape):
            name = f"d_{value.name.replace('.', '_')}_{axis}"
            shape.dim.add().dim_param = name
            bindings[name] = size
    return bindings


RECORDS = """<ir_version: 10, opset_import: ["" : 21]>
records (float[N, 4] x) => (float[P, Q] y)
<float[{claimed}, 4] a, float[7, Q] b, float[4] w = {{1, 2, 3, 4}}>
{{
  a = Mul (x, w)
  b = local.unknown (a)
  y = Relu (b)
}}
<domain: "local", opset_import: ["" : 21]>
unknown (p) => (q) {{ q = Identity (p) }}
"""


def _records(claimed: str) -> tuple[Program, ShapeAnalysis]:
    text = RECORDS.format(claimed=claimed).replace('["" : 21]>\nrecords', '["" : 21, "local" : 1]>\nrecords')
    program = capture_onnx(onnx.parser.parse_model(text))
    return program, analyze_shapes(program)


def _named(program: Program, name: str) -> Any:
    return next(o for n in program.graph for o in n.outputs if o.name == name)


def test_sizes_that_only_an_empty_input_leaves_open() -> None:
    """`-1` beside a zero that is allowed is inferred from the other dims, and a slice cannot end before it begins."""
    program = capture_onnx(
        onnx.parser.parse_model(
            """<ir_version: 10, opset_import: ["" : 21]> f (float[B,C,T] x) => (float[B,C,N] y, float[B,C,M] z)
            <int64[1] open = {-1}, int64[1] zero = {0}, int64[1] last = {2}> {
              b = Shape <start = 0, end = 1> (x)
              c = Shape <start = 1, end = 2> (x)
              t = Shape <start = 2, end = 3> (x)
              n = Mul (b, c)
              merged = Concat <axis = 0> (n, t)
              m = Reshape <allowzero = 1> (x, merged)
              split = Concat <axis = 0> (b, c, open)
              y = Reshape <allowzero = 1> (m, split)
              z = Slice (x, zero, open, last)
            }"""
        )
    )
    found = {}
    for no_zeros in (False, True):
        facts = analyze_shapes(program, no_zeros=no_zeros)
        found[no_zeros] = [str(facts.shape(_named(program, name))) for name in "yz"]
    assert found == {False: ["(B, C, N)", "(B, C, max(0, T - 1))"], True: ["(B, C, T)", "(B, C, T - 1)"]}


def test_a_record_fills_in_what_no_rule_tells() -> None:
    program, facts = _records("N")
    assert not facts.contradictions
    assert str(facts.shape(_named(program, "b"))) == "(7, Q)"


def test_one_wrong_record_discredits_all() -> None:
    program, facts = _records("1")
    assert [v.name for v in facts.contradictions] == ["a"]
    assert facts.shape(_named(program, "b")) is None
    assert record_shapes(program, facts) > 0
    a = _named(program, "a")
    assert [d if isinstance(d, int) else d.value for d in a.shape] == ["N", 4], "what follows from the inputs is kept"


def test_recorded_shapes_are_completed() -> None:
    model = onnx.load(MODELS / "decoder.onnx")
    del model.graph.value_info[:]
    program = capture_onnx(model)
    facts = analyze_shapes(program)
    assert record_shapes(program, facts) > 100
    assert record_shapes(program, facts) == 0, "there is nothing left to write"
    missing = [o.name for n in program.graph for o in n.outputs if o.shape is None or o.type is None]
    assert not missing


def test_a_branch_that_cannot_run_is_found() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]> f (bool c, float[4] v, float[N] x) => (float[M] y)
    <int64[1] axes = {0}, int64[1] one = {1}>
    {
      s = Shape (v)
      n = ReduceProd <keepdims = 1> (s)
      w = Reshape (v, n)
      d = Shape (w)
      e = Equal (d, one)
      never = Squeeze (e, axes)
      y = If (CONDITION) <then_branch = g () => (float[A] p) { u = Squeeze (w, AXES) p = Add (x, u) },
                          else_branch = h () => (float[B] r) { r = Add (x, w) }>
    }"""
    found = {}
    for condition in ("c", "never"):
        for axes in ("axes", ""):
            model = text.replace("CONDITION", condition).replace("(w, AXES)", f"(w, {axes})" if axes else "(w)")
            facts = analyze_shapes(capture_onnx(onnx.parser.parse_model(model)))
            found[condition, axes] = facts.conflict.op_type if facts.conflict is not None else None
    # Without axes, and in a branch that the shapes say is not taken, there is nothing amiss.
    assert found == {("c", "axes"): "Squeeze", ("c", ""): None, ("never", "axes"): None, ("never", ""): None}


def test_time_is_linear() -> None:
    """The work on a chain grows with its length, and no recursion is met."""
    counts = []
    for length in (2_000, 20_000):
        nodes = [onnx.helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(length)]
        x = onnx.helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, ["N", 4])
        y = onnx.helper.make_tensor_value_info(f"v{length}", onnx.TensorProto.FLOAT, ["N", 4])
        graph = onnx.helper.make_graph(nodes, "chain", [x], [y])
        program = capture_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)]))
        facts = ShapeAnalysis(program)
        last = program.graph.outputs[0]
        assert str(facts.shape(last)) == "(N, 4)"
        counts.append(length)
    assert counts == [2_000, 20_000]
