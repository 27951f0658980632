"""Opset conversion: the reviewed table against the schemas, recorded backend tests, random models, atomicity."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.defs
import onnx.helper as oh
import onnx.parser
import onnx_ir
import onnxruntime as ort
import pytest
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import same_bits
from opgraft.ir.errors import UsageError
from opgraft.passes._pass import Contract, PassContext
from opgraft.passes._rewriter import is_random
from opgraft.passes.canonicalize.upgrade_opset import UpgradeOpset
from opgraft.passes.opset.convert import OpsetRefusal, convert_opset
from opgraft.passes.opset.reviewed import compatible_changes
from opgraft.passes.opset.schemas import NEWEST_OPSET, default_of, history
from opgraft.passes.opset.steps import DOWNGRADES, UPGRADES

sys.path.insert(0, str(Path(__file__).parent))
import opset_backend as backend
from golden_execution import kernels

FLOAT = onnx.TensorProto.FLOAT
INT64 = onnx.TensorProto.INT64


# The reviewed table


def _schema_changes() -> list[tuple[str, int, Any, Any]]:
    table: dict[str, list[Any]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in ("", "ai.onnx"):
            table.setdefault(schema.name, []).append(schema)
    return [
        (name, newer.since_version, older, newer)
        for name, schemas in sorted(table.items())
        for older, newer in itertools.pairwise(sorted(schemas, key=lambda s: s.since_version))
    ]


def _parameters(formals: Any) -> list[tuple[Any, Any]]:
    return [(p.option, p.name) for p in formals]


def _attributes(schema: Any) -> dict[str, tuple[Any, bool, Any]]:
    return {n: (a.type, a.required, default_of(schema, n)) for n, a in schema.attributes.items()}


def test_every_change_of_the_standard_is_adapted_or_reviewed() -> None:
    unread = [
        f"{name} {version}"
        for name, version, _, _ in _schema_changes()
        if ((name, version) in UPGRADES) == ((name, version) in compatible_changes())
    ]
    assert not unread, f"neither or both in an adapter and in the reviewed table: {unread}"
    assert len(_schema_changes()) > 400


@pytest.mark.parametrize("reason", ["types", "axes", "option"])
def test_reviewed_reasons_hold_in_the_schemas(reason: str) -> None:
    wrong = []
    for name, version, older, newer in _schema_changes():
        if compatible_changes().get((name, version)) != reason:
            continue
        old, new = _attributes(older), _attributes(newer)
        same_io = [o for o, _ in _parameters(older.inputs)] == [o for o, _ in _parameters(newer.inputs)]
        if reason in ("types", "axes"):
            fits = old == new and same_io and len(older.outputs) == len(newer.outputs)
        else:
            added = {n: a for n, a in new.items() if n not in old}
            relaxed = {n for n in old if n in new and old[n][1] and not new[n][1]}
            moved = {n for n in old if old[n] != new.get(n)} - relaxed
            fits = not any(required for _, required, _ in added.values()) and moved <= {"direction"}
            fits = fits and newer.min_input <= older.min_input and newer.max_input >= older.max_input
        if not fits:
            wrong.append(f"{name} {version}")
    assert not wrong


def test_adapters_name_changes_that_exist() -> None:
    known = {(name, version) for name, version, _, _ in _schema_changes()}
    firsts = {(name, history(name)[0]) for name, _ in DOWNGRADES}
    assert set(UPGRADES) <= known
    assert set(DOWNGRADES) <= known | firsts
    assert set(compatible_changes()) <= known


# Recorded backend tests


def _outcome(case: backend.Case, target: int) -> str:
    model = backend.to_ir(case.model)
    refusals = convert_opset(model, target).refusals
    if refusals:
        return f"refused: {refusals[0]}"
    converted = onnx_ir.to_proto(model)
    runs = backend.run_model(converted, case.data_sets)
    found = runs.problem or backend.difference(case, runs)
    if not found:
        return "recorded"
    if any(is_random(node) for node in backend.to_ir(case.model).graph):
        return "random: the recorded outputs are one draw of many"
    original = backend.run_model(case.model, case.data_sets)
    if runs.problem:
        return "cannot run" if original.problem else f"only the converted model fails: {runs.problem}"
    if original.problem or not backend.difference(case, original):
        return f"only the converted model differs: {found}"
    return "recorded outputs reproduced by neither model"


def test_recorded_tests_of_old_operators_upgraded_to_the_newest() -> None:
    outcomes = {c.name: _outcome(c, NEWEST_OPSET) for c in backend.installed_file_cases() if not c.skipped}
    wrong = {name: o for name, o in outcomes.items() if o != "recorded" and "gradient" not in name}
    assert not wrong
    assert len(outcomes) > 130


@pytest.fixture(scope="module")
def generated() -> list[backend.Case]:
    return [c for c in backend.installed_node_cases() if c.opset is not None]


def test_generated_tests_upgraded_to_the_newest(generated: list[backend.Case]) -> None:
    sample = [c for c in generated if (c.opset or 0) < NEWEST_OPSET][::6]
    outcomes = {c.name: _outcome(c, NEWEST_OPSET) for c in sample}
    assert not {n: o for n, o in outcomes.items() if o.startswith(("only", "refused"))}
    assert sum(o == "recorded" for o in outcomes.values()) > 0.9 * len(sample)


@pytest.mark.parametrize(("target", "least"), [(21, 0.85), (18, 0.7), (13, 0.55), (9, 0.2)])
def test_generated_tests_downgraded(generated: list[backend.Case], target: int, least: float) -> None:
    sample = generated[target % 9 :: 9]
    outcomes = {c.name: _outcome(c, target) for c in sample}
    assert not {n: o for n, o in outcomes.items() if o.startswith("only")}
    assert sum(o == "recorded" for o in outcomes.values()) > least * len(sample)


@pytest.mark.parametrize("target", [26, 22, 19, 16, 12])
def test_what_is_called_exact_gives_the_same_bits(generated: list[backend.Case], target: int) -> None:
    wrong, n_exact = [], 0
    for case in generated[target % 7 :: 7]:
        inputs = case.data_sets[0][0]
        # Inputs with a default come last, and may be left out.
        feed = dict(zip([x.name for x in case.model.graph.input], inputs, strict=False))
        if case.opset == target or not all(isinstance(x, np.ndarray) for x in inputs):
            continue
        try:
            wanted, again = _run(case.model, feed), _run(case.model, feed)
        except Exception:  # noqa: BLE001 - the runtime's errors have no common class; it does not run the original
            continue
        if not all(isinstance(x, np.ndarray) for x in wanted) or _differ(wanted, again):
            continue  # random operators
        model = backend.to_ir(case.model)
        conversion = convert_opset(model, target, kernels())
        if conversion.is_exact and not conversion.refusals:
            n_exact += 1
            if _differ(wanted, _run(onnx_ir.to_proto(model), feed)):
                wrong.append(case.name)
    assert not wrong
    assert n_exact > 20


def _differ(wanted: list[np.ndarray], got: list[np.ndarray]) -> bool:
    return bool(same_bits(dict(enumerate(wanted)), dict(enumerate(got))))


# Random models against the runtime on the original


def _model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any] | None]],
    opset: int,
    outputs: tuple[str, ...] = ("y",),
    constants: dict[str, np.ndarray] | None = None,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> onnx.ModelProto:
    graph = oh.make_graph(
        nodes,
        "g",
        [oh.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [onnx.numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )
    imports = [oh.make_opsetid("", opset), *[oh.make_opsetid(f.domain, 1) for f in functions]]
    return oh.make_model(graph, opset_imports=imports, functions=functions, ir_version=8)


def _convert(model: onnx.ModelProto, target: int) -> tuple[onnx.ModelProto, tuple[OpsetRefusal, ...]]:
    converted = onnx_ir.from_proto(model)
    refusals = convert_opset(converted, target).refusals
    return onnx_ir.to_proto(converted), refusals


def _run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def _check_same(
    model: onnx.ModelProto,
    feed: dict[str, np.ndarray],
    *,
    back: bool = True,
    rtol: float = 0,
    newest: int = NEWEST_OPSET,
) -> None:
    """The upgraded model, and the one taken back down, give the runtime's own bits for the original."""
    wanted = _run(model, feed)
    upgraded, refusals = _convert(model, newest)
    assert not refusals
    for got, want in zip(_run(upgraded, feed), wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)
    if back:
        opset = model.opset_import[0].version
        lowered, refusals = _convert(upgraded, opset)
        assert not refusals
        assert lowered.opset_import[0].version == opset
        for got, want in zip(_run(lowered, feed), wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=rtol, atol=rtol)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax", "Hardmax"])
def test_softmax_over_flattened_input(op_type: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 6))
    shape = tuple(int(d) for d in rng.integers(1, 5, rank))
    axis = int(rng.integers(-rank, rank))
    declared = [list(shape), [f"d{i}" for i in range(rank)], None][seed % 3]
    node = oh.make_node(op_type, ["x"], ["y"], axis=axis)
    _check_same(_model([node], {"x": (FLOAT, declared)}, 11), {"x": _normal(rng, shape)}, back=False)


def test_softmax_default_axis_of_an_empty_batch() -> None:
    node = oh.make_node("Softmax", ["x"], ["y"])
    model = _model([node], {"x": (FLOAT, ["n", 3, 4])}, 11)
    upgraded, _ = _convert(model, NEWEST_OPSET)
    assert _run(upgraded, {"x": np.zeros((0, 3, 4), np.float32)})[0].shape == (0, 3, 4)
    _check_same(model, {"x": _normal(np.random.default_rng(0), (2, 3, 4))}, back=False)


@pytest.mark.parametrize("seed", range(12))
def test_resize_10_grows_and_shrinks(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (1, 2, int(rng.integers(3, 9)), int(rng.integers(3, 9)))
    scales = np.array([1, 1, *rng.choice([0.4, 0.6, 1.0, 1.5, 2.0, 2.7], 2)], np.float32)
    mode = "linear" if seed % 4 == 3 else "nearest"
    node = oh.make_node("Resize", ["x", "s"], ["y"], mode=mode)
    feed = {"x": _normal(rng, shape)}
    if seed % 2:
        _check_same(_model([node], {"x": (FLOAT, list(shape))}, 10, constants={"s": scales}), feed, back=False)
    else:
        model = _model([node], {"x": (FLOAT, list(shape)), "s": (FLOAT, [4])}, 10)
        _check_same(model, feed | {"s": scales}, back=False)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample_9_and_7(mode: str) -> None:
    feed = {"x": _normal(np.random.default_rng(0), (1, 2, 3, 4))}
    constants = {"s": np.array([1, 1, 2, 1.5], np.float32)}
    nine = _model(
        [oh.make_node("Upsample", ["x", "s"], ["y"], mode=mode)], {"x": (FLOAT, None)}, 9, constants=constants
    )
    seven = _model(
        [oh.make_node("Upsample", ["x"], ["y"], mode=mode, scales=[1.0, 1.0, 2.0, 1.5])],
        {"x": (FLOAT, None)},
        7,
    )
    _check_same(nine, feed)
    _check_same(seven, feed)


@pytest.mark.parametrize("nearest", ["floor", "round_prefer_floor"])
def test_removed_resize_coordinates(nearest: str) -> None:
    node = oh.make_node(
        "Resize",
        ["x", "r", "e", "z"],
        ["y"],
        coordinate_transformation_mode="tf_half_pixel_for_nn",
        nearest_mode=nearest,
    )
    empty = np.array([], np.float32)
    for size in ([1, 1, 3, 7], [1, 1, 8, 2], [1, 1, 5, 5]):
        constants = {"r": empty, "e": empty, "z": np.array(size, np.int64)}
        model = _model([node], {"x": (FLOAT, [1, 1, 5, 6])}, 11, constants=constants)
        _check_same(model, {"x": _normal(np.random.default_rng(0), (1, 1, 5, 6))}, back=False)


@pytest.mark.parametrize("seed", range(8))
def test_attributes_that_became_inputs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (4, int(rng.integers(2, 6)), int(rng.integers(2, 6)))
    pads = [int(p) for p in rng.integers(0, 3, 6)]
    starts, ends = [int(rng.integers(-9, 2))], [int(rng.integers(2, 9))]
    first = int(rng.integers(1, 4))
    nodes = [
        oh.make_node("Pad", ["x"], ["p"], pads=pads, mode=["constant", "edge"][seed % 2], value=float(seed)),
        oh.make_node("Slice", ["p"], ["c"], starts=starts, ends=ends, axes=[2]),
        oh.make_node("Split", ["x"], ["s1", "s2"], axis=0, split=[first, 4 - first]),
        oh.make_node("Split", ["x"], ["h1", "h2"], axis=0),
        oh.make_node("Unsqueeze", ["s1"], ["u"], axes=[0, 2]),
        oh.make_node("Squeeze", ["u"], ["q"], axes=[0]),
        oh.make_node("ReduceSum", ["x"], ["rs"], axes=[1], keepdims=seed % 2),
        oh.make_node("ReduceMean", ["x"], ["rm"], keepdims=seed % 2),
        oh.make_node("ReduceL2", ["x"], ["rl"], axes=[0, 2]),
        oh.make_node("TopK", ["x"], ["tv", "ti"], k=2, axis=1),
        oh.make_node("Clip", ["x"], ["cl"], min=-0.5),
        oh.make_node("Dropout", ["x"], ["dr"], ratio=0.25),
    ]
    outputs = ("c", "s2", "h1", "h2", "q", "rs", "rm", "rl", "tv", "ti", "cl", "dr")
    model = _model(nodes, {"x": (FLOAT, list(shape))}, 9, outputs)
    x = _normal(rng, shape)
    x[0, 0, 0] = np.inf  # Clip without max cut infinities down to the largest float
    _check_same(model, {"x": x}, back=False)
    dynamic = _model(nodes, {"x": (FLOAT, None)}, 9, outputs)
    _check_same(dynamic, {"x": x}, back=False)


def test_round_trip_of_axes_and_sizes() -> None:
    nodes = [
        oh.make_node("ReduceMax", ["x"], ["a"], axes=[1], keepdims=0),
        oh.make_node("Split", ["x"], ["s1", "s2"], axis=1, split=[1, 3]),
        oh.make_node("Split", ["x"], ["h1", "h2"], axis=1),
        oh.make_node("Softmax", ["x"], ["m"], axis=2),
        oh.make_node("TopK", ["x", "k"], ["tv", "ti"], axis=1),
        oh.make_node("Slice", ["x", "b", "e", "b"], ["c"]),
        oh.make_node("Clip", ["x", "lo", ""], ["cl"]),
        oh.make_node("Pad", ["x", "p"], ["pd"]),
    ]
    constants = {
        "k": np.array([2]),
        "b": np.array([1]),
        "e": np.array([3]),
        "lo": np.array(0.1, np.float32),
        "p": np.array([0, 1, 0, 1, 0, 2]),
    }
    outputs = ("a", "s2", "h1", "m", "tv", "ti", "c", "cl", "pd")
    model = _model(nodes, {"x": (FLOAT, [2, 4, 5])}, 11, outputs, constants)
    _check_same(model, {"x": _normal(np.random.default_rng(1), (2, 4, 5))})


@pytest.mark.parametrize("opset", [7, 9, 11, 13])
def test_operators_whose_words_changed(opset: int) -> None:
    """Pooling and transposed convolution: the reviewed table says that only the documentation changed."""
    rng = np.random.default_rng(opset)
    nodes, outputs = [], []
    for index, (kind, extra) in enumerate(
        itertools.product(
            ["MaxPool", "AveragePool"],
            [
                {"auto_pad": "SAME_UPPER"},
                {"auto_pad": "SAME_LOWER"},
                {"pads": [1, 1, 1, 1]},
                *([{"ceil_mode": 1, "pads": [1, 1, 1, 1]}, {"ceil_mode": 1}] if opset >= 10 else []),
            ],
        )
    ):
        nodes.append(oh.make_node(kind, ["x"], [f"y{index}"], kernel_shape=[3, 2], strides=[2, 2], **extra))
        outputs.append(f"y{index}")
    for pad in ("SAME_UPPER", "SAME_LOWER"):
        nodes.append(oh.make_node("ConvTranspose", ["x", "w"], [pad], auto_pad=pad, strides=[2, 2]))
        outputs.append(pad)
    model = _model(nodes, {"x": (FLOAT, [1, 2, 7, 8])}, opset, tuple(outputs), {"w": _normal(rng, (2, 3, 3, 4))})
    # 1e-6: from version 19 on the runtime averages with another kernel, which sums six terms in another order
    _check_same(model, {"x": _normal(rng, (1, 2, 7, 8))}, rtol=1e-6)


def test_one_hot_of_negative_indices_as_the_runtime_does() -> None:
    model = _model(
        [oh.make_node("OneHot", ["i", "d", "v"], ["y"])],
        {"i": (INT64, [6])},
        9,
        constants={"d": np.array(4), "v": np.array([0.0, 1.0], np.float32)},
    )
    _check_same(model, {"i": np.array([-5, -4, -1, 0, 3, 4])})


def test_coordinates_and_modes_whose_defaults_moved() -> None:
    rng = np.random.default_rng(3)
    nodes = [
        oh.make_node("RoiAlign", ["x", "r", "b"], ["y"], output_height=3, output_width=3, sampling_ratio=2),
        oh.make_node("RoiAlign", ["x", "r", "b"], ["m"], output_height=2, output_width=2, mode="max"),
    ]
    constants = {"r": np.array([[0, 0, 5, 5], [1, 2, 4, 6]], np.float32), "b": np.array([0, 0])}
    model = _model(nodes, {"x": (FLOAT, [1, 2, 8, 8])}, 11, ("y", "m"), constants)
    # 21: the runtime has no kernel for RoiAlign-22
    assert convert_opset(onnx_ir.from_proto(model), 22, kernels()).refusals
    _check_same(model, {"x": _normal(rng, (1, 2, 8, 8))}, newest=21)
    sample = _model(
        [
            oh.make_node("GridSample", ["x", "g"], ["y"], mode="bicubic"),
            oh.make_node("GridSample", ["x", "g"], ["z"]),
        ],
        {"x": (FLOAT, [1, 2, 5, 5]), "g": (FLOAT, [1, 3, 3, 2])},
        16,
        ("y", "z"),
    )
    _check_same(sample, {"x": _normal(rng, (1, 2, 5, 5)), "g": rng.uniform(-1, 1, (1, 3, 3, 2)).astype(np.float32)})
    dft = _model([oh.make_node("DFT", ["x"], ["y"])], {"x": (FLOAT, None)}, 17)
    _check_same(dft, {"x": _normal(rng, (2, 8, 5, 1))})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_group_normalization_per_group(dtype: Any) -> None:
    """Against numpy: the runtime has no kernel for version 18."""
    rng = np.random.default_rng(0)
    x, scale, bias = rng.standard_normal((2, 6, 3)), rng.standard_normal(3), rng.standard_normal(3)
    kind = oh.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = oh.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=3, epsilon=1e-5)
    model = _model([node], {"x": (kind, None)}, 18, constants={"s": scale.astype(dtype), "b": bias.astype(dtype)})
    upgraded, refusals = _convert(model, NEWEST_OPSET)
    assert not refusals
    grouped = x.reshape(2, 3, 2, 3)
    mean, var = grouped.mean((2, 3), keepdims=True), grouped.var((2, 3), keepdims=True)
    want = (grouped - mean) / np.sqrt(var + 1e-5) * scale[:, None, None] + bias[:, None, None]
    got = _run(upgraded, {"x": x.astype(dtype)})[0]
    # 1e-5 and 1e-12: sums of six terms in float32 and float64; float32 inside a float64 node would miss the second
    np.testing.assert_allclose(got, want.reshape(2, 6, 3), atol=1e-5 if dtype == np.float32 else 1e-12)


# Versions that the runtime no longer runs, against numpy


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_legacy_broadcast(axis: int | None, declared: bool) -> None:
    rng = np.random.default_rng(0)
    a = _normal(rng, (2, 3, 4))
    b = _normal(rng, {0: (2, 3), 1: (3,), 2: (4,), None: (3, 4)}[axis])
    attributes = {"broadcast": 1} | ({} if axis is None else {"axis": axis})
    shapes = [list(a.shape), list(b.shape)] if declared else [None, None]
    model = _model(
        [oh.make_node("Sub", ["a", "b"], ["y"], **attributes)],
        {"a": (FLOAT, shapes[0]), "b": (FLOAT, shapes[1])},
        6,
    )
    upgraded, refusals = _convert(model, NEWEST_OPSET)
    assert not refusals
    start = 3 - b.ndim if axis is None else axis
    aligned = b.reshape([*b.shape, *[1] * (3 - start - b.ndim)])
    np.testing.assert_array_equal(_run(upgraded, {"a": a, "b": b})[0], a - aligned)


def test_scan_8_over_batches() -> None:
    body = oh.make_graph(
        [oh.make_node("Add", ["s", "i"], ["t"]), oh.make_node("Softmax", ["t"], ["o"], axis=0)],
        "body",
        [oh.make_tensor_value_info(n, FLOAT, [2]) for n in ("s", "i")],
        [oh.make_tensor_value_info(n, FLOAT, [2]) for n in ("t", "o")],
    )
    scan = oh.make_node("Scan", ["", "h", "x"], ["f", "y"], body=body, num_scan_inputs=1, directions=[1])
    model = _model([scan], {"h": (FLOAT, [3, 2]), "x": (FLOAT, [3, 5, 2])}, 8, ("f", "y"))
    upgraded, refusals = _convert(model, NEWEST_OPSET)
    assert not refusals
    rng = np.random.default_rng(0)
    h, x = _normal(rng, (3, 2)), _normal(rng, (3, 5, 2))
    final, ys = _run(upgraded, {"h": h, "x": x})
    sums = h[:, None] + np.cumsum(x[:, ::-1], axis=1)
    exps = np.exp(sums)
    # 1e-6: five additions and one exponential in float32
    np.testing.assert_allclose(final, sums[:, -1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ys, exps / exps.sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_batch_normalization_per_activation() -> None:
    rng = np.random.default_rng(0)
    parts = {n: rng.uniform(0.5, 2, (2, 3)).astype(np.float32) for n in "sbmv"}
    node = oh.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], spatial=0)
    model = _model([node], {"x": (FLOAT, [4, 2, 3])}, 8, constants=parts)
    upgraded, refusals = _convert(model, NEWEST_OPSET)
    assert not refusals
    x = _normal(rng, (4, 2, 3))
    want = (x - parts["m"]) / np.sqrt(parts["v"] + 1e-5) * parts["s"] + parts["b"]
    # 1e-6: five roundings in float32
    np.testing.assert_allclose(_run(upgraded, {"x": x})[0], want, rtol=1e-6, atol=1e-6)


# Subgraphs, functions, names, refusals


def _branch(name: str, bias: str) -> onnx.GraphProto:
    nodes = [
        oh.make_node("Softmax", ["x"], ["inner"], axis=1),
        oh.make_node("ReduceSum", ["inner"], ["total"], axes=[2]),
        oh.make_node("Add", ["total", bias], [f"{name}_out"]),
    ]
    return oh.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=f"{name}_out")])


def test_subgraphs_are_converted_and_do_not_shadow() -> None:
    then = _branch("then", "inner/Flatten")
    nodes = [
        # names that converted nodes of the branches would like to take
        oh.make_node("Neg", ["x"], ["inner/Flatten"]),
        oh.make_node("If", ["c"], ["y"], then_branch=then, else_branch=_branch("else", "x")),
    ]
    model = _model(nodes, {"x": (FLOAT, [2, 3, 4]), "c": (onnx.TensorProto.BOOL, [])}, 11)
    for condition in (True, False):
        feed = {"x": _normal(np.random.default_rng(0), (2, 3, 4)), "c": np.array(condition)}
        _check_same(model, feed, back=False)


def test_function_with_parameters_and_its_own_version() -> None:
    reduce = oh.make_node("ReduceSum", ["a"], ["r"])
    for name in ("axes", "keepdims"):
        kind = onnx.AttributeProto.INTS if name == "axes" else onnx.AttributeProto.INT
        reduce.attribute.append(onnx.AttributeProto(name=name, ref_attr_name=name, type=kind))
    softmax = oh.make_node("Softmax", ["r"], ["b"])
    function = oh.make_function(
        "local", "F", ["a"], ["b"], [reduce, softmax], [oh.make_opsetid("", 11)], ["axes", "keepdims"]
    )
    call = oh.make_node("F", ["x"], ["t"], domain="local", axes=[1], keepdims=1)
    squeeze = oh.make_node("Squeeze", ["t", "one"], ["y"])
    model = _model(
        [call, squeeze],
        {"x": (FLOAT, [2, 3, 4])},
        13,
        constants={"one": np.array([1])},
        functions=(function,),
    )
    upgraded, refusals = _convert(model, NEWEST_OPSET)
    assert not refusals
    assert {o.version for f in upgraded.functions for o in f.opset_import} == {NEWEST_OPSET}
    x = _normal(np.random.default_rng(0), (2, 3, 4))
    exps = np.exp(x.sum(1, keepdims=True).reshape(2, 4))
    # 1e-6: float32 sums of seven terms and one exponential
    np.testing.assert_allclose(_run(upgraded, {"x": x})[0], exps / exps.sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_parameter_missing_in_a_call_is_refused() -> None:
    reduce = oh.make_node("ReduceSum", ["a"], ["r"])
    reduce.attribute.append(onnx.AttributeProto(name="axes", ref_attr_name="axes", type=onnx.AttributeProto.INTS))
    function = oh.make_function("local", "F", ["a"], ["r"], [reduce], [oh.make_opsetid("", 11)], ["axes"])
    model = _model([oh.make_node("F", ["x"], ["y"], domain="local")], {"x": (FLOAT, [2])}, 11, functions=(function,))
    _, refusals = _convert(model, NEWEST_OPSET)
    assert [r.op_type for r in refusals] == ["ReduceSum"]


def test_a_refusal_leaves_the_model_unchanged() -> None:
    nodes = [
        oh.make_node("Softmax", ["x"], ["a"], axis=1, name="fine"),
        oh.make_node("Dropout", ["a"], ["b"], is_test=0, name="random"),
        oh.make_node("Add", ["b", "b"], ["y"], broadcast=1, axis=0),
    ]
    model = onnx_ir.from_proto(_model(nodes, {"x": (FLOAT, [2, 3, 4])}, 6))
    before = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    uses = {v.name: len(v.uses()) for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None}
    refusals = convert_opset(model, NEWEST_OPSET).refusals
    assert [(r.node_name, r.op_type, r.from_version, r.to_version) for r in refusals] == [
        ("random", "Dropout", 6, NEWEST_OPSET)
    ]
    assert "random" in refusals[0].reason
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert uses == {v.name: len(v.uses()) for n in model.graph for v in (*n.inputs, *n.outputs) if v is not None}


@pytest.mark.parametrize(
    ("node", "opset", "target", "words"),
    [
        (oh.make_node("TopK", ["x", "k"], ["y", "i"], largest=0), 11, 10, "smallest"),
        (oh.make_node("Trilu", ["x"], ["y"]), 18, 13, "Trilu exists since opset 14"),
        (
            oh.make_node("Resize", ["x", "", "", "k"], ["y"], antialias=1, mode="linear"),
            18,
            17,
            "antialiasing",
        ),
        (oh.make_node("Dropout", ["x"], ["z", "y"]), 10, 26, "mask"),
        (oh.make_node("NotAnOperator", ["x"], ["y"]), 11, 26, "not part of"),
        (oh.make_node("ReduceSum", ["x", "k"], ["y"]), 13, 11, "computed at run time"),
        (oh.make_node("Slice", ["x"], ["y"], starts=["a"]), 9, 26, "malformed"),
    ],
)
def test_refusals_say_why(node: onnx.NodeProto, opset: int, target: int, words: str) -> None:
    model = _model([node], {"x": (FLOAT, [2, 3]), "k": (INT64, [1])}, opset)
    _, refusals = _convert(model, target)
    assert len(refusals) == 1
    assert words in refusals[0].reason


def test_types_that_the_older_version_lacks_are_refused() -> None:
    model = _model([oh.make_node("Relu", ["x"], ["y"])], {"x": (onnx.TensorProto.INT32, [2])}, 14)
    _, refusals = _convert(model, 13)
    assert "no tensor(int32) as input 0" in refusals[0].reason


def test_weights_are_not_touched() -> None:
    def unread() -> onnx_ir.TensorProtocol:
        raise AssertionError("a weight was read")

    lazy = onnx_ir.LazyTensor(unread, dtype=onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape([4, 4]), name="w")
    weight = onnx_ir.Value(name="w", shape=onnx_ir.Shape([4, 4]), const_value=lazy)
    x = onnx_ir.Input("x", onnx_ir.Shape(["n", 4]), onnx_ir.TensorType(onnx_ir.DataType.FLOAT))
    product = onnx_ir.node("MatMul", [x, weight])
    result = onnx_ir.node("Softmax", [product.outputs[0]], {"axis": 0})
    graph = onnx_ir.Graph([x], result.outputs, nodes=[product, result], initializers=[weight], opset_imports={"": 11})
    model = onnx_ir.Model(graph, ir_version=8)
    assert convert_opset(model, NEWEST_OPSET).refusals == ()
    assert model.graph.initializers["w"].const_value is lazy


def test_outputs_keep_their_names_and_order() -> None:
    nodes = [oh.make_node("Split", ["x"], ["b", "a"], axis=0, name="parts")]
    upgraded, _ = _convert(_model(nodes, {"x": (FLOAT, [4])}, 11, ("a", "b")), NEWEST_OPSET)
    assert [o.name for o in upgraded.graph.output] == ["a", "b"]
    assert [n.name for n in upgraded.graph.node if n.op_type == "Split"] == ["parts"]
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(_run(upgraded, {"x": x})[1], x[:2])


# What the runtime does with the result


@pytest.mark.parametrize(
    ("text", "target", "missing"),
    [
        ('"" : 11]> f (float[1, 4, 5, 6] x) => (float[] y) { y = GlobalLpPool (x) }', 22, "GlobalLpPool-22"),
        ('"" : 24]> f (float[N] x) => (float[N] y) { y = Swish (x) }', 25, "Swish-24"),
        # There is a kernel, but not for this type.
        ('"" : 13]> f (double[N] x, double[N] z) => (double[N] y) { y = Max (x, z) }', 7, "Max-6"),
    ],
)
def test_versions_without_a_kernel_are_refused(text: str, target: int, missing: str) -> None:
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{text}")
    feed = {i.name: np.ones([d.dim_value or 3 for d in i.type.tensor_type.shape.dim]) for i in model.graph.input}
    types = {i.name: oh.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type) for i in model.graph.input}
    _run(model, {name: x.astype(types[name]) for name, x in feed.items()})
    conversion = convert_opset(onnx_ir.from_proto(model), target, kernels())
    assert [missing in refusal.reason for refusal in conversion.refusals] == [True]
    unknown = onnx_ir.from_proto(model)
    assert not convert_opset(unknown, target).refusals, "nothing is known of another machine's runtime"
    with pytest.raises(Exception, match="Could not find an implementation"):
        _run(onnx_ir.to_proto(unknown), feed)


_GELU = '"" : 21]> f (float[N, 4] x) => (float[N, 4] y) { [n] t = Gelu (x) [m] y = Gelu <approximate = "tanh"> (t) }'
_POOL = '"" : 17]> f (float[1, 2, 6, 7] x) => (float[A, B, C, D] y) { y = AveragePool <kernel_shape = [3, 3]> (x) }'
_GROUPS = """"" : 18]> f (float[2, 2, 6, 7] x, float[1] s, float[1] b) => (float[A, B, C, D] y)
{ [n] y = GroupNormalization <num_groups: int = 1> (x, s, b) }"""
_LAYER = """"" : 21]> f (float[4, 8] x, float[8] s) => (float[4, 8] y) { [n] y = LayerNormalization (x, s) }"""
_RESIZE = """"" : 10]> f (float[1, 1, 4, 4] x, float[4] s) => (float[A, B, C, D] y)
{ [n] t = Resize (x, s) [n_Resize] y = Neg (t) }"""
_SPLIT = '"" : 11]> f (float[4, 2] x) => (float[A, B] y) { a, b = Split <axis = 0> (x) y = Add (a, b) }'


@pytest.mark.parametrize(
    ("text", "target", "contract"),
    [
        (_GELU, 18, Contract.NUMERIC),
        (_LAYER, 16, Contract.NUMERIC),
        (_GROUPS, 11, Contract.NUMERIC),
        (_GROUPS, 21, Contract.NUMERIC),
        (_POOL, 18, Contract.EXACT),
        (_POOL, 19, Contract.NUMERIC),
        (_POOL, NEWEST_OPSET, Contract.NUMERIC),
        (_RESIZE, NEWEST_OPSET, Contract.EXACT),
        (_SPLIT, NEWEST_OPSET, Contract.EXACT),
    ],
)
def test_a_conversion_says_whether_it_rounds(text: str, target: int, contract: Contract) -> None:
    program = capture_onnx(onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{text}"))
    context = PassContext(program, kernels=kernels)
    UpgradeOpset(version=target).run(program, context)
    assert [r.contract for r in context.rewrites] == [contract]
    names = [n.name for n in program.graph if n.name]
    assert len(names) == len(set(names)), names


@pytest.mark.parametrize(("text", "target"), [(_GELU, 18), (_LAYER, 16), (_GROUPS, 11), (_RESIZE, 21)])
def test_nodes_written_for_a_named_node_load(text: str, target: int) -> None:
    """The runtime refuses a graph in which two nodes have one name."""
    model, refusals = _convert(onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{text}"), target)
    assert not refusals
    sizes = {i.name: [d.dim_value or 4 for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    _run(model, {name: np.ones(shape, np.float32) for name, shape in sizes.items()})


@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("op_type", ["HannWindow", "HammingWindow", "BlackmanWindow"])
def test_windows_before_they_were_operators(op_type: str, periodic: int) -> None:
    model = _model([oh.make_node(op_type, ["n"], ["y"], periodic=periodic)], {"n": (INT64, [])}, 17)
    for size in (2, 3, 7, 100):
        feed = {"n": np.array(size)}
        for target in (16, 11):
            lowered, refusals = _convert(model, target)
            assert not refusals
            # 6e-8: the runtime's BlackmanWindow has 0.42 one unit of float32 above where the standard has it
            np.testing.assert_allclose(_run(lowered, feed)[0], _run(model, feed)[0], rtol=0, atol=6e-8)
    assert _convert(model, 10)[1]


@pytest.mark.parametrize("target", [16, 11])
@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 1), 1), ((2, 3, 64), -1)])
def test_layer_normalization_beside_a_large_mean(shape: tuple[int, ...], axis: int, target: int) -> None:
    """Within the numeric contract: the standard's own body is off by a hundred times as much as the kernel."""
    rng = np.random.default_rng(0)
    tail = shape[axis:]
    x, scale, bias = _normal(rng, shape) + 30, _normal(rng, tail), _normal(rng, tail)
    node = oh.make_node("LayerNormalization", ["x", "s", "b"], ["y", "m", "i"], axis=axis)
    model = _model([node], {"x": (FLOAT, list(shape))}, 21, ("y", "m", "i"), {"s": scale, "b": bias})
    lowered, refusals = _convert(model, target)
    assert not refusals
    axes, wide = tuple(range(len(shape) - len(tail), len(shape))), x.astype(np.float64)
    mean, norm = wide.mean(axes, keepdims=True), np.sqrt(wide.var(axes, keepdims=True) + 1e-5)
    exact = [(wide - mean) / norm * scale + bias, mean, 1 / norm]
    for want, kernel, got in zip(exact, _run(model, {"x": x}), _run(lowered, {"x": x}), strict=True):
        assert got.shape == kernel.shape == want.shape
        # Four times the kernel's own error, and one unit in the last place of the largest number (ir/verify.py).
        unit = np.spacing(np.abs(want).max().astype(np.float32))
        assert np.abs(got - want).max() <= 4 * np.abs(kernel - want).max() + unit


@pytest.mark.parametrize("op_type", ["Sum", "Mean", "Max", "Min"])
def test_operands_of_other_shapes_before_broadcasting(op_type: str) -> None:
    node = oh.make_node(op_type, ["a", "b"], ["y"])
    for shapes, fits in (([[2, 3], [3]], False), ([["N", 3], ["M", 3]], False), ([["N", 3], ["N", 3]], True)):
        _, refusals = _convert(_model([node], {"a": (FLOAT, shapes[0]), "b": (FLOAT, shapes[1])}, 13), 7)
        assert ["does not broadcast" in r.reason for r in refusals] == [True] * (not fits)


@pytest.mark.parametrize("version", [6, NEWEST_OPSET + 1])
def test_targets_out_of_range(version: int) -> None:
    with pytest.raises(UsageError, match="choose 7 to"):
        _convert(_model([oh.make_node("Relu", ["x"], ["y"])], {"x": (FLOAT, [2])}, 11), version)
