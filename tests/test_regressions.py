"""Models that once came out wrong: each must keep its bits (or its accuracy) through the pass that broke it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import parser

sys.path.insert(0, str(Path(__file__).parent))
from backend_forms import Case
from backend_harness import FAILED, PASSED, Harness


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as opened:
        yield opened


def _numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


_CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "slices that start beyond the largest integer": (
        # The composed start overflowed int64: the pass raised OverflowError.
        "compose-slices",
        """<ir_version: 10, opset_import: ["" : 21]> f (float[N] x) => (float[M] y)
        <int64[1] s = {1}, int64[1] e = {9223372036854775807}, int64[1] i = {0}, int64[1] t = {1}, int64[1] u = {5},
         int64[1] p = {2}>
        { a = Slice (x, e, s, i) y = Slice (a, t, u, i, p) }""",
        {"x": _numbers(7)},
    ),
    "a transposition flag of -1": (
        # Any number but 0 transposes; the flag became 1 - (-1) = 2, which transposes still.
        "lower-linear",
        """<ir_version: 10, opset_import: ["" : 21]> f (float[2, N] x) => (float[3, M] y)
        <float[3, 2] w = {1, 2, 3, 4, 5, 6}>
        { s = Transpose (x) y = Gemm <transB = -1> (w, s) }""",
        {"x": _numbers(2, 5)},
    ),
    "a constant rounded to half precision": (
        # The runtime multiplies in float32 and never rounds h; the folded h was rounded.
        "fold-constants",
        """<ir_version: 10, opset_import: ["" : 20]> f (float16[N] x) => (float16[N] y)
        <float[1] s = {8}>
        { r = Sqrt (s) h = Cast <to = 10> (r) y = Mul (x, h) }""",
        {"x": _numbers(64).astype(np.float16)},
    ),
    "a constant output of half a byte per element": (
        # It became an initializer behind an Identity, and the runtime has no Identity for this type.
        "fold-constants",
        """<ir_version: 10, opset_import: ["" : 25]> f () => (uint4[4] y)
        <float[4] s = {1, 2, 3, 4}>
        { y = Cast <to = 21> (s) }""",
        {},
    ),
    "a constant string whose shape is known": (
        # Strings have no size in bits: the pass raised TypeError.
        "fold-constants",
        """<ir_version: 10, opset_import: ["" : 20]> f () => (string[1] y)
        <string[1] a = {"a"}, string[1] b = {"b"}>
        { c = StringConcat (a, b) y = StringConcat (c, a) }""",
        {},
    ),
    "a part of the shape in a function with parameters": (
        # The rewritten Shape lost its reference to the parameter.
        "fold-shapes",
        """<ir_version: 10, opset_import: ["" : 20, "local" : 1]> f (float[N, M] x) => (int64[K] s)
        { s = local.part <first = 1> (x) }
        <domain: "local", opset_import: ["" : 20]> part <first> (x) => (s)
        { a = Abs (x) s = Shape <start: int = @first> (a) }""",
        {"x": _numbers(2, 3)},
    ),
    "a branch that gives a sequence": (
        # The result of If was recorded as a tensor of the sequence's element type.
        "infer-shapes",
        """<ir_version: 10, opset_import: ["" : 20]> f (bool c, float[N] x, seq(float) q) => (float[M] y)
        <int64 i = {0}>
        {
          s = If (c) <then_branch = g () => (seq(float) p) { p = SequenceInsert (q, x) },
                      else_branch = h () => (seq(float) r) { r = SequenceConstruct (x, x) }>
          y = SequenceAt (s, i)
        }""",
        {"c": np.array(False), "x": _numbers(3), "q": [_numbers(2)]},
    ),
    "a branch that is never taken and does not fit the folded constant": (
        # Once the shape of w was known, the runtime refused to infer types in the branch that squeezes it.
        "inline-constant-if",
        """<ir_version: 10, opset_import: ["" : 20]> f (float[N] x) => (float[M] y)
        <float[4] v = {1, 2, 3, 4}, bool[4] all = {1, 1, 1, 1}, bool no = {0}, int64[1] axes = {0}>
        {
          w = Compress (v, all)
          k = Not (no)
          c = Not (k)
          y = If (c) <then_branch = g () => (float[A] p) { u = Squeeze (w, axes) p = Add (x, u) },
                      else_branch = h () => (float[B] r) { r = Add (x, w) }>
        }""",
        {"x": _numbers(4)},
    ),
    "the mask of Dropout at opset 10": (
        # Its content is undefined in inference and the runtime gives false; the pass made it true.
        "eliminate-nop-dropout",
        """<ir_version: 8, opset_import: ["" : 10]> f (float[N, 4] x) => (float[N, 4] y, bool[N, 4] m)
        { a, m = Dropout (x) y = Neg (a) }""",
        {"x": _numbers(3, 4)},
    ),
}


def test_many_rewrites_in_a_branch_that_is_inlined(harness: Harness) -> None:
    """They were counted against the nodes of the outer graph, of which there is one, and taken for an endless loop."""
    chain = "".join(f"a{i} = Identity (n{i}) n{i + 1} = Neg (a{i}) " for i in range(150))
    text = f"""<ir_version: 10, opset_import: ["" : 20]> f (float[N] x) => (float[N] y) <bool c = {{1}}>
    {{ y = If (c) <then_branch = g () => (float[N] p) {{ n0 = Abs (x) {chain} p = Neg (n150) }},
                   else_branch = h () => (float[N] q) {{ q = Abs (x) }}> }}"""
    row = harness.examine(Case("long branch", "regression", parser.parse_model(text), [{"x": _numbers(3)}]), "as is")
    assert row["outcome"] == "same bits", row["detail"]
    assert row["firings"]["eliminate-double-negation"] > 0


@pytest.mark.parametrize("name", _CASES)
@pytest.mark.parametrize("alone", [True, False], ids=["alone", "in the pipeline"])
def test_regression(name: str, alone: bool, harness: Harness) -> None:
    pass_name, text, feed = _CASES[name]
    pipelines = (pass_name,) if alone else (pass_name, "optimize")
    row = harness.examine(Case(name, "regression", parser.parse_model(text), [feed], pipelines=pipelines), "as is")
    assert row["outcome"] != FAILED, row["detail"]
    assert row["outcome"] in PASSED, row
