"""Partitioning, and the kernel library inside ONNX Runtime: the kernel wins, the body is its fallback."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common
import onnxruntime as ort
import pytest
from opgraft.backends.tvm import build
from opgraft.backends.tvm.build import build_library
from opgraft.backends.tvm.partition import TvmLowering, lower_elementwise, partition_elementwise
from opgraft.ir.errors import InputError, MissingExtraError, UsageError
from opgraft.kernels.fused_elementwise import ElementwiseRegion, Layout, Step

pytestmark = pytest.mark.tvm

GATED = """
<ir_version: 8, opset_import: ["" : 18]>
gated (float[B,T,48] x, float[48,48] wg, float[48,48] wu, float[48] bias, float[B,T,48] rest)
      => (float[B,T,48] y, float[B,T,48] branch) {
  half = Constant<value: tensor = float[1] {0.5}>()
  zero = Constant<value: tensor = float[1] {0.0}>()
  gate = MatMul(x, wg)
  sig = Sigmoid(gate)
  silu = Mul(gate, sig)
  late = Softmax(gate)
  up = MatMul(late, wu)
  up_b = Add(up, bias)
  both = Mul(silu, up_b)
  scaled = Mul(both, half)
  branch = Max(scaled, zero)
  y = Add(scaled, rest)
}
"""
LEVELS = [
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
]
# What the C library and the loader provide; anything of TVM or of the C++ library would be a defect.
ALLOWED_SYMBOLS = {
    *("_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize", "__gmon_start__"),
    *("__isoc99_sscanf", "sscanf", "snprintf", "__snprintf_chk", "__tls_get_addr", "__stack_chk_fail"),
    *("aligned_alloc", "free", "memcmp", "memcpy", "memset", "strcmp", "strlen", "strncat", "__strncat_chk"),
}


def parse(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    return model


def partition(text: str) -> tuple[onnx.ModelProto, tuple, tuple]:
    model, regions, refused = partition_elementwise(onnx_ir.serde.deserialize_model(parse(text)))
    proto = onnx_ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto, regions, refused


def session(
    model: onnx.ModelProto, library: Path | None = None, level: int = LEVELS[0], threads: int = 1
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(batch: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"x": (batch, tokens, 48), "wg": (48, 48), "wu": (48, 48), "bias": (48,), "rest": (batch, tokens, 48)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def assert_equal_numbers(expected: list[np.ndarray], got: list[np.ndarray]) -> None:
    for left, right in zip(expected, got, strict=True):
        # A handful of float32 roundings on numbers whose largest is the array's maximum.
        np.testing.assert_allclose(right, left, rtol=0, atol=8 * 1.2e-7 * np.abs(left).max(initial=1))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def lowering(cache: Path) -> TvmLowering:
    pytest.importorskip("tvm_ffi")
    return lower_elementwise(onnx_ir.serde.deserialize_model(parse(GATED)), cache_dir=cache)


@pytest.fixture(scope="module")
def lowered(lowering: TvmLowering) -> onnx.ModelProto:
    return onnx_ir.serde.serialize_model(lowering.model)


def count_calls(lowering: TvmLowering) -> int:
    library = ctypes.CDLL(str(lowering.library))
    library.opgraft_kernel_calls.restype = ctypes.c_int64
    return sum(library.opgraft_kernel_calls(region.operator.encode()) for region in lowering.regions)


@pytest.mark.parametrize("level", LEVELS)
def test_kernel_wins_over_body_at_every_level(lowering: TvmLowering, lowered: onnx.ModelProto, level: int) -> None:
    expected = session(parse(GATED)).run(None, feeds(2, 7))
    before = count_calls(lowering)
    with_library = session(lowered, lowering.library, level).run(None, feeds(2, 7))
    assert count_calls(lowering) == before + 1
    body = session(lowered, None, level).run(None, feeds(2, 7))
    assert count_calls(lowering) == before + 1
    assert_equal_numbers(expected, with_library)
    assert_equal_numbers(expected, body)


def test_body_gives_the_original_bits(lowered: onnx.ModelProto) -> None:
    expected, body = session(parse(GATED)).run(None, feeds(3, 5)), session(lowered).run(None, feeds(3, 5))
    assert [array.tobytes() for array in expected] == [array.tobytes() for array in body]


@pytest.mark.parametrize(("batch", "tokens", "threads"), [(1, 1, 1), (0, 3, 1), (16, 129, 1), (16, 129, 2)])
def test_one_kernel_serves_every_shape(
    lowering: TvmLowering, lowered: onnx.ModelProto, batch: int, tokens: int, threads: int
) -> None:
    expected = session(parse(GATED)).run(None, feeds(batch, tokens))
    got = session(lowered, lowering.library, threads=threads).run(None, feeds(batch, tokens))
    assert_equal_numbers(expected, got)


def test_tasks_do_not_change_bits(lowering: TvmLowering, lowered: onnx.ModelProto) -> None:
    runs = [session(lowered, lowering.library, threads=n).run(None, feeds(16, 129)) for n in (1, 2)]
    assert [array.tobytes() for array in runs[0]] == [array.tobytes() for array in runs[1]]


UNALIGNED = """<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) {
    a = Exp(x)
    b = Add(a, x)
    y = Sqrt(b)
}"""
ONE_NAME = """<ir_version: 8, opset_import: ["" : 18]> g (float[N,4] x, float[N,4] z) => (float[N,4] y) {
    a = Mul(x, z)
    b = Tanh(a)
    y = Add(b, z)
}"""


@pytest.fixture(scope="module")
def shared_library(cache: Path) -> Path:
    pytest.importorskip("tvm_ffi")
    kernels = [region.kernel for text in (UNALIGNED, ONE_NAME) for region in partition(text)[1]]
    assert len(kernels) == 2
    return build_library(kernels, cache_dir=cache)


def test_unaligned_session_inputs(shared_library: Path) -> None:
    run = session(partition(UNALIGNED)[0], shared_library)
    memory = np.zeros(4 * 1001 + 128, np.uint8)
    for offset in (0, 4, 16):
        start = -memory.ctypes.data % 64 + offset
        x = memory[start : start + 4 * 1001].view(np.float32)
        x[:] = np.linspace(0, 5, 1001)
        (y,) = run.run(None, {"x": x})
        # Three operations of half an epsilon each, and exp's own polynomial.
        np.testing.assert_allclose(y, np.sqrt(np.exp(x.astype(np.float64)) + x), rtol=5e-7)


def test_dims_of_one_name_that_differ_are_refused(shared_library: Path) -> None:
    """`N` twice means one size; at run time broadcasting would be possible, and the kernel has no loop for it."""
    run = session(partition(ONE_NAME)[0], shared_library)
    with pytest.raises(Exception, match="operand 1 has another shape than the model declares"):
        run.run(None, {"x": np.ones((3, 4), np.float32), "z": np.ones((1, 4), np.float32)})


def test_partition_waits_for_late_operands_and_keeps_names(lowering: TvmLowering, lowered: onnx.ModelProto) -> None:
    (region,) = lowering.regions
    assert len(region.kernel.steps) == 7
    assert set(region.outputs) == {"branch", "y"}
    assert region.kernel.constants == (0.5,)
    operators = [node.op_type for node in lowered.graph.node]
    assert operators.count(region.operator) == 1
    assert "Sigmoid" not in operators
    assert [value.name for value in lowered.graph.output] == ["y", "branch"]
    assert len(lowered.functions) == 1
    assert lowered.functions[0].domain == "opgraft.kernels"


def test_input_model_is_not_changed() -> None:
    def structure(model: onnx_ir.Model) -> list[tuple]:
        return [
            (node.op_type, [v.name for v in node.inputs], [(v.name, str(v.shape)) for v in node.outputs])
            for node in model.graph
        ]

    model = onnx_ir.serde.deserialize_model(parse(GATED))
    before = structure(model)
    partitioned, _, _ = partition_elementwise(model)
    assert structure(model) == before != structure(partitioned)
    assert not model.functions
    assert "opgraft.kernels" not in model.opset_imports


def test_region_stays_convex() -> None:
    """a -> Softmax -> c: a and c must not share a region, whatever else connects them."""
    proto, regions, _ = partition("""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,8] x) => (float[N,8] y) {
        a = Exp(x)
        a2 = Tanh(a)
        a3 = Neg(a2)
        s = Softmax(a3)
        c = Add(a3, s)
        c2 = Sqrt(c)
        y = Mul(c2, a2)
    }""")
    assert sorted(len(region.kernel.steps) for region in regions) == [3, 3]
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    session(proto).run(None, {"x": x})


def test_values_read_in_bodies_are_outputs() -> None:
    proto, regions, _ = partition("""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,8] x, bool flag) => (float[N,8] y) {
        a = Exp(x)
        b = Tanh(a)
        c = Neg(b)
        d = If (flag) <then_branch = t () => (float[N,8] p) { p = Softmax(b) },
                       else_branch = e () => (float[N,8] q) { q = Identity(c) }>
        y = Add(d, c)
    }""")
    assert [set(region.outputs) for region in regions] == [{"b", "c"}]
    x = np.ones((2, 8), np.float32)
    np.testing.assert_allclose(
        session(proto).run(None, {"x": x, "flag": np.array(False)})[0], -2 * np.tanh(np.exp(x)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("declaration", "steps", "reason"),
    [
        ("float[N] x, float[N] z", "a = Exp(x) y = Add(a, z)", "fewer than 3"),
        ("double[N] x, double[N] z", "a = Exp(x) b = Neg(a) y = Add(b, z)", "another type than float32"),
        ("float[N,M] x, float[N,1] z", "a = Exp(x) b = Neg(a) y = Add(b, z)", "broadcasts in a way"),
        ("float[N] x, float[N] z", "a = Pow(x, z) b = Neg(a) y = Add(b, z)", "exponent"),
    ],
)
def test_refusals_say_why(declaration: str, steps: str, reason: str) -> None:
    kind = declaration.split(" ")[0]
    _, regions, refused = partition(
        f'<ir_version: 8, opset_import: ["" : 18]> g ({declaration}) => ({kind} y) {{ {steps} }}'
    )
    assert not regions
    assert any(reason in refusal.reason and refusal.where for refusal in refused)


def test_long_chain_is_cut_and_equal() -> None:
    steps = [f"v{i} = {'Tanh' if i % 2 else 'Neg'}({'x' if i == 0 else f'v{i - 1}'})" for i in range(200)]
    text = "\n".join(steps)
    text = f'<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] v199) {{ {text} }}'
    proto, regions, _ = partition(text)
    assert sum(len(region.kernel.steps) for region in regions) == 200
    assert len(regions) == 4
    x = np.linspace(-2, 2, 9, dtype=np.float32)
    assert session(proto).run(None, {"x": x})[0].tobytes() == session(parse(text)).run(None, {"x": x})[0].tobytes()


def test_same_regions_share_one_operator() -> None:
    proto, regions, _ = partition("""<ir_version: 8, opset_import: ["" : 18]>
    g (float[N,8] x) => (float[N,8] y) {
        a = Exp(x)
        b = Tanh(a)
        c = Neg(b)
        s = Softmax(c)
        d = Exp(s)
        e = Tanh(d)
        y = Neg(e)
    }""")
    assert len(regions) == 2
    assert len(proto.functions) == 1


def test_old_opset_is_refused() -> None:
    model = onnx_ir.serde.deserialize_model(parse(GATED))
    model.opset_imports[""] = 10
    with pytest.raises(InputError, match="opset 10"):
        partition_elementwise(model)


REGION = ElementwiseRegion((Layout.FULL,), (), (Step("Neg", (0,)), Step("Abs", (1,)), Step("Sqrt", (2,))), (3,))


def test_library_needs_only_the_c_library(lowering: TvmLowering) -> None:
    listed = subprocess.run(
        ["nm", "-D", str(lowering.library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    undefined = {line.split()[-1].split("@")[0] for line in listed if line.split()[-2] in "Uw"}
    assert undefined <= ALLOWED_SYMBOLS
    exported = {line.split()[-1] for line in listed if line.split()[-2] not in "Uw"}
    assert exported == {"RegisterCustomOps", "opgraft_kernel_calls", "opgraft_kernel_run"}


def test_runs_without_tvm_in_the_process(lowering: TvmLowering, lowered: onnx.ModelProto, tmp_path: Path) -> None:
    onnx.save(lowered, tmp_path / "model.onnx")
    program = (
        "import sys, onnxruntime as ort; o = ort.SessionOptions(); o.register_custom_ops_library(sys.argv[1]);"
        "ort.InferenceSession(sys.argv[2], o); maps = open('/proc/self/maps').read();"
        "assert 'tvm' not in sys.modules and 'libtvm' not in maps; print('loaded')"
    )
    command = [sys.executable, "-P", "-c", program, str(lowering.library), str(tmp_path / "model.onnx")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.stdout.strip() == "loaded", finished.stderr


def test_cached_library_is_not_built_again(lowering: TvmLowering, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(build, "_build", fail)
    kernels = [region.kernel for region in lowering.regions]
    assert build_library(kernels, cache_dir=cache) == lowering.library
    assert not list(cache.glob(".build-*"))


def test_missing_compiler_names_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"install g\+\+"):
        build_library([REGION], cache_dir=tmp_path)


def test_unknown_processor_lists_the_known(tmp_path: Path) -> None:
    pytest.importorskip("tvm_ffi")
    with pytest.raises(UsageError, match="znver4"):
        build_library([REGION], target_cpu="no-such-processor", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
