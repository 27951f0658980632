"""Sites: attention, masks and rotary positions by what they compute; refusals; ground truth on a sample of networks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.axes.roles import text_of
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.sites import MaskClass, Sites, find_sites
from opgraft.ir.sites.interventions import check_interventions
from opgraft.ir.sites.layers import GatedMlp

sys.path.insert(0, str(Path(__file__).parent))
from ground_truth import anonymous, compare

HEAD = '<ir_version: 10, opset_import: ["" : 21]> '
RNG = np.random.default_rng(0)
ATTENTION = """
  q0 = MatMul (x, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k0 = MatMul (x, wk) k1 = Reshape (k0, split) k = Transpose <perm = [0, 2, 3, 1]> (k1)
  v0 = MatMul (x, wv) v1 = Reshape (v0, split) v = Transpose <perm = [0, 2, 1, 3]> (v1)
  s0 = MatMul (q, k) s = Mul (s0, scale)
"""
REST = """
  p = Softmax (m) c0 = MatMul (p, v) c1 = Transpose <perm = [0, 2, 1, 3]> (c0) c = Reshape (c1, merge)
  y = MatMul (c, wo)
"""
CONSTANTS = "int64[4] split = {0, 0, 4, 4}, int64[3] merge = {0, 0, 16}, float scale = {0.5}"


def parse(text: str, *names: str) -> Sites:
    """A graph; the weights named are [16, 16]."""
    model = onnx.parser.parse_model(HEAD + text)
    for name in names or ("wq", "wk", "wv", "wo"):
        array = RNG.standard_normal((16, 16)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return find_sites(capture_onnx(model))


def with_mask(mask: str, inputs: str = "float[B,T,16] x", constants: str = "") -> Sites:
    return parse(f"f ({inputs}) => (float[B,T,16] y) <{CONSTANTS}{constants}> {{ {ATTENTION} {mask} {REST} }}")


def test_attention_without_a_mask() -> None:
    sites = with_mask("m = Identity (s)")
    (site,), (mask,) = sites.attention, sites.masks
    assert (site.heads, site.kv_heads, site.head_dim, site.scale) == (4, 4, 4, 0.5)
    assert (site.is_cross, site.is_channel, sites.rotary) == (False, False, (False,))
    assert str(mask) == "none"
    roles = {v.name: [text_of(r) for r in sites.roles.of(v) or ()] for v, _ in sites.axes.values()}
    assert roles["q"] == ["batch", "head", "token-as-query", "head-dim"]
    assert roles["k"] == ["batch", "head", "head-dim", "token-as-key"]
    assert roles["p"] == ["batch", "head", "token-as-query", "token-as-key"]
    assert roles["y"] == ["batch", "token", "channel"]


LENGTHS = "xs = Shape (x) t0 = Gather (xs, one) r = Range (zero, t0, one) rows = Unsqueeze (r, one1) d = Sub (rows, r)"
POSITIONS = ", int64 zero = {0}, int64 one = {1}, int64[1] one1 = {1}, float low = {-inf}"


@pytest.mark.parametrize(
    ("condition", "constants", "classes", "window"),
    [
        ("keep = GreaterOrEqual (d, zero)", "", {MaskClass.CAUSAL}, None),
        (
            "a = GreaterOrEqual (d, zero) b = Less (d, w) keep = And (a, b)",
            ", int64 w = {3}",
            {MaskClass.CAUSAL, MaskClass.WINDOW},
            3,
        ),
        ("e = Abs (d) keep = Less (e, w)", ", int64 w = {2}", {MaskClass.WINDOW}, 2),
        # A window so wide that short inputs do not show it.
        (
            "a = GreaterOrEqual (d, zero) b = Less (d, w) keep = And (a, b)",
            ", int64 w = {40}",
            {MaskClass.CAUSAL, MaskClass.WINDOW},
            40,
        ),
        ("e = Mod (d, w) keep = Equal (e, zero)", ", int64 w = {2}", {MaskClass.PATTERN}, None),
        ("keep = GreaterOrEqual (d, w)", ", int64 w = {-1000000}", set(), None),
    ],
    ids=["causal", "causal window", "window", "wide window", "pattern", "all seen"],
)
def test_masks_are_classed_by_what_they_hide(
    condition: str, constants: str, classes: set[MaskClass], window: int | None
) -> None:
    sites = with_mask(f"{LENGTHS} {condition} m = Where (keep, s, low)", constants=POSITIONS + constants)
    (mask,) = sites.masks
    assert (set(mask.classes), mask.window, mask.reason) == (classes, window, "")


def test_a_filling_that_does_not_hide_is_no_mask() -> None:
    constants = POSITIONS.replace("-inf", "-1.0")
    sites = with_mask(f"{LENGTHS} keep = GreaterOrEqual (d, zero) m = Where (keep, s, low)", constants=constants)
    assert str(sites.masks[0]) == "none"


def test_padding_tells_the_roles_of_its_input() -> None:
    mask = "f0 = Cast <to = 1> (given) f1 = Sub (onef, f0) f2 = Mul (f1, low) f3 = Unsqueeze (f2, ax) m = Add (s, f3)"
    sites = with_mask(
        mask,
        "float[B,T,16] x, int64[B,T] given",
        ", float onef = {1.0}, float low = {-3.4028234e38}, int64[2] ax = {1, 2}",
    )
    assert set(sites.masks[0].classes) == {MaskClass.PADDING}
    assert [text_of(r) for r in sites.roles.of(sites.program.graph.inputs[1]) or ()] == ["batch", "token"]


def test_an_input_that_hides_the_wrong_keys_is_not_padding() -> None:
    """The mask of one sample, rolled by one position: zeros hide their neighbours."""
    mask = (
        "a = Slice (given, e, big, ax1) b = Slice (given, o, e, ax1) r = Concat <axis = 1> (a, b)"
        " f0 = Cast <to = 1> (r) f1 = Sub (onef, f0) f2 = Mul (f1, low) f3 = Unsqueeze (f2, ax) m = Add (s, f3)"
    )
    constants = (
        ", float onef = {1.0}, float low = {-3.4028234e38}, int64[2] ax = {1, 2}, int64[1] e = {1}, int64[1] o = {0},"
        " int64[1] big = {1000}, int64[1] ax1 = {1}"
    )
    sites = with_mask(mask, "float[2,6,16] x, int64[2,6] given", constants)
    assert sites.masks[0].classes == frozenset()
    assert "no padding" in sites.masks[0].reason


def test_a_router_is_not_attention() -> None:
    """Softmax over experts and a weighted sum of their results: no operand gives keys."""
    sites = parse(
        "f (float[B,T,16] x) => (float[B,T,16] y) <int64[1] last = {-1}>"
        "{ s = MatMul (x, wq) p = Softmax (s) e0 = MatMul (x, wk) e = Unsqueeze (e0, last) u = Unsqueeze (p, last)"
        "  m = Mul (e, u) y = ReduceSum <keepdims = 0> (m, last) }"
    )
    assert sites.attention == ()


def test_channels_that_attend_to_channels() -> None:
    """As in XCiT: tokens are summed over, and the width of a head is the number of its channels, not of its tokens."""
    turned = ATTENTION.replace("[0, 2, 1, 3]", "[0, 2, 3, 1]").replace(
        "k = Transpose <perm = [0, 2, 3, 1]>", "k = Transpose <perm = [0, 2, 1, 3]>"
    )
    rest = REST.replace("c1 = Transpose <perm = [0, 2, 1, 3]>", "c1 = Transpose <perm = [0, 3, 1, 2]>")
    sites = parse(f"f (float[B,T,16] x) => (float[B,T,16] y) <{CONSTANTS}> {{ {turned} m = Identity (s) {rest} }}")
    (site,) = sites.attention
    assert (site.is_channel, site.is_cross, site.heads, site.head_dim, sites.rotary) == (True, False, 4, 4, (False,))


QKV = """
  q0 = MatMul (x, wq) q1 = Reshape (q0, split) q = Transpose <perm = [0, 2, 1, 3]> (q1)
  k0 = MatMul (x, wk) k1 = Reshape (k0, few) k2 = Transpose <perm = [0, 2, 1, 3]> (k1)
  v0 = MatMul (x, wv) v1 = Reshape (v0, few) v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
"""
REPEATED = " ".join(
    f"{n}3 = Unsqueeze ({n}2, two) {n}s = Shape <start = 0, end = 1> (x) {n}t = Shape <start = 1, end = 2> (x)"
    f" {n}to = Concat <axis = 0> ({n}s, two, two, {n}t, eight) {n}4 = Expand ({n}3, {n}to)"
    f" {n}f = Concat <axis = 0> ({n}s, four, {n}t, eight) {n} = Reshape ({n}4, {n}f)"
    for n in "kv"
)


@pytest.mark.parametrize("repeats", [REPEATED, "k = Identity (k2) v = Identity (v2)"], ids=["repeated", "grouped"])
def test_operators_whose_keys_are_shared_by_heads(repeats: str) -> None:
    """Whether the keys were repeated before the operator, or it shares them itself."""
    constants = (
        "int64[4] split = {0,0,4,8}, int64[4] few = {0,0,2,8}, int64[1] two = {2}, int64[1] four = {4},"
        " int64[1] eight = {8}, int64[3] merge = {0,0,32}"
    )
    rng = np.random.default_rng(1)
    text = (
        f'<ir_version: 10, opset_import: ["" : 23]> f (float[B,T,16] x, float[B,T] given) => (float[B,T,32] y)'
        f"<{constants}> {{ {QKV} {repeats} g = Cast <to = 9> (given) keep = Unsqueeze (g, ax)"
        "  c0 = Attention (q, k, v, keep) c1 = Transpose <perm = [0,2,1,3]> (c0) y = Reshape (c1, merge) }"
    )
    model = onnx.parser.parse_model(text.replace("<int64", "<int64[2] ax = {1,2}, int64", 1))
    for name, width in (("wq", 32), ("wk", 16), ("wv", 16)):
        array = rng.standard_normal((16, width)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    sites = find_sites(capture_onnx(model))
    (site,) = sites.attention
    assert (site.heads, site.kv_heads, site.head_dim, site.is_cross) == (4, 2, 8, False)
    # The mask has no recorded type: what it hides is known from how it was made.
    assert str(sites.masks[0]) == "padding"
    roles = {v.name: [text_of(r) for r in sites.roles.of(v) or ()] for v, _ in sites.axes.values()}
    assert roles["q"] == ["batch", "head", "token-as-query", "head-dim"]
    assert roles["k2"][:2] == ["batch", "kv-head"]


def test_an_operator_told_how_many_keys_count_leaves_its_mask_open() -> None:
    text = f"f (float[B,T,16] x, int64[B] n) => (float[B,T,16] y) <{CONSTANTS}>" + "{" + ATTENTION.split("s0 =")[0]
    text = text.replace("k = Transpose <perm = [0, 2, 3, 1]>", "k = Transpose <perm = [0, 2, 1, 3]>")
    model = onnx.parser.parse_model(
        HEAD.replace("21", "24") + text + "c0 = Attention <is_causal = 1> (q, k, v, , , , n)"
        " c1 = Transpose <perm = [0, 2, 1, 3]> (c0) y = Reshape (c1, merge) }"
    )
    for name in ("wq", "wk", "wv"):
        array = RNG.standard_normal((16, 16)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    sites = find_sites(capture_onnx(model))
    assert [str(mask) for mask in sites.masks] == ["causal, undecided: the operator hides keys by 'n'"]


def test_tokens_of_a_learned_grid_are_no_heads() -> None:
    """Items of several learned parts each: the parts are in the keys as well."""
    sites = parse(
        "f (float[B,I,16] items) => (float[B,T,16] y) <"
        + CONSTANTS
        + ", int64[1] ax = {2}, int64[3] flat = {0,-1,16}>"
        + "{ a = Unsqueeze (items, ax) b = Add (a, parts) x = Reshape (b, flat)"
        + f"{ATTENTION} m = Identity (s) {REST} }}",
        *("wq", "wk", "wv", "wo", "parts"),
    )
    (site,) = sites.attention
    assert (site.heads, site.kv_heads, site.is_cross) == (4, 4, False)


def test_queries_for_one_batch_only() -> None:
    """Learned queries, stretched to the batch that the exporter saw, against keys of any batch: the same when it runs.
    Batch, queries and heads are all 4."""
    constants = CONSTANTS.replace("int64[4] split", "int64[3] seen = {4, 4, 16}, int64[4] split")
    attention = ATTENTION.replace("q0 = MatMul (x, wq)", "probe = Expand (learned, seen) q0 = MatMul (probe, wq)")
    model = onnx.parser.parse_model(
        HEAD + f"f (float[B,T,16] x) => (float[B,4,16] y) <{constants}> {{ {attention} m = Identity (s) {REST} }}"
    )
    for name, shape in {"learned": (1, 4, 16), **dict.fromkeys(("wq", "wk", "wv", "wo"), (16, 16))}.items():
        array = RNG.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    sites = find_sites(capture_onnx(model))
    (site,) = sites.attention
    assert (site.heads, site.kv_heads, site.head_dim, site.is_cross) == (4, 4, 4, True)
    q = next(v for v, _ in sites.axes.values() if v.name == "q")
    assert [text_of(r) for r in sites.roles.of(q) or ()][1:] == ["head", "token-as-query", "head-dim"]


def test_scores_of_several_products_are_refused() -> None:
    """Neighbours and pooled tokens in one softmax: no single operand holds the keys."""
    mask = "t0 = MatMul (x, wn) t1 = Reshape (t0, split) t2 = Transpose <perm = [0, 2, 1, 3]> (t1) t = MatMul (t2, k)"
    sites = parse(
        "f (float[B,T,16] x) => (float[B,T,16] y) <" + CONSTANTS + ">"
        f"{{ {ATTENTION} {mask} m = Concat <axis = 3> (s, t) v9 = Concat <axis = 2> (v, v)"
        f"{REST.replace('(p, v)', '(p, v9)')} }}",
        *("wq", "wk", "wv", "wo", "wn"),
    )
    assert sites.attention == ()
    assert "side by side" in sites.refused[0].reason


def test_a_softmax_over_learned_keys_and_values_is_refused() -> None:
    sites = parse("f (float[B,T,16] x) => (float[B,T,16] y) { s = MatMul (x, wk) p = Softmax (s) y = MatMul (p, wv) }")
    assert sites.attention == ()
    assert "constants" in sites.refused[0].reason


def test_features_picked_one_by_one_are_no_batch() -> None:
    sites = parse(
        "f (float[B,2,16] x) => (float[B,16] y) <int64 one = {1}, int64 zero = {0}>"
        "{ a0 = Gather <axis = 1> (x, zero) b0 = Gather <axis = 1> (x, one) a = MatMul (a0, wq) b = MatMul (b0, wk)"
        "  y = Add (a, b) }"
    )
    assert [text_of(r) for r in sites.roles.of(sites.program.graph.inputs[0]) or ()] == ["batch", "unknown", "channel"]


def test_a_packed_projection_is_channels_though_a_head_is_cut_out_of_it() -> None:
    constants = (
        "int64[4] qs = {0,0,2,4}, int64[4] ks = {0,0,1,4}, int64[3] merge = {0,0,8}, int64[3] parts = {8,4,4},"
        " float scale = {0.5}"
    )
    sites = parse(
        f"f (float[B,T,16] x) => (float[B,T,8] y) <{constants}>"
        "{ a = MatMul (x, wq) q0, k0, v0 = Split <axis = 2> (a, parts)"
        "  q1 = Reshape (q0, qs) q = Transpose <perm = [0,2,1,3]> (q1) k1 = Reshape (k0, ks)"
        "  k = Transpose <perm = [0,2,3,1]> (k1) v1 = Reshape (v0, ks) v = Transpose <perm = [0,2,1,3]> (v1)"
        "  s0 = MatMul (q, k) s = Mul (s0, scale) p = Softmax (s) c0 = MatMul (p, v)"
        "  c1 = Transpose <perm = [0,2,1,3]> (c0) y = Reshape (c1, merge) }",
        "wq",
    )
    (site,) = sites.attention
    assert (site.heads, site.kv_heads) == (2, 1)
    roles = {v.name: [text_of(r) for r in sites.roles.of(v) or ()] for v, _ in sites.axes.values()}
    assert roles["a"] == ["batch", "token", "channel"]


def test_weights_that_a_router_chooses_are_weights() -> None:
    """Each token has a matrix of its expert: what it makes are channels."""
    model = onnx.parser.parse_model(
        HEAD + "f (float[N,16] x) => (float[N,12] y) <int64[1] one = {1}, int64[1] last = {-1}>"
        "{ s = MatMul (x, wr) best, chosen = TopK (s, one) e = Squeeze (chosen, last) w = Gather (experts, e)"
        "  x1 = Unsqueeze (x, one) h = MatMul (x1, w) y = Squeeze (h, one) }"
    )
    for name, shape in (("wr", (16, 5)), ("experts", (5, 16, 12))):
        array = RNG.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    sites = find_sites(capture_onnx(model))
    roles = {v.name: [text_of(r) for r in sites.roles.of(v) or ()] for v, _ in sites.axes.values()}
    assert roles["w"][1:] == ["channel", "channel"]
    assert roles["y"][1] == "channel"


def test_where_a_dim_comes_from_unknown_places_it_is_refused() -> None:
    sites = parse(
        f"f (float[B,T,16] x0, bool[B] chosen) => (float[M,T,16] y) <{CONSTANTS}>"
        f"{{ x = Compress <axis = 0> (x0, chosen) {ATTENTION} m = Identity (s) {REST} }}"
    )
    assert sites.attention == ()
    (refused,) = sites.refused
    assert "is not known" in refused.reason


def test_gated_and_plain_mlps() -> None:
    gated = parse(
        "f (float[B,T,16] x) => (float[B,T,16] y)"
        "{ g = MatMul (x, wq) u = MatMul (x, wk) s = Sigmoid (g) a = Mul (g, s) m = Mul (a, u) y = MatMul (m, wv) }"
    )
    plain = parse("f (float[B,T,16] x) => (float[B,T,16] y) { a = MatMul (x, wq) r = Relu (a) y = MatMul (r, wv) }")
    linear = parse("f (float[B,T,16] x) => (float[B,T,16] y) { a = MatMul (x, wq) y = MatMul (a, wv) }")
    assert [isinstance(m, GatedMlp) for m in gated.mlps] == [True]
    assert [isinstance(m, GatedMlp) for m in plain.mlps] == [False]
    assert linear.mlps == ()


def test_interventions_find_a_wrong_relation() -> None:
    """An analysis that claims the wrong dim is contradicted."""
    sites = parse("f (float[4,4] x) => (float[4,4] y) { t = Transpose (x) y = Relu (t) }", "unused")
    transpose = next(iter(sites.program.graph))
    ins, outs = sites.axes.operand(transpose, 0), sites.axes.of(transpose.outputs[0])
    relations = [r for n in ins for r in sites.axes.out_of[n]]
    for number, relation in zip(ins, reversed(relations), strict=True):
        sites.axes.out_of[number][:] = [type(relation)(relation.kind, number, outs[number - ins[0]], transpose)]
    with Executor() as executor:
        report = check_interventions(sites, executor)
    assert report.wrong


@pytest.mark.torch
@pytest.mark.parametrize(("name", "form"), [("bert", "dynamo-18"), ("llama", "torchscript"), ("swin", "dynamo-18")])
def test_ground_truth_on_colliding_sizes(
    name: str, form: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without names, with shuffled nodes, sizes all alike. `make evidence-coverage`: all architectures."""
    from architectures import ARCHITECTURES, export, sharpened

    monkeypatch.setenv("OPGRAFT_MODELS", str(tmp_path_factory.mktemp("models")))
    architecture = ARCHITECTURES[name]
    sites = find_sites(capture_onnx(anonymous(export(architecture, form, "colliding_heads"))))
    found = compare(sites, sharpened(architecture, "colliding_heads").truth)
    assert (found.missing, found.wrong, found.n_attention) == ([], [], found.n_expected)
    with Executor(time_limit_s=60) as executor:
        report = check_interventions(sites, executor)
    assert report.agrees, report.wrong[:3]
    assert report.n_bounded > 1000
