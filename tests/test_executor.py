"""The child process: values of every type in and out, hostile models, limits, nothing left behind."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from opgraft.backends.onnxruntime import executor as executor_module
from opgraft.backends.onnxruntime.executor import ExecutionFailure, Executor, run_once
from opgraft.backends.onnxruntime.protocol import RawTensor, describe, from_raw, restore, to_raw
from opgraft.backends.onnxruntime.session import Session
from opgraft.ir.errors import ExecutionError

FLOAT = TensorProto.FLOAT
value_info = helper.make_tensor_value_info
GIB = 1 << 30


def serialize(nodes, inputs, outputs, initializers=(), opset=21, **options):
    graph = helper.make_graph(nodes, "test", inputs, outputs, list(initializers))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("test", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=13 if opset > 24 else 10, **options)
    return model.SerializeToString()


def identity(element_type, opset=25):
    one = [helper.make_node("Identity", ["x"], ["y"])]
    shape = ["a", "b"]
    return serialize(one, [value_info("x", element_type, shape)], [value_info("y", element_type, shape)], opset=opset)


NEGATE = serialize(
    [helper.make_node("Neg", ["x"], ["y"])], [value_info("x", FLOAT, ["n"])], [value_info("y", FLOAT, ["n"])]
)
ONES = np.ones(4, np.float32)


@pytest.fixture(scope="module")
def executor():
    with Executor(time_limit_s=60.0) as shared:
        yield shared


# Values


IDENTITY_TYPES = [
    np.float32, np.uint8, np.int8, np.uint16, np.int16, np.int32, np.int64, np.bool_, np.float16, np.float64,
    np.uint32, np.uint64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2, ml_dtypes.float8_e5m2fnuz,
]  # fmt: skip


@pytest.mark.parametrize("dtype", IDENTITY_TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("shape", [(3, 5), (0, 5)], ids=str)
def test_every_bit_pattern_survives(executor, dtype, shape):
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    noise = np.random.default_rng(1).integers(0, 2 if dtype is np.bool_ else 256, n_bytes, np.uint8)
    x = noise.view(dtype).reshape(shape)
    model = identity(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
    y = executor.run_once(model, {"x": x})["y"]
    assert y.dtype == x.dtype
    assert y.shape == x.shape
    assert y.tobytes() == x.tobytes()


@pytest.mark.parametrize(
    "dtype", [ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.float8_e8m0fnu], ids=str
)
@pytest.mark.parametrize("n_elements", [1, 5, 16])
def test_types_the_runtime_only_casts(executor, dtype, n_elements):
    # Both directions against ml_dtypes' own casts: through float32 into the type, and back out of it.
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Cast", ["f"], ["y"], to=element_type),
    ]
    model = serialize(
        nodes,
        [value_info("x", element_type, ["n"])],
        [value_info("f", FLOAT, ["n"]), value_info("y", element_type, ["n"])],
        opset=25,
    )
    low = {"int4": -8, "int2": -2, "float8_e8m0fnu": 1}.get(np.dtype(dtype).name, 0)
    high = {"int4": 7, "uint4": 15, "int2": 1, "uint2": 3, "float8_e8m0fnu": 2}[np.dtype(dtype).name]
    x = np.random.default_rng(n_elements).integers(low, high + 1, n_elements).astype(np.float32).astype(dtype)
    outputs = executor.run_once(model, {"x": x})
    np.testing.assert_array_equal(outputs["f"], x.astype(np.float32))
    assert outputs["y"].dtype == x.dtype
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), x.astype(np.float32))


ALL_TYPES = [
    number
    for name, number in TensorProto.DataType.items()
    # onnx itself has no numpy type for the two 6-bit floats, and the runtime refuses them.
    if name not in ("UNDEFINED", "STRING", "FLOAT6E2M3", "FLOAT6E3M2")
]


@pytest.mark.parametrize("element_type", ALL_TYPES, ids=TensorProto.DataType.Name)
def test_wire_form_is_raw_data(element_type):
    # onnx packs a tensor into raw_data by itself: the wire carries the same bytes, and reads them back.
    name = TensorProto.DataType.Name(element_type)
    low = 1 if name == "FLOAT8E8M0" else 0 if name.startswith(("UINT", "BOOL")) else -1
    x = np.array([low, 1, 1, low, low, 1, 1], np.float32).astype(helper.tensor_dtype_to_np_dtype(element_type))
    proto = numpy_helper.from_array(x)
    raw = to_raw(x)
    assert isinstance(raw, RawTensor)
    assert raw.element_type == element_type
    assert raw.data.tobytes() == proto.raw_data
    again = from_raw(raw)
    assert again.dtype == x.dtype
    np.testing.assert_array_equal(again, numpy_helper.to_array(proto))
    np.testing.assert_array_equal(again, x)


def test_wire_form_of_nested_values():
    value = [None, [np.array(["ä", ""], object), np.float32(2)], {"k": np.array(3), 5: [ONES]}]
    buffers = []
    again = from_raw(restore(describe(to_raw(value), buffers), buffers))
    assert again[0] is None
    assert again[1][0].tolist() == ["ä", ""]
    assert again[1][1] == 2
    assert again[2]["k"] == 3
    np.testing.assert_array_equal(again[2][5][0], ONES)


def test_strings(executor):
    model = identity(TensorProto.STRING)
    x = np.array([["", "a b", "日本"], ["\n", "é" * 1000, "\x00"]], dtype=object)
    np.testing.assert_array_equal(executor.run_once(model, {"x": x})["y"], x)
    # numpy's own fixed-width strings cannot end in NUL.
    y = executor.run_once(model, {"x": x[:1].astype(str)})["y"]
    np.testing.assert_array_equal(y, x[:1])
    cast = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)]
    model = serialize(cast, [value_info("x", TensorProto.INT64, [2])], [value_info("y", TensorProto.STRING, [2])])
    assert executor.run_once(model, {"x": np.array([7, -1])})["y"].tolist() == ["7", "-1"]


def test_scalars_views_and_byte_order(executor):
    # An in-memory layout is not part of a value.
    model = serialize(
        [helper.make_node("Neg", ["x"], ["y"])], [value_info("x", FLOAT, None)], [value_info("y", FLOAT, None)]
    )
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    for view in (x[::2, ::-3], x.T, x.astype(">f4"), np.float32(3.5), x[:0]):
        y = executor.run_once(model, {"x": view})["y"]
        assert y.shape == np.shape(view)
        np.testing.assert_array_equal(y, -np.asarray(view))


def test_sequences_and_optionals(executor):
    tensor = helper.make_tensor_type_proto(FLOAT, None)
    sequence, optional = helper.make_sequence_type_proto(tensor), helper.make_optional_type_proto(tensor)
    infos = [helper.make_value_info(name, kind) for name, kind in (("x", sequence), ("y", sequence))]
    model = serialize([helper.make_node("Identity", ["x"], ["y"])], infos[:1], infos[1:])
    for x in ([], [np.zeros((2, 0), np.float32)], [ONES, np.full((2, 3), 7, np.float32)]):
        y = executor.run_once(model, {"x": x})["y"]
        assert [item.shape for item in y] == [item.shape for item in x]
        assert all((a == b).all() for a, b in zip(x, y, strict=True))
    nodes = [
        helper.make_node("OptionalHasElement", ["x"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    outputs = [value_info("y", TensorProto.BOOL, []), helper.make_value_info("z", optional)]
    handle = executor.load(serialize(nodes, [helper.make_value_info("x", optional)], outputs))
    absent = executor.run(handle, {"x": None})
    assert not absent["y"]
    assert absent["z"] is None
    present = executor.run(handle, {"x": ONES})
    assert present["y"]
    np.testing.assert_array_equal(present["z"], ONES)


def test_what_the_python_api_cannot_return_is_unsupported(executor):
    # A sequence comes out of one of its calls only, and a bfloat16 tensor only out of the other.
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16),
    ]
    sequence = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, None))
    outputs = [helper.make_value_info("s", sequence), value_info("y", TensorProto.BFLOAT16, [4])]
    handle = executor.load(serialize(nodes, [value_info("x", FLOAT, [4])], outputs))
    with pytest.raises(ExecutionFailure) as failure:
        executor.run(handle, {"x": ONES})
    assert failure.value.kind == "unsupported", failure.value
    assert len(executor.run(handle, {"x": ONES}, ["s"])["s"]) == 2
    np.testing.assert_array_equal(executor.run(handle, {"x": ONES}, ["y"])["y"].astype(np.float32), ONES)


def test_maps(executor):
    nodes = [
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_strings=["a", "b"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [value_info("x", FLOAT, [None, 2])],
        [onnx.ValueInfoProto(name="y")],
    )
    mapped = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(FLOAT, []))
    graph.output[0].CopyFrom(helper.make_value_info("y", helper.make_sequence_type_proto(mapped)))
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString()
    y = executor.run_once(model, {"x": np.array([[1, 2], [3, 4]], np.float32)})["y"]
    assert y == [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]


@pytest.mark.parametrize("n_bytes", [200 << 20])
def test_large_tensors_do_not_deadlock(executor, n_bytes):
    x = np.arange(n_bytes // 4, dtype=np.float32)
    y = executor.run_once(NEGATE, {"x": x})["y"]
    assert np.array_equal(y, -x)


# The reference executor


def test_result_depends_on_values_not_on_being_an_initializer(executor):
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((7, 384), (384, 512)))
    node = [helper.make_node("MatMul", ["a", "b"], ["y"])]
    infos = [value_info("a", FLOAT, a.shape), value_info("b", FLOAT, b.shape)]
    result = [value_info("y", FLOAT, None)]
    fed = executor.run_once(serialize(node, infos, result), {"a": a, "b": b})["y"]
    constant = serialize(node, infos[:1], result, [numpy_helper.from_array(b, "b")])
    np.testing.assert_array_equal(executor.run_once(constant, {"a": a})["y"], fed)


def test_denormals_are_kept(executor):
    tiny = np.full(4, 1e-40, np.float32)
    np.testing.assert_array_equal(executor.run_once(NEGATE, {"x": tiny})["y"], -tiny)


def test_signature_selected_outputs_and_release(executor):
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Abs", ["x"], ["z"])]
    outputs = [value_info("y", FLOAT, ["n"]), value_info("z", FLOAT, ["n"])]
    handle = executor.load(serialize(nodes, [value_info("x", FLOAT, ["n", 2])], outputs))
    (x,) = handle.inputs
    assert (x.name, x.type, x.shape) == ("x", "tensor(float)", ("n", 2))
    assert [info.name for info in handle.outputs] == ["y", "z"]
    assert handle.load_ms > 0
    assert list(executor.run(handle, {"x": np.ones((1, 2), np.float32)}, ["z"])) == ["z"]
    executor.release(handle)
    assert executor.run(handle, {"x": -np.ones((1, 2), np.float32)}, ["z"])["z"].min() == 1


def test_optimized_and_session_agree(executor):
    handle = executor.load(NEGATE, optimized=True, threads=2)
    np.testing.assert_array_equal(executor.run(handle, {"x": ONES})["y"], -ONES)
    session = Session(NEGATE, threads=1)
    np.testing.assert_array_equal(session.run({"x": ONES})["y"], -ONES)
    assert session.inputs == handle.inputs
    bfloat16 = ONES.reshape(2, 2).astype(ml_dtypes.bfloat16)
    assert Session(identity(TensorProto.BFLOAT16)).run({"x": bfloat16})["y"].dtype == ml_dtypes.bfloat16
    with pytest.raises(ExecutionError, match="rejects"):
        Session(b"not a model")


def passing_through(element_type, shape):
    x = value_info("x", element_type, shape)
    return serialize([helper.make_node("Identity", ["x"], ["y"])], [x], [value_info("y", element_type, shape), x])


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=lambda dtype: np.dtype(dtype).name)
def test_an_output_that_is_an_input_has_memory_of_its_own(dtype):
    # The runtime returns what it was fed: the result changed with the caller's array.
    session = Session(passing_through(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), ["n"]))
    x = np.arange(5).astype(dtype)
    outputs = session.run({"x": x})
    x[:] = 7
    np.testing.assert_array_equal(outputs["x"].astype(np.float32), np.arange(5))
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), np.arange(5))


def test_an_output_that_is_a_scalar_fed_without_an_array():
    # The array made of the scalar was gone when the result was read.
    session = Session(passing_through(FLOAT, []))
    outputs = [session.run({"x": np.float32(i)}) for i in range(50)]
    assert [float(o["x"]) for o in outputs] == list(range(50))


def test_a_sequence_that_is_passed_through_has_memory_of_its_own():
    sequence = helper.make_tensor_sequence_value_info("s", FLOAT, ["n"])
    model = serialize([helper.make_node("SequenceLength", ["s"], ["n"])], [sequence], [
        value_info("n", TensorProto.INT64, []), sequence,
    ])  # fmt: skip
    x = np.ones(4, np.float32)
    outputs = Session(model).run({"s": [x]})
    x[:] = 7
    np.testing.assert_array_equal(outputs["s"][0], ONES)


def test_a_large_input_passed_through(executor):
    # The buffer it was read into had been freed before the answer was sent: the child died of a bad address.
    x = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    outputs = executor.run_once(passing_through(FLOAT, ["n"]), {"x": x})
    np.testing.assert_array_equal(outputs["x"], x)
    np.testing.assert_array_equal(outputs["y"], x)


def test_external_weights_by_path_and_by_folder(executor, tmp_path):
    weights = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    node = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = onnx.load_from_string(
        serialize(
            node,
            [value_info("x", FLOAT, [2000])],
            [value_info("y", FLOAT, [2000])],
            [numpy_helper.from_array(weights, "w")],
        )
    )
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    x = np.ones(2000, np.float32)
    np.testing.assert_array_equal(executor.run_once(tmp_path / "m.onnx", {"x": x})["y"], x + weights)
    skeleton = (tmp_path / "m.onnx").read_bytes()
    by_folder = executor.run_once(skeleton, {"x": x}, weights_folder=tmp_path)["y"]
    np.testing.assert_array_equal(by_folder, x + weights)


def test_model_bytes_above_the_limit_go_through_a_file_that_is_removed(monkeypatch):
    monkeypatch.setattr(executor_module, "_INLINE_MODEL_BYTES", 0)
    with Executor() as executor:
        handle = executor.load(NEGATE)
        path = handle.path
        assert path.is_file()
        np.testing.assert_array_equal(executor.run(handle, {"x": ONES})["y"], -ONES)
        del handle
        gc.collect()
        assert not path.exists()
        path = executor.load(NEGATE).path
        folder = path.parent
    assert not folder.exists()


# Hostile models


def deeply_nested_calls():
    """A chain of 20,000 local functions that call each other: the runtime's recursion overflows its stack."""
    depth = 20_000
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("test", 1)]
    functions = []
    for level in range(depth):
        inner = ("test", f"f{level + 1}") if level + 1 < depth else ("", "Neg")
        node = helper.make_node(inner[1], ["x"], ["y"], domain=inner[0])
        functions.append(helper.make_function("test", f"f{level}", ["x"], ["y"], [node], opsets))
    call = [helper.make_node("f0", ["x"], ["y"], domain="test")]
    infos = [value_info(name, FLOAT, [4]) for name in "xy"]
    return serialize(call, infos[:1], infos[1:], functions=functions), {"x": ONES}


def huge_allocation():
    """512 GiB of ones."""
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["t"]), helper.make_node("ReduceSum", ["t"], ["y"])]
    model = serialize(nodes, [value_info("s", TensorProto.INT64, [2])], [value_info("y", FLOAT, None)])
    return model, {"s": np.array([1 << 20, 1 << 17])}


def growing_allocation():
    """Each round of a loop doubles a tensor, so that memory is eaten in steps that succeed at first."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Concat", ["v", "v"], ["w"], axis=0)],
        "body",
        [value_info("i", TensorProto.INT64, []), value_info("c", TensorProto.BOOL, []), value_info("v", FLOAT, None)],
        [value_info("d", TensorProto.BOOL, []), value_info("w", FLOAT, None)],
    )
    return loop(body)


def endless_loop():
    """A loop of 2**62 rounds."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Mul", ["v", "v"], ["w"])],
        "body",
        [value_info("i", TensorProto.INT64, []), value_info("c", TensorProto.BOOL, []), value_info("v", FLOAT, None)],
        [value_info("d", TensorProto.BOOL, []), value_info("w", FLOAT, None)],
    )
    return loop(body)


def loop(body):
    trips = [numpy_helper.from_array(np.array(2**62), "n"), numpy_helper.from_array(np.array(True), "t")]
    node = helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)
    model = serialize([node], [value_info("x", FLOAT, [4])], [value_info("y", FLOAT, None)], trips)
    return model, {"x": ONES}


@pytest.mark.parametrize(
    ("hostile", "kind"),
    [
        (deeply_nested_calls, "crashed"),
        (huge_allocation, "out of memory"),
        (growing_allocation, "out of memory"),
        (endless_loop, "timed out"),
    ],
)
@pytest.mark.parametrize("optimized", [False, True])
def test_hostile_model_costs_one_error(hostile, kind, optimized):
    model, inputs = hostile()
    # Big enough for the deep model to parse, small enough to be eaten within the time limit.
    limits = {"memory_limit_bytes": GIB, "time_limit_s": 3.0 if kind == "timed out" else 30.0}
    with Executor(**limits) as executor:
        innocent = executor.load(NEGATE)
        start = time.monotonic()
        with pytest.raises(ExecutionFailure) as raised:
            executor.run_once(model, inputs, optimized=optimized, where="hostile.onnx")
        assert time.monotonic() - start < limits["time_limit_s"] + 5
        failure = raised.value
        assert failure.kind == kind
        assert isinstance(failure, ExecutionError)
        assert failure.exit_code == 6
        line = str(failure)
        assert line.startswith("hostile.onnx: ONNX Runtime ")
        assert "\n" not in line
        assert "onnxruntime_src" not in line
        if kind == "crashed":
            assert failure.signal == 11
            assert "SIGSEGV" in line
        np.testing.assert_array_equal(executor.run(innocent, {"x": ONES})["y"], -ONES)


def test_rejections_leave_the_child_alive():
    with Executor() as executor:
        handle = executor.load(NEGATE)
        process = executor._child._process
        for bad in ({}, {"x": ONES.astype(np.float64)}, {"x": ONES[None]}, {"z": ONES}, {"x": [ONES]}):
            with pytest.raises(ExecutionFailure) as raised:
                executor.run(handle, bad)
            assert raised.value.kind == "rejected"
        for bad_model in (b"", b"not a model" * 9, NEGATE[:-20], Path("missing.onnx")):
            with pytest.raises(ExecutionFailure) as raised:
                executor.load(bad_model)
            assert raised.value.kind == "rejected"
        for bad in (np.zeros(2, "M8[s]"), np.array(["a", 1], object), "\udcff"):
            with pytest.raises(ExecutionFailure) as raised:
                executor.run(handle, {"x": bad})
            assert raised.value.kind == "unsupported"
        assert executor._child._process is process
        np.testing.assert_array_equal(executor.run(handle, {"x": ONES})["y"], -ONES)


def test_input_larger_than_the_memory_limit():
    with Executor(memory_limit_bytes=400 << 20) as executor:
        with pytest.raises(ExecutionFailure) as raised:
            executor.run_once(NEGATE, {"x": np.zeros(150 << 20, np.float32)})
        assert raised.value.kind == "out of memory"
        np.testing.assert_array_equal(executor.run_once(NEGATE, {"x": ONES})["y"], -ONES)


CUSTOM_OP = r"""
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
void *RegisterCustomOps(void *options, const void *api) {
    (void)options; (void)api;
    const char *what = getenv("OPGRAFT_TEST_LIBRARY");
    printf("a library that prints\n"); fflush(stdout);
    if (what && what[0] == 'a') { fprintf(stderr, "giving up\n"); abort(); }
    if (what && what[0] == 'e') _exit(3);
    return NULL;
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("library")
    (folder / "custom.c").write_text(CUSTOM_OP)
    path = folder / "libcustom.so"
    try:
        subprocess.run(["cc", "-shared", "-fPIC", "-o", path, folder / "custom.c"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler")
    return path


@pytest.mark.parametrize("what", ["abort", "exit"])
def test_native_library_that_ends_the_process(library, monkeypatch, what):
    monkeypatch.setenv("OPGRAFT_TEST_LIBRARY", what)
    with Executor() as executor:
        with pytest.raises(ExecutionFailure) as raised:
            executor.load(NEGATE, libraries=[library])
        assert raised.value.kind == "crashed"
        assert raised.value.signal == (6 if what == "abort" else None)
        if what == "abort":
            assert "SIGABRT: giving up" in str(raised.value)
        else:
            assert "exit code 3" in str(raised.value)


def test_native_output_does_not_reach_the_protocol(library, monkeypatch, capfd):
    monkeypatch.delenv("OPGRAFT_TEST_LIBRARY", raising=False)
    with Executor() as executor:
        handle = executor.load(NEGATE, libraries=[library])
        np.testing.assert_array_equal(executor.run(handle, {"x": ONES})["y"], -ONES)
    assert capfd.readouterr() == ("", "")


# The process


def is_running(pid):
    try:
        # A zombie has a status as well: it was not waited for.
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_close_and_garbage_collection_end_the_child():
    with Executor() as executor:
        pid = executor._child._process.pid
        executor.run_once(NEGATE, {"x": ONES})
    assert not Path(f"/proc/{pid}").exists()
    executor.close()
    with pytest.raises(RuntimeError, match="closed"):
        executor.load(NEGATE)
    forgotten = Executor()
    pid = forgotten._child._process.pid
    del forgotten
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()


def test_start_returns_before_the_child_is_ready():
    start = time.monotonic()
    with Executor():
        # Importing numpy and onnxruntime takes longer than this on any machine.
        assert time.monotonic() - start < 0.1
    with Executor(start=False) as lazy:
        assert lazy._child is None
        np.testing.assert_array_equal(lazy.run_once(NEGATE, {"x": ONES})["y"], -ONES)


def test_child_dies_with_its_parent(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from opgraft.backends.onnxruntime.executor import Executor\n"
        "executor = Executor(); handle = executor.load(Path(sys.argv[1]))\n"
        "print(executor._child._process.pid, flush=True)\n"
        "executor.run(handle, {'x': __import__('numpy').ones(4, 'float32')})\n"
    )
    model, _ = endless_loop()
    path = tmp_path / "endless.onnx"
    path.write_bytes(model)
    parent = subprocess.Popen([sys.executable, "-P", "-c", code, path], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    assert is_running(pid)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(pid)


def test_child_imports_neither_onnx_nor_torch():
    code = (
        "import sys, opgraft.backends.onnxruntime.worker\n"
        "print([m for m in ('onnx', 'onnx_ir', 'torch', 'ml_dtypes', 'networkx') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_run_once_and_memory():
    np.testing.assert_array_equal(run_once(NEGATE, {"x": ONES})["y"], -ONES)
    with Executor() as executor:
        before = executor.memory(reset=True)
        x = np.zeros(64 << 18, np.float32)  # 64 MiB in, 64 MiB out
        executor.run_once(NEGATE, {"x": x})
        grown = executor.memory().peak_bytes - before.resident_bytes
        assert 120 << 20 < grown < 200 << 20
        assert executor.versions()["onnxruntime"]
