"""Every elementwise kernel against its NumPy reference in float64, called without a session or TVM around it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

pytestmark = pytest.mark.tvm
pytest.importorskip("tvm_ffi")

from opgraft.backends.tvm.build import build_library  # noqa: E402
from opgraft.kernels.elementwise_ops import OPS  # noqa: E402
from opgraft.kernels.fused_elementwise import (  # noqa: E402
    ElementwiseRegion,
    Layout,
    Step,
    evaluate,
    inlinable,
    schedule,
)

FULL, ROW, SCALAR = Layout.FULL, Layout.ROW, Layout.SCALAR
EPSILON = float(np.finfo(np.float32).eps)
SIZES = (1, 15, 16, 17, 1000)
SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-30, -1e-40, 88.7, 89.5, -87.5, -104, 1e30, -3e38, 1, -1, 0.625, 1e-4],
    dtype=np.float32,
)
# Epsilons relative to the larger of |result| and the largest term. One rounding is half an epsilon; an operator
# rounds its argument, its polynomial and its last step.
ULPS = 2


def single(op: str, n: int = 1, constants: tuple[float, ...] = (), **attributes: float | str) -> ElementwiseRegion:
    values = {**OPS[op].defaults, **attributes}
    step = Step(op, tuple(range(n + len(constants))), tuple(sorted(values.items())))
    return ElementwiseRegion((FULL,) * n, constants, (step,), (n + len(constants),))


REGIONS = {
    **{op: single(op, max(OPS[op].n_inputs[0], 3 if op == "Clip" else 1)) for op in OPS if op != "Pow"},
    "Pow 2": single("Pow", 1, (2.0,)),
    "Pow 3": single("Pow", 1, (3.0,)),
    "Max of three": single("Max", 3),
    "Gelu tanh": single("Gelu", approximate="tanh"),
    "silu(g) * u + r": ElementwiseRegion(
        (FULL, FULL, FULL),
        (),
        (Step("Sigmoid", (0,)), Step("Mul", (0, 3)), Step("Mul", (4, 1)), Step("Add", (5, 2))),
        (6,),
    ),
    "tanh((x + row) * scalar) * 0.5, two outputs": ElementwiseRegion(
        (FULL, ROW, SCALAR),
        (0.5,),
        (Step("Add", (0, 1)), Step("Mul", (4, 2)), Step("Tanh", (5,)), Step("Mul", (6, 3))),
        (5, 7),
    ),
    "clip without a lower bound": ElementwiseRegion(
        (FULL, SCALAR), (), (Step("Clip", (0, None, 1)), Step("Neg", (2,)), Step("Abs", (3,))), (4,)
    ),
}

Run = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Calls a kernel on `[rows, columns]` buffers that start `offset` bytes after a multiple of 64."""
    library = ctypes.CDLL(str(build_library(list(REGIONS.values()), cache_dir=tmp_path_factory.mktemp("kernels"))))
    library.opgraft_kernel_run.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]

    def call(region: ElementwiseRegion, operands: list[np.ndarray], rows: int, columns: int, offset: int = 0):
        placed = [place(operand, offset) for operand in operands]
        results = [place(np.full((rows, columns), 7, np.float32), offset) for _ in region.outputs]
        pointers = [array.ctypes.data for array in (*placed, *results)]
        buffers = (ctypes.c_void_p * len(pointers))(*pointers)
        assert library.opgraft_kernel_run(region.symbol.encode(), rows, columns, buffers) == 0
        return results

    return call


def place(array: np.ndarray, offset: int) -> np.ndarray:
    raw = np.zeros(array.nbytes + 128, np.uint8)
    start = -raw.ctypes.data % 64 + offset
    placed = raw[start : start + array.nbytes].view(np.float32).reshape(array.shape)
    placed[...] = array
    return placed


def operands_of(region: ElementwiseRegion, rows: int, columns: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {FULL: (rows, columns), ROW: (columns,), SCALAR: (1,)}
    return [(rng.standard_normal(shapes[layout]) * 3).astype(np.float32) for layout in region.operands]


def assert_close(region: ElementwiseRegion, operands: list[np.ndarray], results: list[np.ndarray]) -> None:
    wide = evaluate(region, [operand.astype(np.float64) for operand in operands])
    for expected64, result in zip(wide, results, strict=True):
        with np.errstate(over="ignore"):
            expected = expected64.astype(np.float32)
        assert np.array_equal(np.isnan(expected), np.isnan(result))
        assert np.array_equal(expected[np.isinf(expected)], result[np.isinf(expected)])
        finite = np.isfinite(expected)
        # Inputs of an operation are rounded too: where a sum cancels, the error scales with its terms.
        terms = [np.abs(operand[np.isfinite(operand)]).max(initial=1) for operand in operands]
        floor = 1.0 if len(region.steps) == 1 else max(terms)
        if region.steps[0].op in ("Exp", "Tanh", "Erf", "Sqrt", "Reciprocal"):
            floor = 1e-37  # these keep their relative accuracy near zero
        magnitude = np.maximum(np.abs(expected[finite]), floor)
        error = np.abs(result[finite].astype(np.float64) - expected64[finite])
        assert np.all(error <= ULPS * EPSILON * magnitude), float(np.max(error / magnitude))


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("columns", SIZES)
def test_agrees_with_float64(run: Run, name: str, columns: int) -> None:
    region = REGIONS[name]
    rows = 3 if ROW in region.operands else 1
    operands = operands_of(region, rows, columns)
    assert_close(region, operands, run(region, operands, rows, columns))


@pytest.mark.parametrize("name", REGIONS)
def test_not_finite_and_extreme_inputs(run: Run, name: str) -> None:
    region = REGIONS[name]
    if region.operands.count(FULL) != len(region.operands):
        pytest.skip("the special values go into full operands")
    first, second = np.repeat(SPECIAL, len(SPECIAL)), np.tile(SPECIAL, len(SPECIAL))
    columns = len(first)
    operands = [array.reshape(1, columns) for array in (first, second, first[::-1].copy())[: len(region.operands)]]
    if name == "Clip":
        operands[1:] = [np.full((1, columns), bound, np.float32) for bound in (-1.5, 2.5)]
    result = run(region, operands, 1, columns)
    with np.errstate(all="ignore"):
        own = evaluate(region, operands)
    # NumPy in float32 overflows where the kernel does; float64 would not.
    assert np.array_equal(np.isnan(own[0]), np.isnan(result[0]))
    assert np.array_equal(np.isinf(own[0]), np.isinf(result[0]))


@pytest.mark.parametrize("offset", [4, 16, 36])
def test_unaligned_buffers_give_the_same_bits(run: Run, offset: int) -> None:
    """Regression: kernels that assume TVM's default alignment of 64 bytes crash the process here."""
    for region in REGIONS.values():
        operands = operands_of(region, 2, 133)
        aligned = run(region, operands, 2, 133)
        for left, right in zip(aligned, run(region, operands, 2, 133, offset), strict=True):
            assert left.tobytes() == right.tobytes()


def test_vector_and_tail_agree(run: Run) -> None:
    """An element's bits do not depend on its place, so that cutting the work into tasks changes nothing."""
    for region in REGIONS.values():
        if ROW in region.operands:
            continue
        operands = operands_of(region, 1, 64)
        whole = run(region, operands, 1, 64)
        cut = [operand if operand.size == 1 else operand[:, 5:20].copy() for operand in operands]
        for left, right in zip(whole, run(region, cut, 1, 15), strict=True):
            assert left[:, 5:20].tobytes() == right.tobytes()


def test_digest_names_the_meaning() -> None:
    region = REGIONS["silu(g) * u + r"]
    assert region.digest == ElementwiseRegion(region.operands, (), region.steps, region.outputs).digest
    changed = ElementwiseRegion((FULL, FULL, ROW), (), region.steps, region.outputs)
    assert changed.digest != region.digest
    assert single("Gelu").digest != single("Gelu", approximate="tanh").digest


def test_schedule_states_alignment_and_calls_no_libm() -> None:
    text = schedule(list(REGIONS.values()))
    assert text.count("T.match_buffer") == text.count("align=4")
    assert not any(call in text for call in ("T.exp(", "T.tanh(", "T.erf(", "T.sigmoid("))


def test_zero_and_infinity_are_no_literals() -> None:
    assert inlinable(0.5)
    assert not any(inlinable(value) for value in (0.0, -0.0, np.inf, np.nan))
