"""Constant folding: the bits of the runtime for every type, and everything that must not be folded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import onnx.parser
import pytest
from opgraft.backends.onnxruntime.evaluator import ConstantEvaluator
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.errors import ExecutionError
from opgraft.ir.program import Program, constant_tensor
from opgraft.ir.save import model_bytes
from opgraft.passes._pass import PassContext
from opgraft.passes._pipeline import Pipeline
from opgraft.passes.simplify.fold_constants import FoldConstants

MODELS = Path(__file__).parent / "models"


class CountingEvaluator:
    """The evaluator, and the models it was given."""

    def __init__(self, evaluate: ConstantEvaluator) -> None:
        self.evaluate = evaluate
        self.models: list[onnx.ModelProto] = []

    def __call__(self, model: bytes) -> dict[str, np.ndarray]:
        self.models.append(onnx.load_model_from_string(model))
        return self.evaluate(model)


@pytest.fixture(scope="module")
def evaluator() -> Iterator[ConstantEvaluator]:
    with ConstantEvaluator() as evaluate:
        evaluate.start()
        yield evaluate


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    with Executor() as runs:
        yield runs


@pytest.fixture
def counting(evaluator: ConstantEvaluator) -> CountingEvaluator:
    return CountingEvaluator(evaluator)


def parse(text: str, opset: int = 21) -> Program:
    return capture_onnx(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n' + text))


def fold(program: Program, evaluate: Any, pipeline: str = "fold-constants") -> PassContext:
    context = PassContext(program, evaluate=evaluate, keep_near_misses=True)
    Pipeline.parse(pipeline).run(program, context)
    return context


def op_types(program: Program) -> list[str]:
    return [n.op_type for n in program.graph]


def model_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[str]) -> onnx.ModelProto:
    graph = onnx.helper.make_graph(
        nodes,
        "constants",
        [],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


DTYPES = [
    *(np.float32, np.float64, np.float16, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64),
    *(np.uint64, np.bool_, ml_dtypes.bfloat16, np.object_),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_bits_of_every_type_are_the_runtimes(dtype: Any, counting: CountingEvaluator, executor: Executor) -> None:
    """Data movement, and arithmetic where the runtime has it, against the unfolded model with optimizations off."""
    rng = np.random.default_rng(3)
    if dtype is np.object_:
        x = np.array([["a", "", "bc"], ["\u00e9", "d", "e f"]], dtype=object)
    else:
        x = (rng.standard_normal((2, 3)) * 3).astype(dtype)
    nodes = [onnx.helper.make_node("Transpose", ["x"], ["moved"]), onnx.helper.make_node("Identity", ["moved"], ["y"])]
    outputs = ["y"]
    # Half precision is only moved: the runtime computes chains of it in float32 and drops the roundings in between.
    if dtype in (np.float32, np.float64):
        nodes += [
            onnx.helper.make_node("MatMul", ["x", "moved"], ["product"]),
            onnx.helper.make_node("Softmax", ["product"], ["soft"]),
            onnx.helper.make_node("Exp", ["soft"], ["exp"]),
            onnx.helper.make_node("Div", ["exp", "product"], ["z"]),
        ]
        x[0, 0], x[1, 1] = -0.0, np.nan
        outputs.append("z")
    model = model_of(nodes, {"x": x}, outputs)
    for output in model.graph.output:
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, ["A", "B"]))
    expected = executor.run_once(model.SerializeToString(), {})
    program = capture_onnx(model)
    fold(program, counting)
    assert set(op_types(program)) <= {"Identity"}
    assert len(counting.models) == (dtype not in (np.int32, np.int64, np.bool_))
    actual = executor.run_once(model_bytes(program), {})
    for name, wanted in expected.items():
        assert actual[name].dtype == wanted.dtype
        if dtype is np.object_:
            assert np.array_equal(actual[name], wanted)
        else:
            assert actual[name].tobytes() == wanted.tobytes(), name


SMALL_TYPES = ["INT4", "UINT4", "FLOAT8E4M3FN", "FLOAT8E5M2"]


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_small_types_are_computed_and_stay_small(name: str, counting: CountingEvaluator, executor: Executor) -> None:
    """Cast makes a constant of the small type; DequantizeLinear, which would make it large again, is left."""
    kind = onnx.TensorProto.DataType.Value(name)
    x = (np.random.default_rng(5).random((3, 5)) * 6).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["q"], to=kind),
        onnx.helper.make_node("DequantizeLinear", ["q", "scale"], ["y"]),
    ]
    model = model_of(nodes, {"x": x, "scale": np.array(0.5, np.float32)}, ["y"])
    model.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(1, [3, 5]))
    expected = executor.run_once(model.SerializeToString(), {})["y"]
    program = capture_onnx(model)
    fold(program, counting)
    assert op_types(program) == ["DequantizeLinear"]
    tensor = constant_tensor(program.graph[0].inputs[0])
    assert tensor is not None
    assert tensor.dtype.name == name
    assert executor.run_once(model_bytes(program), {})["y"].tobytes() == expected.tobytes()


def test_an_output_of_a_type_that_cannot_be_copied_stays(counting: CountingEvaluator) -> None:
    text = "f () => (int4[2] y) <float[2] w = {1, 2}> { y = Cast <to = 22> (w) }"
    assert not fold(parse(text), counting).rewrites


def test_one_session_however_many_regions(counting: CountingEvaluator) -> None:
    lines = [f"  c{i} = Sqrt (w{i})\n  y{i} = Add (x, c{i})\n" for i in range(50)]
    weights = ", ".join(f"float[2] w{i} = {{{i}, 1}}" for i in range(50))
    outputs = ", ".join(f"float[2] y{i}" for i in range(50))
    program = parse(f"many (float[2] x) => ({outputs}) <{weights}> {{\n{''.join(lines)}}}")
    context = fold(program, counting)
    assert len(context.rewrites) == 50
    assert len(counting.models) == 1
    assert op_types(program) == ["Add"] * 50


BAD = """bad (float[2] x, int64 i) => ({outputs})
<float[2] w = {{1, 2}}, int64[1] nine = {{9}}>
{{
{lines}
}}"""


@pytest.mark.parametrize("n_good", [1, 7, 20])
def test_a_failing_node_does_not_spoil_the_others(n_good: int, counting: CountingEvaluator) -> None:
    good = [f"  c{i} = {'Sqrt' if i % 2 else 'Exp'} (w)\n  y{i} = Add (x, c{i})" for i in range(n_good)]
    # Out of range: the runtime fails on it when it runs.
    bad = ["  b = Gather <axis = 0> (w, nine)\n  z = Add (x, b)"]
    outputs = ", ".join(f"float[2] y{i}" for i in range(n_good)) + ", float[2] z"
    program = parse(BAD.format(outputs=outputs, lines="\n".join([*good[: n_good // 2], *bad, *good[n_good // 2 :]])))
    context = fold(program, counting)
    assert Counter(op_types(program)) == {"Add": n_good + 1, "Gather": 1}
    assert len(counting.models) <= 2 + 2 * int(np.ceil(np.log2(n_good + 1)))
    assert any("indices" in str(m) for m in context.near_misses["fold-constants"]), "the runtime's reason is given"


def test_a_crash_of_the_evaluator_leaves_the_program_as_it_was() -> None:
    def crash(model: bytes) -> dict[str, np.ndarray]:
        raise ExecutionError("the child died")

    program = parse("f (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { a = Sqrt (w)\n y = Add (x, a) }")
    before = model_bytes(program)
    context = fold(program, crash)
    assert not context.rewrites
    assert model_bytes(program) == before


def test_a_runtime_that_always_fails_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def refuse(model: bytes) -> dict[str, np.ndarray]:
        calls.append(model)
        raise ExecutionError("no")

    lines = "\n".join(f"  c{i} = Sqrt (w{i})\n  y{i} = Add (x, c{i})" for i in range(200))
    weights = ", ".join(f"float[2] w{i} = {{{i}, 1}}" for i in range(200))
    outputs = ", ".join(f"float[2] y{i}" for i in range(200))
    text = f"many (float[2] x) => ({outputs}) <{weights}> {{\n{lines}}}"
    assert not fold(parse(text), refuse).rewrites
    assert len(calls) == 100
    calls.clear()
    monkeypatch.setattr("opgraft.passes.simplify._constant_model._MAX_SECONDS", 0.0)
    assert not fold(parse(text), refuse).rewrites
    assert len(calls) == 1, "the first attempt is always made"


def test_without_an_evaluator_integers_are_folded_and_floats_are_not() -> None:
    text = """f (float[2] x) => (float[2] y, int64[2] z)
    <float[2] w = {1, 2}, int64[2] a = {-7, 7}, int64[2] b = {2, -2}>
    { s = Sqrt (w)\n y = Add (x, s)\n q = Div (a, b)\n z = Abs (q) }"""
    program = parse(text)
    context = fold(program, None)
    assert op_types(program) == ["Sqrt", "Add", "Identity"]
    tensor = constant_tensor(program.graph[-1].inputs[0])
    assert tensor is not None
    assert tensor.numpy().tolist() == [3, 3], "division is toward zero"
    assert len(context.rewrites) == 1


INTEGERS = [
    *("Add", "Sub", "Mul", "Div", "Min", "Max", "Mod", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"),
]


@pytest.mark.parametrize("op_type", INTEGERS)
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_our_integers_are_the_runtimes(op_type: str, dtype: Any, executor: Executor) -> None:
    info = np.iinfo(dtype)
    rng = np.random.default_rng(7)
    a = np.concatenate([rng.integers(-9, 9, 40), [info.max, info.min + 1, 5, -5]]).astype(dtype)
    b = np.concatenate([rng.integers(-9, 9, 40), [1, 1, 3, 3]]).astype(dtype)
    b[b == 0] = 4
    if op_type in ("Add", "Mul"):
        b[-4:] = 0
    model = model_of([onnx.helper.make_node(op_type, ["a", "b"], ["y"])], {"a": a, "b": b}, ["y"])
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(bool if op_type[0] in "ELG" else dtype))
    model.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, [44]))
    expected = executor.run_once(model.SerializeToString(), {})["y"]
    program = capture_onnx(model)
    assert fold(program, None).rewrites
    tensor = constant_tensor(program.graph[-1].inputs[0])
    assert tensor is not None
    assert np.array_equal(tensor.numpy(), expected)
    assert tensor.numpy().dtype == expected.dtype


@pytest.mark.parametrize("number", [(1 << 62), -(1 << 62) - 1])
def test_integers_that_would_wrap_around_are_left_to_the_runtime(number: int, counting: CountingEvaluator) -> None:
    text = f"f () => (int64[1] y) <int64[1] a = {{{number}}}> {{ b = Add (a, a)\n y = Add (b, a) }}"
    program = parse(text)
    fold(program, None)
    assert op_types(program) == ["Add", "Add"]
    fold(program, counting)
    tensor = constant_tensor(program.graph[-1].inputs[0])
    with np.errstate(over="ignore"):
        wrapped = np.int64(number) * np.int64(3)
    assert tensor is not None
    assert tensor.numpy().tolist() == [int(wrapped)]


RANDOM = ["RandomNormal <shape = [2]> ()", "RandomUniform <shape = [2]> ()", "RandomNormalLike (w)", "Bernoulli (w)"]


@pytest.mark.parametrize("call", RANDOM)
def test_random_operators_are_not_folded(call: str, counting: CountingEvaluator) -> None:
    program = parse(f"f (float[2] x) => (float[2] y) <float[2] w = {{0.5, 0.5}}> {{ r = {call}\n y = Add (x, r) }}")
    assert not fold(program, counting).rewrites
    assert not counting.models


def test_a_random_operator_in_a_function_is_not_folded(counting: CountingEvaluator) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
    f (float[2] x) => (float[2] y) <float[2] w = {0.5, 0.5}> { r = local.draw (w)\n y = Add (x, r) }
    <domain: "local", opset_import: ["" : 21]> draw (p) => (q) { q = Bernoulli (p) }"""
    program = capture_onnx(onnx.parser.parse_model(text))
    assert not fold(program, counting).rewrites


def test_initializers_that_a_caller_may_override_are_not_folded(counting: CountingEvaluator) -> None:
    program = parse("f (float[2] x, float[2] w = {1, 2}) => (float[2] y) { a = Sqrt (w)\n y = Add (x, a) }")
    assert not fold(program, counting).rewrites


GROWTH = [
    ("ConstantOfShape (dims)", "float[4096] x"),
    ("Expand (one, dims)", "float[4096] x"),
    ("Tile (one, dims)", "float[4096] x"),
    ("Range (zero, many, step)", "float[4096] x"),
]


@pytest.mark.parametrize(("call", "given"), GROWTH)
@pytest.mark.parametrize("limit_kib", [8, 1024])
def test_little_is_not_made_much(call: str, given: str, limit_kib: int, counting: CountingEvaluator) -> None:
    text = f"""f ({given}) => (float[4096] y)
    <int64[1] dims = {{4096}}, float[1] one = {{1}}, float zero = {{0}}, float many = {{4096}}, float step = {{1}}>
    {{ big = {call}\n y = Add (x, big) }}"""
    program = parse(text)
    context = fold(program, counting, f"fold-constants{{max-output-kib={limit_kib}}}")
    # How many elements a Range of floats has, only the runtime knows.
    assert bool(context.rewrites) == (limit_kib == 1024 and "Range" not in call)


@pytest.mark.parametrize("shared", [False, True])
def test_a_large_result_must_replace_what_it_is_made_of(shared: bool, counting: CountingEvaluator) -> None:
    w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Neg", ["w"], ["n"]),
        onnx.helper.make_node("MatMul", ["x", "n"], ["a"]),
        onnx.helper.make_node("MatMul", ["a", "w" if shared else "n"], ["y"]),
    ]
    x = onnx.helper.make_tensor_value_info("x", 1, [2, 64])
    y = onnx.helper.make_tensor_value_info("y", 1, [2, 64])
    graph = onnx.helper.make_graph(nodes, "g", [x], [y], [onnx.numpy_helper.from_array(w, "w")])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    program = capture_onnx(model)
    fold(program, counting, "fold-constants{max-output-kib=1}")
    assert ("Neg" in op_types(program)) == shared


def test_large_weights_are_moved_when_they_are_written(counting: CountingEvaluator, executor: Executor) -> None:
    w = np.random.default_rng(0).standard_normal((300, 301)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        onnx.helper.make_node("Slice", ["t", "start", "end"], ["s"]),
        onnx.helper.make_node("Unsqueeze", ["s", "zero"], ["u"]),
        onnx.helper.make_node("MatMul", ["x", "u"], ["y"]),
    ]
    integers = {"start": np.array([1, 0]), "end": np.array([301, 299]), "zero": np.array([0])}
    x = onnx.helper.make_tensor_value_info("x", 1, [1, 2, 300])
    y = onnx.helper.make_tensor_value_info("y", 1, [1, 2, 299])
    initializers = [onnx.numpy_helper.from_array(v, k) for k, v in {"w": w, **integers}.items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", [x], [y], initializers),
        opset_imports=[onnx.helper.make_opsetid("", 21)],
        ir_version=10,
    )
    feed = {"x": np.random.default_rng(1).standard_normal((1, 2, 300)).astype(np.float32)}
    expected = executor.run_once(model.SerializeToString(), feed)["y"]
    program = capture_onnx(model)
    fold(program, counting)
    assert op_types(program) == ["MatMul"]
    assert not counting.models, "nothing was computed yet"
    actual = executor.run_once(model_bytes(program), feed)["y"]
    assert actual.tobytes() == expected.tobytes()


def test_folding_again_changes_nothing(counting: CountingEvaluator) -> None:
    for name in ("encoder", "decoder"):
        program = capture_onnx(MODELS / f"{name}.onnx")
        fold(program, counting)
        assert not fold(program, counting).rewrites


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_folded_shapes_accept_what_the_original_accepts(
    name: str, batch: int, length: int, counting: CountingEvaluator, executor: Executor
) -> None:
    path = MODELS / f"{name}.onnx"
    program = capture_onnx(path)
    context = fold(program, counting, "fold-constants, (fold-shapes), eliminate-dead-code")
    assert context.rewrites
    ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 40
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected, actual = executor.run_once(path, feed), executor.run_once(model_bytes(program), feed)
    for output, wanted in expected.items():
        assert actual[output].shape == wanted.shape
        assert actual[output].tobytes() == wanted.tobytes()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="negative"):
        FoldConstants(max_output_kib=-1)


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("length", [0, 1, 6])
@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_merged_shapes_accept_what_the_original_accepts(
    name: str, batch: int, length: int, counting: CountingEvaluator, executor: Executor
) -> None:
    """With one input only, whose dims nobody else names."""
    model = onnx.load(MODELS / f"{name}.onnx")
    model.graph.input[1].type.tensor_type.shape.dim[0].dim_param = "other_batch"
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_param = "other_length"
    program = capture_onnx(model)
    context = fold(program, counting, "infer-shapes, (fold-shapes), merge-equal-shapes, eliminate-dead-code")
    assert context.rewrites
    ids = np.arange(batch * length, dtype=np.int64).reshape(batch, length) % 40
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    expected = executor.run_once(model.SerializeToString(), feed)
    actual = executor.run_once(model_bytes(program), feed)
    for output, wanted in expected.items():
        assert actual[output].tobytes() == wanted.tobytes()
