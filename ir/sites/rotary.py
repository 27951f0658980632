"""Rotary positions, recognised by what they do: a linear map of each head that keeps lengths and depends on the token.

Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021), section 3.2. Half-split,
interleaved and partial forms, with tables or computed angles, all pass the same test, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping

import numpy as np
import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.axes.roles import Role
from opgraft.ir.program import Program, constant_array, is_op
from opgraft.ir.sites.attention_site import AttentionSite
from opgraft.ir.sites.probe import Bindings, ProbeError, evaluate_part, given_for, part_between, shape_under

_MOVES = (
    *("Add", "Sub", "Mul", "Div", "Neg", "Concat", "Slice", "Split", "Gather", "Transpose", "Reshape", "Squeeze"),
    *("Unsqueeze", "Cast", "Expand", "Identity", "RotaryEmbedding", "Where", "ScatterND", "Flatten", "Tile"),
    *("SplitToSequence", "SequenceAt"),
)
_ONLY_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Cast", "Split", "Slice")
_COUNTS = ("Cos", "Sin", "Range", "ConstantOfShape", "Shape", "Size")
_MAX_VALUES = 240
# Sums of products of float32 numbers near 1 over a head dim: relative errors of a few units in the last place.
_TOLERANCE = 1e-4


def find_rotary(
    program: Program,
    axes: AxisGraph,
    sites: Iterable[AttentionSite],
    normalized: Collection[onnx_ir.Value],
    bindings: Bindings,
) -> list[bool | None]:
    """For each site, in order, whether its queries are turned by their position; None where it could not be tried.

    `normalized`: results of normalizations, which may stand between the layer and the turn."""
    known: dict[tuple[Hashable, ...], bool | None] = {}
    return [_is_rotary(program, axes, site, normalized, bindings, known) for site in sites]


def _is_rotary(
    program: Program,
    axes: AxisGraph,
    site: AttentionSite,
    normalized: Collection[onnx_ir.Value],
    bindings: Bindings,
    known: dict[tuple[Hashable, ...], bool | None],
) -> bool | None:
    if site.scores.op_type == "GroupQueryAttention":
        turns = site.scores.attributes.get("do_rotary")
        if turns is not None and turns.as_int():
            return True
    if site.has_constant_query or site.is_channel:
        return False
    start = _unturned(site.query, axes, normalized)
    numbers = axes.of(site.query)
    if start is None or numbers is None:
        return None
    if start is site.query or _is_only_moved(site.query, start):
        return False
    roles = [site.roles.get(n, ()) for n in numbers]
    tokens = [i for i, r in enumerate(roles) if Role.QUERY in r]
    width = [i for i, r in enumerate(roles) if r in ((Role.HEAD_DIM,), (Role.CHANNEL,))]
    if len(tokens) != 1 or len(width) != 1:
        return None
    try:
        # Layers are alike, and share their tables.
        alike = (*_signature(site.query, start), tuple(shape_under(axes, start, bindings)), tokens[0], width[0])
        if alike not in known:
            known[alike] = _turns(program, axes, site.query, start, tokens[0], width[0], bindings)
        return known[alike]
    except ProbeError:
        return None


def _is_only_moved(query: onnx_ir.Value, start: onnx_ir.Value) -> bool:
    """Whether nothing but numbers that are the same everywhere meets what is on the way from `start`."""
    value = query
    for _ in range(_MAX_VALUES):
        node = value.producer()
        if value is start or node is None:
            return value is start
        others = [v for v in node.inputs[1:] if v is not None]
        if is_op(node, "Mul", "Div") and all(constant_array(v, limit=1) is not None for v in others):
            pass
        elif not is_op(node, *_ONLY_MOVES):
            return False
        if node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


def _signature(query: onnx_ir.Value, start: onnx_ir.Value) -> tuple[Hashable, ...]:
    """The map from `start` to `query` as text: the same for the same operators of the same other values."""
    nodes = _in_order(part_between([query], {start})[0])
    names: dict[onnx_ir.Value, Hashable] = {start: "start"}
    touched = {start}
    rows: list[Hashable] = []
    for node in nodes:
        operands: list[Hashable] = []
        for value in node.inputs:
            array = constant_array(value, limit=16)
            if value in names:
                operands.append(names[value])
            elif array is not None:
                operands.append((array.tobytes(), array.shape))
            else:
                operands.append(id(value))
        if any(value in touched for value in node.inputs):
            touched.update(node.outputs)
            attributes = tuple(sorted((a.name, str(a.value)) for a in node.attributes.values()))
            rows.append((node.op_type, attributes, tuple(operands)))
            names.update({value: (len(rows), place) for place, value in enumerate(node.outputs)})
    return tuple(rows)


def _in_order(nodes: Collection[onnx_ir.Node]) -> list[onnx_ir.Node]:
    """The nodes of a part, producers first."""
    inside, done, result = set(nodes), set(), []
    for root in nodes:
        pending = [root]
        while pending:
            node = pending[-1]
            before = [v.producer() for v in node.inputs if v is not None]
            missing = [n for n in before if n is not None and n in inside and n not in done]
            if missing:
                pending += missing
                continue
            pending.pop()
            if node not in done:
                done.add(node)
                result.append(node)
    return result


def _unturned(query: onnx_ir.Value, axes: AxisGraph, normalized: Collection[onnx_ir.Value]) -> onnx_ir.Value | None:
    """The last value before the query that is computed by something that does not just move, scale and add."""
    starts: dict[onnx_ir.Value, None] = {}
    pending, seen = [query], {query}
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in axes.constant or node is None:
            continue
        if value in normalized:
            starts[value] = None
            continue
        if not is_op(node, *_MOVES):
            if _is_activation(value, node):
                starts[value] = None
            continue
        for before in node.inputs:
            if before is not None and before not in seen and before not in axes.constant:
                seen.add(before)
                pending.append(before)
        if len(seen) > _MAX_VALUES:
            return None
    return next(iter(starts)) if len(starts) == 1 else None


def _is_activation(value: onnx_ir.Value, node: onnx_ir.Node) -> bool:
    """Layers and norms make what is turned; sines, cosines and counting make the angles."""
    if is_op(node, "MatMul", "Gemm", "Conv", "LayerNormalization", "RMSNormalization"):
        return True
    if (value.dtype is not None and value.dtype.is_integer()) or is_op(node, *_COUNTS):
        return False
    try:
        _, inputs = part_between([value])
    except ProbeError:
        return True
    # Scales are computed from shapes in some exports.
    return any(v.producer() is None for v in inputs)


def _turns(
    program: Program,
    axes: AxisGraph,
    query: onnx_ir.Value,
    start: onnx_ir.Value,
    tokens: int,
    width: int,
    bindings: Mapping[str, int],
) -> bool:
    _, inputs = part_between([query], {start})
    given = {v: counted(given_for(axes, v, bindings)) for v in inputs if v is not start}
    shape = shape_under(axes, start, bindings)
    rng = np.random.default_rng(0)
    samples = [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
    results = [
        evaluate_part(program, axes, [query], {**given, start: x})[0].astype(np.float64)
        for x in (*samples, samples[0] + samples[1])
    ]
    # A bias is turned too: what is linear is the difference to the result for zeros.
    zero = evaluate_part(program, axes, [query], {**given, start: np.zeros(shape, np.float32)})[0].astype(np.float64)
    first, second, both = (result - zero for result in results)
    scale = float(np.abs(both).max())
    if scale == 0 or np.abs(first + second - both).max() > _TOLERANCE * max(scale, float(np.abs(zero).max())):
        return False
    return _keeps_lengths(program, axes, given, query, start, zero, tokens, width, bindings)


def counted(array: np.ndarray) -> np.ndarray:
    """Integer inputs as positions: counted along the last dim."""
    if array.dtype.kind != "i" or array.ndim < 2:
        return array
    return np.broadcast_to(np.arange(array.shape[-1], dtype=array.dtype), array.shape)


def _keeps_lengths(
    program: Program,
    axes: AxisGraph,
    given: Mapping[onnx_ir.Value, np.ndarray],
    query: onnx_ir.Value,
    start: onnx_ir.Value,
    zero: np.ndarray,
    tokens: int,
    width: int,
    bindings: Bindings,
) -> bool:
    """The same vector at every position comes out equally long everywhere, and not the same everywhere."""
    ones = np.ones(shape_under(axes, start, bindings), np.float32)
    (array,) = evaluate_part(program, axes, [query], {**given, start: ones})
    vectors = np.moveaxis(array.astype(np.float64) - zero, (tokens, width), (0, -1))
    vectors = vectors.reshape(vectors.shape[0], -1, vectors.shape[-1])
    lengths = np.linalg.norm(vectors, axis=-1)
    if vectors.shape[0] < 2 or lengths.max() == 0:
        return False
    even = bool(np.ptp(lengths, axis=0).max() <= _TOLERANCE * lengths.max())
    moved = bool(np.abs(vectors - vectors[:1]).max() > _TOLERANCE * lengths.max())
    return even and moved
