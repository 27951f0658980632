"""Verification itself: comparison, inputs, the float64 replay, regions, and near-identical models to refute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import max_abs_error, same_bits, tolerance_of, within_tolerance
from opgraft.ir.float64 import to_float64
from opgraft.ir.inputs import InputCase, UnsupportedInput, input_cases, integer_domain
from opgraft.ir.program import Program
from opgraft.ir.regions import RegionRecorder
from opgraft.ir.save import model_bytes
from opgraft.ir.verify import Outcome, Verification, Verifier, verify_region
from opgraft.passes._pass import PassContext
from opgraft.passes._pipeline import Pipeline

MODELS = Path(__file__).parent / "models"
NAN, INF = np.nan, np.inf


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor() as shared:
        yield shared


def proto(text: str, opset: int = 18) -> bytes:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    return bytes(model.SerializeToString())


def program(text: str, opset: int = 18) -> Program:
    """With the types of all values, as exporters record them."""
    return capture_onnx(onnx.shape_inference.infer_shapes(onnx.load_from_string(proto(text, opset))))


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# -- comparison -------------------------------------------------------------------------------------------------------


def differ(left: Any, right: Any) -> bool:
    found = same_bits({"y": left}, {"y": right})
    assert bool(found) == bool(same_bits({"y": right}, {"y": left}))
    return bool(found)


def test_every_nan_is_one_value_but_zeros_are_two() -> None:
    quiet = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert not differ(f32(NAN, 1), np.concatenate([quiet, f32(1)]))
    assert differ(f32(0.0), f32(-0.0))
    assert differ(f32(NAN), f32(0))
    assert differ(f32(INF), f32(-INF))
    assert not differ(f32(INF, -0.0), f32(INF, -0.0))
    assert differ(f32(1), np.nextafter(f32(1), f32(2)))


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float16])
def test_short_floats(dtype: Any) -> None:
    values = np.array([0.5, -1, 2], dtype)
    assert not differ(values, values.copy())
    assert differ(values, np.array([0.5, -1, 3], dtype))
    assert differ(np.array([0.0], dtype), np.array([-0.0], dtype))
    assert not differ(np.array([NAN], dtype), np.array([-NAN], dtype))
    # One unit in the last place of the largest number is rounding.
    ulp = float(ml_dtypes.finfo(dtype).eps)
    assert not within_tolerance({"y": np.array([1], dtype)}, {"y": np.array([1 + ulp], dtype)}, {})
    assert not within_tolerance({"y": values}, {"y": values.copy()}, {})
    assert within_tolerance({"y": values}, {"y": np.array([0.5, -1, 3], dtype)}, {})


def test_type_shape_and_presence_count() -> None:
    assert differ(f32(1), np.array([1.0]))
    assert differ(f32(1), np.array(1, np.float32))
    assert differ(np.array([1], np.int32), np.array([1], np.int64))
    assert same_bits({"y": f32(1)}, {})[0].kind == "is missing"
    assert within_tolerance({"y": f32(1)}, {"y": np.array([1.0])}, {"y": 100.0})
    assert within_tolerance({"y": f32(1)}, {}, {})
    assert not differ(None, None)
    assert differ(None, f32(1))


def test_sequences_strings_and_complex_numbers() -> None:
    assert not differ([f32(1), f32(2, 3)], [f32(1), f32(2, 3)])
    assert differ([f32(1), f32(2, 3)], [f32(1), f32(2, 4)])
    assert differ([f32(1)], [f32(1), f32(1)])
    assert differ(np.array(["a"], object), np.array(["b"], object))
    assert not differ(np.array(["a"], object), np.array(["a"], object))
    assert differ(np.array([1 + 1j]), np.array([1 - 1j]))
    assert within_tolerance({"y": [f32(1)]}, {"y": [f32(2)]}, {"y": 10.0})


def test_numeric_contract_allows_rounding_and_no_more() -> None:
    left = f32(1, 100)
    assert not within_tolerance({"y": left}, {"y": np.nextafter(left, f32(0))}, {})
    assert within_tolerance({"y": left}, {"y": left + f32(0, 0.01)}, {})
    assert not within_tolerance({"y": left}, {"y": left + f32(0, 0.01)}, {"y": 0.0026})
    assert tolerance_of(0.5, left) == pytest.approx(2.0, rel=1e-3)
    assert within_tolerance({"y": f32(1, NAN)}, {"y": f32(1, 0)}, {"y": 1e9})
    assert within_tolerance({"y": f32(1, INF)}, {"y": f32(1, 3e38)}, {"y": 1e9})
    assert within_tolerance({"i": np.array([5])}, {"i": np.array([6])}, {"i": 10.0})


def test_error_looks_at_finite_numbers_and_notes_the_rest() -> None:
    assert max_abs_error(f32(1, NAN, INF), f32(1.5, NAN, INF)) == 0.5
    assert max_abs_error(f32(1, NAN), f32(1, 2)) == INF
    assert max_abs_error(f32(INF), f32(-INF)) == INF
    assert max_abs_error(f32(), f32()) == 0.0
    assert max_abs_error(f32(1), f32(1, 2)) == INF


# -- inputs -----------------------------------------------------------------------------------------------------------


def cases_of(text: str) -> dict[str, InputCase]:
    return {case.name: case for case in input_cases(program(text))}


def test_table_bounds_indices_and_the_edges_are_visited() -> None:
    text = """g (int64[B, T] ids) => (float[B, T, 2] y) <float[7, 2] table = {1,2,3,4,5,6,7,8,9,10,11,12,13,14}> {
        c = Cast<to = 7>(ids)
        y = Gather<axis = 0>(table, c)
    }"""
    domain = integer_domain(program(text).graph.inputs[0])
    assert (domain.low, domain.high, domain.is_flag) == (0, 7, False)
    arrays = [case.arrays["ids"] for case in input_cases(program(text))]
    assert all(a.min() >= 0 and a.max() < 7 for a in arrays)
    edges = next(c.arrays["ids"] for c in input_cases(program(text)) if c.name.startswith("edges"))
    assert {edges.min(), edges.max()} == {0, 6}


def test_masks_are_padded_on_both_sides_and_fully() -> None:
    text = """g (float[B, T] x, int64[B, T] mask) => (float[B, T] y) { m = Cast<to = 1>(mask) y = Mul(x, m) }"""
    cases = cases_of(text)
    right = cases["padded right, batch 2, others 8"].arrays["mask"]
    left = cases["padded left, batch 2, others 8"].arrays["mask"]
    full = cases["first row masked, batch 2, others 8"].arrays["mask"]
    assert (right[:, 0] == 1).all()
    assert (right[:, -1] == 0).all()
    assert (left[:, 0] == 0).all()
    assert (left[:, -1] == 1).all()
    assert full.sum(axis=1).tolist() == [0, 8]


def test_dims_of_one_name_agree_and_unnamed_dims_get_sizes() -> None:
    cases = input_cases(program("g (float[B, T] x, float[T, ?] w, float[N] z) => (float[B, ?] y) { y = MatMul(x, w) }"))
    shapes = {case.name: {k: a.shape for k, a in case.arrays.items()} for case in cases}
    first = shapes["random, batch 2, others 8"]
    assert first["x"] == (2, 8)
    assert first["w"][0] == 8
    assert {s["x"][0] for s in shapes.values()} >= {1, 2, 3}
    assert {s["x"][1] for s in shapes.values()} >= {1, 5, 8, 16}


def test_extreme_numbers_are_marked_and_seeds_repeat() -> None:
    text = "g (float[B, 8] x) => (float[B, 8] y) { y = Neg(x) }"
    cases = cases_of(text)
    wild = [c for c in cases.values() if not c.is_ordinary]
    assert any(np.isnan(c.arrays["x"]).any() and np.isinf(c.arrays["x"]).any() for c in wild)
    assert all(np.isfinite(c.arrays["x"]).all() for c in cases.values() if c.is_ordinary)
    zeros = cases["signed zeros, batch 2, others 8"].arrays["x"]
    assert (np.signbit(zeros) & (zeros == 0)).any()
    again = cases_of(text)
    assert all(np.array_equal(c.arrays["x"], again[n].arrays["x"], equal_nan=True) for n, c in cases.items())


def test_defaults_need_no_input_and_sequences_have_none() -> None:
    text = "g (float[2] x, float[2] d) => (float[2] y) <float[2] d = {1, 2}> { y = Add(x, d) }"
    assert set(input_cases(program(text))[0].arrays) == {"x"}
    with pytest.raises(UnsupportedInput, match="tensor"):
        input_cases(program("g (seq(float[N]) s) => (float y) { i = Constant<value_int = 0>() y = SequenceAt(s, i) }"))


# -- float64 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reference"),
    [
        ("y = MatMul(x, w)", lambda x, w: x @ w),
        ("t = Add(x, w) y = Exp(t)", lambda x, w: np.exp(x + w)),
        ("c = Constant<value_float = 0.1>() t = Mul(x, c) y = Add(t, w)", lambda x, w: x * float(np.float32(0.1)) + w),
        ("y = ReduceSum<keepdims = 1>(x)", lambda x, w: x.sum(keepdims=True)),
        ("h = Cast<to = 1>(x) y = Sub(h, w)", lambda x, w: x - w),
        ("y = Softmax<axis = -1>(x)", lambda x, w: np.exp(x) / np.exp(x).sum(-1, keepdims=True)),
    ],
)
def test_float64_replay_is_numpys(body: str, reference: Any, executor: Executor) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 4, 4)).astype(np.float32)
    text = f"g (float[4, 4] x, float[4, 4] w) => (float[A, C] y) {{ {body} }}"
    wide = Program(to_float64(program(text).model))
    found = executor.run_once(model_bytes(wide), {"x": x.astype(np.float64), "w": w.astype(np.float64)})["y"]
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, reference(x.astype(np.float64), w.astype(np.float64)), rtol=1e-13)


def test_float64_leaves_the_original_alone() -> None:
    source = program("g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Add(x, c) }")
    before = model_bytes(source)
    to_float64(source.model)
    assert model_bytes(source) == before


# -- regions ----------------------------------------------------------------------------------------------------------


def record(source: Program, passes: str) -> RegionRecorder:
    recorder = RegionRecorder(source)
    context = PassContext(source)
    context.recorder = recorder
    Pipeline.parse(passes).run(source, context)
    return recorder


def test_both_sides_of_a_region_start_at_one_cut(executor: Executor) -> None:
    source = program(
        """g (float[B, 4] x) => (float[B, 4] y) {
            p = Transpose<perm = [1, 0]>(x)
            q = Transpose<perm = [1, 0]>(p)
            y = Neg(q)
        }"""
    )
    (region,) = record(source, "compose-transposes").regions[:1]
    assert [v.name for v in region.before.graph.inputs] == [v.name for v in region.after.graph.inputs]
    assert [v.name for v in region.before.graph.outputs] == [v.name for v in region.after.graph.outputs]
    assert [n.op_type for n in region.before.graph] == ["Transpose", "Transpose", "Identity"]
    found = verify_region(region.before, region.after, region.contract, executor)
    assert found.outcome is Outcome.VERIFIED


@pytest.mark.parametrize("model", ["cnn", "encoder", "decoder"])
def test_no_right_rewrite_is_accused_by_its_region(model: str, executor: Executor) -> None:
    """Among them the merging of equal nodes, whose sides share most of the graph."""
    source = capture_onnx(MODELS / f"{model}.onnx")
    for region in record(source, "eliminate-common-subexpressions, (eliminate-identity, fuse-div-mul)").regions:
        found = verify_region(region.before, region.after, region.contract, executor)
        assert found.outcome is not Outcome.REFUTED, f"{region.pass_name} at {region.site}: {found.reason}"


# -- near-identical models --------------------------------------------------------------------------------------------

ATTENTION = """g (float[B, T, 8] x, int64[B, T] mask) => (float[B, T, 8] y)
    <float[8, 8] wq, float[8, 8] wk, float[8, 8] wv> {{
    q = MatMul(x, wq)
    k = MatMul(x, wk)
    v = MatMul(x, wv)
    kt = Transpose<perm = [0, 2, 1]>(k)
    s = MatMul(q, kt)
    scale = Constant<value_float = {scale}>()
    scaled = Mul(s, scale)
    f = Cast<to = 1>(mask)
    one = Constant<value_float = 1.0>()
    inverse = Sub(one, f)
    low = Constant<value_float = {low}>()
    bias = Mul(inverse, low)
    axes = Constant<value_ints = [1]>()
    wide = Unsqueeze(bias, axes)
    masked = Add(scaled, wide)
    p = Softmax<axis = {axis}>(masked)
    {tail}
}}"""


def attention(
    scale: float = 0.35355338, low: float = -10000.0, axis: int = -1, tail: str = "y = MatMul(p, v)"
) -> bytes:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]>\n'
        + ATTENTION.format(scale=scale, low=low, axis=axis, tail=tail).replace(
            "<float[8, 8] wq, float[8, 8] wk, float[8, 8] wv>", ""
        )
    )
    rng = np.random.default_rng(7)
    for name in ("wq", "wk", "wv"):
        weights = rng.standard_normal((8, 8)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weights, name))
    return bytes(model.SerializeToString())


def compare(original: bytes, candidate: bytes, contract: str, executor: Executor) -> Verification:
    return Verifier(capture_onnx(original), original, executor).verify(candidate, contract)


RIGHT = attention(tail="r = Mul(p, one) y = MatMul(r, v)")
WRONG = {
    "scale x1.001": attention(scale=0.35355338 * 1.001),
    "scale x1.0001": attention(scale=0.35355338 * 1.0001),
    "mask of -100": attention(low=-10.0),
    "softmax over queries": attention(axis=1),
    "NaN hidden": attention(tail="m = MatMul(p, v) n = IsNaN(m) z = Sub(one, one) y = Where(n, z, m)"),
    "-0.0 lost": attention(tail="m = MatMul(p, v) z = Sub(one, one) n = Neg(m) r = Sub(z, n) y = Relu(r)"),
    "large values clipped": attention(tail="m = MatMul(p, v) hi = Constant<value_float = 50.0>() y = Min(m, hi)"),
    "half precision inside": attention(tail="h = Cast<to = 10>(p) r = Cast<to = 1>(h) y = MatMul(r, v)"),
    "transposed": attention(tail="t = Transpose<perm = [0, 2, 1]>(p) y = MatMul(t, v)"),
    "added epsilon": attention(tail="e = Constant<value_float = 1e-3>() m = MatMul(p, v) y = Add(m, e)"),
    "first batch row only": attention(
        tail="m = MatMul(p, v) z = Constant<value_ints = [0]>() o = Constant<value_ints = [1]>()"
        " f0 = Slice(m, z, o, z) n = Shape(m) y = Expand(f0, n)"
    ),
    "length up to 8 only": attention(
        tail="m = MatMul(p, v) z = Constant<value_ints = [0]>() e = Constant<value_ints = [8]>()"
        " o = Constant<value_ints = [1]>() y = Slice(m, z, e, o)"
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_near_identical_model_is_refuted(kind: str, executor: Executor) -> None:
    found = compare(attention(), WRONG[kind], "numeric", executor)
    assert found.outcome is Outcome.REFUTED
    assert found.reason
    assert found.failing_case is not None


def test_right_model_is_verified(executor: Executor) -> None:
    for contract in ("exact", "numeric"):
        found = compare(attention(), RIGHT, contract, executor)
        assert found.outcome is Outcome.VERIFIED, found.reason
        assert len(found.cases) > 8
    reordered = attention(tail="m = MatMul(p, x) y = MatMul(m, wv)")
    found = compare(attention(), reordered, "numeric", executor)
    assert found.outcome is not Outcome.UNVERIFIED
    assert compare(attention(), reordered, "exact", executor).outcome is Outcome.REFUTED


def test_interface_must_stay(executor: Executor) -> None:
    original = proto("g (float[B, 4] x) => (float[B, 4] y) { y = Tanh(x) }")
    for other in (
        "g (float[B, 4] x) => (float[B, 4] z) { z = Tanh(x) }",
        "g (float[B, 4] z) => (float[B, 4] y) { y = Tanh(z) }",
        "g (float[B, 4] x) => (double[B, 4] y) { t = Tanh(x) y = Cast<to = 11>(t) }",
        "g (float[2, 4] x) => (float[2, 4] y) { y = Tanh(x) }",
    ):
        assert compare(original, proto(other), "numeric", executor).outcome is Outcome.REFUTED


def test_which_cases_run_is_fixed(executor: Executor) -> None:
    text = proto("g (float[B, T] x, int64[B, T] m) => (float[B, T] y) { f = Cast<to = 1>(m) y = Mul(x, f) }")
    names = compare(text, text, "exact", executor).cases
    sizes = {name.partition(", ")[2] for name in names}
    assert len(sizes) >= 4
    assert sum(name.endswith("batch 2, others 8") for name in names) == 7


def convolution(scale: np.ndarray, fold: bool, factor: float = 1.0) -> bytes:
    """Conv, then Mul by a scale per channel; or with the scale in the weights."""
    text = "c = Conv(x, w) y = Identity(c)" if fold else "c = Conv(x, w) y = Mul(c, s)"
    model = onnx.load_from_string(proto(f"g (float[B, 3, 16, 16] x) => (float[B, 4, 14, 14] y) {{ {text} }}"))
    weights = np.random.default_rng(3).standard_normal((4, 3, 3, 3)).astype(np.float32)
    if fold:
        weights = (weights * scale * np.float32(factor)).astype(np.float32)
    else:
        model.graph.initializer.append(onnx.numpy_helper.from_array(scale.reshape(1, 4, 1, 1), "s"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    return bytes(model.SerializeToString())


def test_rounding_is_allowed_for_where_the_runtime_has_no_float64(executor: Executor) -> None:
    scale = np.array([1.7, 0.3, -0.9, 3.3], np.float32).reshape(4, 1, 1, 1)
    original = convolution(scale, fold=False)
    found = compare(original, convolution(scale, fold=True), "numeric", executor)
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert 0 < found.max_abs_error < found.tolerance
    assert "one unit in the last place" in found.float64_source
    assert compare(original, convolution(scale, fold=True), "exact", executor).outcome is Outcome.REFUTED
    off = convolution(scale, fold=True, factor=1.00002)
    assert compare(original, off, "numeric", executor).outcome is Outcome.REFUTED


def test_rounding_is_allowed_for_where_nothing_but_weights_is_float(executor: Executor) -> None:
    """An embedding before a convolution: integers in, and no float64 convolution in the runtime."""

    def model(fold: bool, factor: float = 1.0) -> bytes:
        tail = "y = Conv(t, w)" if fold else "c = Conv(t, w) y = Mul(c, s)"
        head = "e = Gather(table, ids) t = Transpose<perm = [0, 2, 1]>(e)"
        text = f"g (int64[B, 16] ids) => (float[B, 4, D] y) {{ {head} {tail} }}"
        built = onnx.load_from_string(proto(text))
        rng = np.random.default_rng(5)
        table = rng.standard_normal((9, 6)).astype(np.float32)
        weights = rng.standard_normal((4, 6, 3)).astype(np.float32)
        scale = np.array([1.7, 0.3, -0.9, 3.3], np.float32)
        if fold:
            weights = (weights * scale.reshape(4, 1, 1) * np.float32(factor)).astype(np.float32)
        else:
            built.graph.initializer.append(onnx.numpy_helper.from_array(scale.reshape(1, 4, 1), "s"))
        for name, array in (("table", table), ("w", weights)):
            built.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return bytes(built.SerializeToString())

    found = compare(model(False), model(True), "numeric", executor)
    assert found.outcome is Outcome.VERIFIED, found.reason
    assert "its weights" in found.float64_source
    assert compare(model(False), model(True, factor=1.00002), "numeric", executor).outcome is Outcome.REFUTED
