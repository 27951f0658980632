"""Dim relations: views that are taken back, sizes that collide, and every operator held against interventions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.axes import AxisGraph, Kind, analyze_axes
from opgraft.ir.axes.digits import digits_of
from opgraft.ir.axes.origins import Origins
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.dims import dim
from opgraft.ir.program import Program

sys.path.insert(0, str(Path(__file__).parent))
from operator_interventions import examine, sample_cases


def parse(text: str, **weights: np.ndarray) -> Program:
    model = onnx.parser.parse_model(text)
    for name, array in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return capture_onnx(model)


def value(program: Program, name: str):
    found = {v.name: v for v in program.graph.inputs}
    found.update({v.name: v for node in program.graph for v in node.outputs})
    return found[name]


def sources(graph: AxisGraph, program: Program, name: str, position: int, *kinds: Kind) -> set[str]:
    """The dims that the dim comes from by these kinds of relations, as text."""
    number = graph.of(value(program, name))[position]
    return {str(graph.axes[r.source]) for r in graph.into[number] if r.kind in kinds}


HEAD = '<ir_version: 10, opset_import: ["" : 21]> '


def test_heads_split_and_merged_are_the_channel_again() -> None:
    """All sizes are 4 or 16, so that only the order of digits tells the dims apart."""
    program = parse(
        HEAD + "f (float[4,4,16] x) => (float[4,4,16] y) <int64[4] s = {4,4,4,4}, int64[3] m = {4,4,16}>"
        "{ a = Reshape (x, s) t = Transpose <perm = [0, 2, 1, 3]> (a) u = Transpose <perm = [0, 2, 1, 3]> (t)"
        "  y = Reshape (u, m) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "t", 1, Kind.SAME) == {"a[2]"}
    assert sources(graph, program, "y", 2, Kind.RESTORED) == {"x[2]"}
    assert sources(graph, program, "y", 0, Kind.SAME) == {"u[0]"}


def test_heads_merged_in_another_order_are_not_the_channel() -> None:
    program = parse(
        HEAD + "f (float[4,4,16] x) => (float[4,4,16] y) <int64[4] s = {4,4,4,4}, int64[3] m = {4,4,16}>"
        "{ a = Reshape (x, s) t = Transpose <perm = [0, 1, 3, 2]> (a) y = Reshape (t, m) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 2, Kind.RESTORED) == set()


def test_samples_and_heads_merged_at_once() -> None:
    """[T, B, C] -> [T, B * H, D]: one view that splits the channel and merges the heads with the samples."""
    program = parse(
        HEAD + "f (float[5,4,12] x) => (float[5,4,3,4] z) <int64[3] s = {5,12,4}, int64[4] b = {5,4,3,4}>"
        "{ y = Reshape (x, s) z = Reshape (y, b) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "z", 1, Kind.RESTORED) == {"x[1]"}
    assert len(graph.components(graph.of(value(program, "y"))[1])) == 2


def test_windows_of_an_image_are_taken_back() -> None:
    program = parse(
        HEAD + "f (float[N,8,8,6] x) => (float[N,8,8,6] y)"
        " <int64[6] s = {-1,2,4,2,4,6}, int64[3] w = {-1,16,6}, int64[6] r = {-1,2,2,4,4,6}, int64[4] m = {-1,8,8,6}>"
        "{ a = Reshape (x, s) b = Transpose <perm = [0,1,3,2,4,5]> (a) c = Reshape (b, w) d = Reshape (c, r)"
        "  e = Transpose <perm = [0,1,3,2,4,5]> (d) y = Reshape (e, m) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 1, Kind.RESTORED) == {"x[1]"}
    assert sources(graph, program, "y", 2, Kind.RESTORED) == {"x[2]"}


def test_uses_of_a_shared_constant_are_apart() -> None:
    program = parse(
        HEAD + "f (float[4,4] x) => (float[4,4] z) { y = Add (x, zeros) t = Transpose (y) z = Add (t, zeros) }",
        zeros=np.zeros(4, np.float32),
    )
    graph = analyze_axes(program)
    first, second = (graph.operand(node, 1) for node in program.graph if node.op_type == "Add")
    assert first is not None
    assert second is not None
    assert set(first).isdisjoint(second)


def test_origins_follow_the_data_and_not_its_bias() -> None:
    program = parse(
        HEAD + "f (float[N,4] x) => (float[N,4] z) { y = MatMul (x, w) z = Add (y, table) }",
        w=np.ones((4, 4), np.float32),
        table=np.ones((4, 4), np.float32),
    )
    graph = analyze_axes(program)
    origins = Origins(graph)
    rows, columns = graph.of(value(program, "z"))
    assert origins.is_input(rows)
    assert origins.is_weight(columns)
    assert origins.roots[rows] == frozenset(graph.of(program.graph.inputs[0])[:1])


def test_digits_of_symbolic_shapes() -> None:
    batch, length = dim("batch"), dim("length")
    digits, left, right = digits_of([batch, length, 12], [batch * length, 3, 4])
    assert not left
    assert not right
    assert {(d.source, d.target, str(d.in_stride), str(d.out_stride)) for d in digits} == {
        (0, 0, "1", "length"),
        (1, 0, "1", "1"),
        (2, 1, "4", "1"),
        (2, 2, "1", "1"),
    }


def test_views_without_a_common_radix_are_not_followed() -> None:
    digits, left, right = digits_of([dim("batch"), 6, 10, 7], [dim("batch"), 4, 15, 7])
    assert {(d.source, d.target) for d in digits} == {(0, 0), (3, 3)}
    assert (left, right) == ([1, 2], [1, 2])


def test_a_reshape_that_cannot_run_relates_nothing() -> None:
    """Six heads of 8 made two of 8, as TorchScript writes repeated keys: what came before is not to be guessed."""
    for channels, is_followed in ((16, True), (48, False)):
        program = parse(
            HEAD + f"f (float[B,T,{channels}] x) => (float[B,T,H,D] y) <int64[4] s = {{0,0,2,8}}>"
            "{ y = Reshape (x, s) }"
        )
        graph = analyze_axes(program)
        assert bool(sources(graph, program, "y", 1, Kind.SAME)) == is_followed
        assert (list(graph.opaque.values()) == []) == is_followed
        found = {r.detail for r in graph.into[graph.of(value(program, "y"))[2]] if r.kind is Kind.OPAQUE}
        assert found == (set() if is_followed else {"the two sides of this reshape hold different numbers of elements"})


def test_softmax_of_old_opsets_mixes_from_the_axis_on() -> None:
    text = "f (float[2,3,4] x) => (float[2,3,4] y) { y = Softmax (x) }"
    for opset, mixed in ((11, [1, 2]), (13, [2])):
        program = parse(f'<ir_version: 7, opset_import: ["" : {opset}]> ' + text)
        graph = analyze_axes(program)
        numbers = graph.of(value(program, "y"))
        assert [i for i, n in enumerate(numbers) if graph.into[n][0].kind is Kind.MIXED] == mixed


def test_dims_of_other_sizes_are_never_the_same() -> None:
    """Before opset 21 the scale of GroupNormalization has one element per group, not per channel."""
    program = parse(
        '<ir_version: 8, opset_import: ["" : 18]> f (float[N,6,4] x) => (float[N,6,4] y)'
        "{ y = GroupNormalization <num_groups = 2> (x, s, s) }",
        s=np.ones(2, np.float32),
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 1, Kind.SAME) == set()
    assert "s[0]" in sources(graph, program, "y", 1, Kind.SCRAMBLED)


def test_negative_axes_of_a_shifting_pad() -> None:
    program = parse(
        HEAD + "f (float[N,5] x) => (float[N,5] y) <int64[2] p = {1,-1}, int64[1] a = {-1}>{ y = Pad (x, p, , a) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 1, Kind.SAME) == set()
    assert sources(graph, program, "y", 1, Kind.PLACED) == {"x[1]"}


@pytest.mark.parametrize(
    ("sizes", "keeps", "index", "start", "rank"),
    [("int64[3] s = {4,4,2}", 1, -1, 8, 2), ("int64 s = {4}", 1, 1, 4, 2), ("int64[1] unused = {0}", 0, 3, 3, 1)],
    ids=["a list", "one size", "single elements"],
)
def test_parts_of_split_sequences(sizes: str, keeps: int, index: int, start: int, rank: int) -> None:
    given = ", s" if " s " in sizes else ""
    program = parse(
        HEAD + f"f (float[N,10] x) => (float[] y) <{sizes}, int64 i = {{{index}}}>"
        f"{{ q = SplitToSequence <axis = 1, keepdims = {keeps}> (x{given}) y = SequenceAt (q, i) }}"
    )
    graph = analyze_axes(program)
    assert graph.opaque == {}
    assert len(graph.of(value(program, "y"))) == rank
    column = graph.of(program.graph.inputs[0])[1]
    (relation,) = graph.out_of[column]
    assert (relation.detail[0] if rank == 2 else relation.detail) == start


def test_a_part_of_split_weights_has_their_dims() -> None:
    """As TorchScript and PyTorch's attention layer unpack projections."""
    program = parse(
        HEAD + "f (float[N,4] x) => (float[N,2] y) <float[4,6] w, int64[2] sizes = {2,4}, int64 first = {0}>"
        "{ s = SplitToSequence <axis = 1> (w, sizes) p = SequenceAt (s, first) y = MatMul (x, p) }",
        w=np.ones((4, 6), np.float32),
    )
    graph = analyze_axes(program)
    taken = [graph.into[number] for number in graph.of(value(program, "p"))]
    assert [[(r.kind, str(graph.axes[r.source])) for r in relations] for relations in taken] == [
        [(Kind.SAME, "w[0]")],
        [(Kind.SLICED, "w[1]")],
    ]


STRIDED = "i0 = Range (zero, n, one) i1 = Mul (i0, six) i2 = Unsqueeze (i1, last)"


@pytest.mark.parametrize(
    ("indices", "given"),
    [
        (f"xs = Shape <start = 0, end = 1> (x) n = Squeeze (xs) {STRIDED} i = Add (i2, columns)", ""),
        ("", ", int64[2,6] i = {0,1,2,3,4,5,6,7,8,9,10,11}"),
    ],
    ids=["ranges", "a constant"],
)
def test_a_gather_of_all_elements_in_order_is_a_view(indices: str, given: str) -> None:
    """As exporters write `as_strided`."""
    rows = "2" if given else "N"
    program = parse(
        HEAD
        + f"f (float[{rows},6] x) => (float[{rows},6] y) <int64[1] flat = {{-1}}, int64[1] last = {{1}}, int64 zero ="
        f" {{0}}, int64 one = {{1}}, int64 six = {{6}}, int64[6] columns = {{0,1,2,3,4,5}}{given}>"
        f"{{ f = Reshape (x, flat) {indices} y = Gather (f, i) }}"
    )
    graph = analyze_axes(program)
    assert [sources(graph, program, "y", d, Kind.RESTORED) for d in (0, 1)] == [{"x[0]"}, {"x[1]"}]


def test_a_gather_in_another_order_is_no_view() -> None:
    program = parse(
        HEAD + "f (float[2,2] x) => (float[2,2] y) <int64[1] flat = {-1}, int64[2,2] i = {0,2,1,3}>"
        "{ f = Reshape (x, flat) y = Gather (f, i) }"
    )
    graph = analyze_axes(program)
    assert [sources(graph, program, "y", d, Kind.RESTORED) for d in (0, 1)] == [set(), set()]


def test_a_scatter_on_a_grid_places() -> None:
    """One step of an unrolled loop: `out[:, 2] = step`."""
    program = parse(
        HEAD + "f (float[2,4,3] x, float[2,1,3] step) => (float[2,4,3] y) <int64[2,1,2] i = {0,2,1,2}>"
        "{ y = ScatterND (x, i, step) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 0, Kind.SAME) == {"x[0]", "step[0]", "i[0]"}
    assert sources(graph, program, "y", 1, Kind.SCRAMBLED) == set()
    assert sources(graph, program, "y", 2, Kind.SAME) == {"x[2]", "step[2]"}


def test_tiles_are_repetitions_of_the_dim() -> None:
    program = parse(
        HEAD + "f (float[N,4] x) => (float[3,N,4] y) <int64[2] r = {3,1}, int64[3] s = {3,-1,4}>"
        "{ t = Tile (x, r) y = Reshape (t, s) }"
    )
    graph = analyze_axes(program)
    assert sources(graph, program, "y", 1, Kind.RESTORED) == {"x[0]"}
    assert graph.is_stretched(graph.of(value(program, "y"))[0])


def test_what_is_cut_out_of_a_concatenation_comes_from_the_piece() -> None:
    """A class token in front of the patches, and taken out again."""
    program = parse(
        HEAD + "f (float[N,T,4] x) => (float[N,1,4] c, float[N,S,4] p) <int64[1] o = {0}, int64[1] one = {1},"
        " int64[1] big = {1000}, int64[3] s = {0,1,1}>"
        "{ xs = Shape <start = 0, end = 1> (x) to = Concat <axis = 0> (xs, one, one) e = Expand (token, to)"
        "  a = Concat <axis = 1> (e, x) b = Relu (a) c = Slice (b, o, one, one) p = Slice (b, one, big, one) }",
        token=np.ones((1, 1, 4), np.float32),
    )
    graph = analyze_axes(program)
    origins = Origins(graph)
    assert not origins.is_input(graph.of(value(program, "c"))[1])
    assert origins.is_input(graph.of(value(program, "p"))[1])


def test_what_is_not_known_has_a_reason_and_a_place() -> None:
    program = parse(HEAD + "f (float[N,4] x) => (int64[2,M] y) { y = NonZero (x) }")
    graph = analyze_axes(program)
    (node,) = program.graph
    assert graph.opaque[node] == "which elements come out depends on the numbers"


@pytest.fixture(scope="module")
def executor():
    with Executor(time_limit_s=60) as running:
        yield running


def test_operators_move_what_their_rules_say(executor: Executor) -> None:
    """A sample of the operator tests: no element moves where the rule says that none can. `make evidence-axes`: all."""
    rows = [examine(case, executor) for case in sample_cases()]
    assert [row for row in rows if row.get("wrong")] == []
    assert len({row["operator"] for row in rows if row.get("bounded")}) > 40
