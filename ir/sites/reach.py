"""What an analysis predicts of an intervention: which elements may move when one index of an input dim is perturbed.

For every value a union of boxes: in a box, dims have sets of indices (bits of an integer) that may move, other dims
move anywhere. A box goes through a node by the relations of its dims; constraints on several dims hold together.
Masks whose class was proved add what relations cannot say: a key moves the queries that see it, and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import onnx_ir
from opgraft.ir.axes.graph import NOWHERE, Direction, Kind, Part, Relation, Window
from opgraft.ir.dims import Size, evaluate, names_of
from opgraft.ir.program import direct_subgraphs
from opgraft.ir.sites.attention_site import AttentionSite
from opgraft.ir.sites.find_sites import Sites
from opgraft.ir.sites.masks import MaskClass

Box: TypeAlias = tuple[tuple[int, int], ...]
"""Pairs of a dim's position and the bits of its indices, in order; without pairs: everywhere."""
Reach: TypeAlias = frozenset[Box]
"""Empty: the value does not depend on what was perturbed."""

EVERYWHERE: Box = ()
_MAX_BOXES = 6


class Unpredictable(Exception):
    """Sizes or relations are not numbers at this binding."""


class Prediction:
    """For one binding of the symbolic dims: where a perturbation may be seen."""

    def __init__(self, sites: Sites, bindings: Mapping[str, int]) -> None:
        self._axes = sites.axes
        self._nodes = list(sites.program.graph)
        self._bindings = bindings
        self._softmax = {site.softmax: site for site in _causal(sites)}
        self._context = {site.context: site for site in _causal(sites)}
        self._maps: dict[int, dict[int, int]] = {}

    def reach(self, source: onnx_ir.Value, position: int, index: int) -> dict[onnx_ir.Value, Reach]:
        """Of every value of the main graph that depends on `source`, when index `index` of one dim of it moves."""
        found: dict[onnx_ir.Value, Reach] = {source: frozenset((((position, 1 << index),),))}
        for node in self._nodes:
            if any(v in found for v in node.inputs if v is not None) or self._captures(node, found):
                self._pass(node, found)
        return found

    def _captures(self, node: onnx_ir.Node, found: Mapping[onnx_ir.Value, Reach]) -> bool:
        if not node.attributes:
            return False
        return any(
            v in found for body in direct_subgraphs(node) for inner in body for v in inner.inputs if v is not None
        )

    def _pass(self, node: onnx_ir.Node, found: dict[onnx_ir.Value, Reach]) -> None:
        for output in node.outputs:
            numbers = self._axes.of(output)
            if numbers is None or node in self._axes.opaque or any(True for _ in direct_subgraphs(node)):
                found[output] = frozenset((EVERYWHERE,))
                continue
            boxes: set[Box] = set()
            for operand, value in enumerate(node.inputs):
                for box in found.get(value, ()) if value is not None else ():
                    boxes.add(self._moved(node, operand, box, numbers))
            found[output] = self._joined(boxes)

    def _moved(self, node: onnx_ir.Node, operand: int, box: Box, outs: range) -> Box:
        ins = self._axes.operand(node, operand)
        if ins is None:
            return EVERYWHERE
        constraints: dict[int, int] = {}
        for position, bits in box:
            seen = self._seen_by(node, ins[position], bits, outs)
            if seen is not None:
                constraints[seen[0]] = constraints.get(seen[0], seen[1]) & seen[1]
            for relation in self._axes.out_of[ins[position]]:
                if relation.node is not node or relation.target not in outs:
                    continue
                image = self._image(relation, bits)
                if image is not None:
                    place = relation.target - outs[0]
                    constraints[place] = constraints.get(place, image) & image
        return tuple(sorted(constraints.items()))

    def _seen_by(self, node: onnx_ir.Node, number: int, bits: int, outs: range) -> tuple[int, int] | None:
        """Behind a causal mask: the position of the query dim, and the queries that keys with these indices reach."""
        site = self._softmax.get(node)
        if site is not None and site.softmax_positions is not None:
            query, key = site.softmax_positions
            if self._axes.axes[number].index != key:
                return None
        else:
            site = self._context.get(node)
            if site is None or site.output_query is None or number != site.value_key:
                return None
            query = site.output_query
        n_queries = self._number(outs[query])
        offset = self._number(number) - n_queries
        return query, _from(max(0, _lowest(bits) - offset), n_queries)

    def _joined(self, boxes: set[Box]) -> Reach:
        alive = {box for box in boxes if all(bits for _, bits in box)}
        if len(alive) > _MAX_BOXES:
            shared = set.intersection(*({d for d, _ in box} for box in alive))
            merged: dict[int, int] = dict.fromkeys(shared, 0)
            for box in alive:
                for d, bits in box:
                    if d in merged:
                        merged[d] |= bits
            return frozenset((tuple(sorted(merged.items())),))
        return frozenset(alive)

    # -- one relation ---------------------------------------------------------------------------------------------

    def _number(self, axis: int) -> int:
        return self._value_of(self._axes.axes[axis].size)

    def _value_of(self, size: Size) -> int:
        if names_of(size) - set(self._bindings):
            raise Unpredictable(f"size {size} is not known")
        return evaluate(size, self._bindings)

    def _image(self, relation: Relation, bits: int) -> int | None:
        """Indices of the target that the indices of the source reach; None for all."""
        if relation.target == NOWHERE:
            return None
        cache = self._maps.setdefault(id(relation), {})
        if bits not in cache:
            image = self._compute_image(relation, bits)
            cache[bits] = -1 if image is None else image
        return None if cache[bits] == -1 else cache[bits]

    def _compute_image(self, relation: Relation, bits: int) -> int | None:
        n_in, n_out = self._number(relation.source), self._number(relation.target)
        reaches = _relation_matrix(relation, n_in, n_out, self._value_of)
        if reaches is None:
            return None
        moved = reaches[[i for i in range(n_in) if bits >> i & 1]].any(axis=0)
        return sum(1 << o for o in np.flatnonzero(moved).tolist())


def _relation_matrix(relation: Relation, n_in: int, n_out: int, value_of: Callable[[Size], int]) -> np.ndarray | None:
    """bool `[n_in, n_out]`: whether an index of the source reaches one of the target; None for all."""
    i, o = np.arange(n_in)[:, None], np.arange(n_out)[None, :]
    detail = relation.detail
    if relation.kind in (Kind.SAME, Kind.RESTORED):
        return np.asarray(i == o)
    if relation.kind is Kind.PART and isinstance(detail, Part):
        in_stride, out_stride, size = value_of(detail.in_stride), value_of(detail.out_stride), value_of(detail.size)
        return np.asarray((i // in_stride) % size == (o // out_stride) % size)
    if relation.kind is Kind.SLICED and None not in detail:
        return np.asarray(i == value_of(detail[0]) + o * detail[1])
    if relation.kind is Kind.PLACED and detail is not None:
        return np.asarray(o == i + value_of(detail))
    if relation.kind is Kind.GATHERED and detail is not None and len(detail) == n_out:
        indices = np.array([d + n_in if d < 0 else d for d in detail])[None, :]
        return np.asarray(i == indices)
    if relation.kind is Kind.WINDOW and isinstance(detail, Window):
        return _window_matrix(detail, i, o)
    if relation.kind is Kind.MIXED and detail is Direction.FORWARD:
        return np.asarray(i <= o)
    if relation.kind is Kind.MIXED and detail is Direction.BACKWARD:
        return np.asarray(i >= o)
    return None


def _window_matrix(window: Window, i: np.ndarray, o: np.ndarray) -> np.ndarray:
    if window.transposed:
        i, o = o, i
    distance = i - (o * window.stride - window.before)
    inside = (distance >= 0) & (distance <= (window.kernel - 1) * window.dilation)
    return np.asarray(inside & (distance % window.dilation == 0))


def _causal(sites: Sites) -> list[AttentionSite]:
    """Attentions in which no key reaches an earlier query."""
    return [
        site
        for site, mask in zip(sites.attention, sites.masks, strict=True)
        if MaskClass.CAUSAL in mask.classes and site.softmax_positions is not None and site.output_query is not None
    ]


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def _from(first: int, size: int) -> int:
    return ((1 << size) - 1) & ~((1 << first) - 1)


def elements_in(shape: tuple[int, ...], reach: Reach) -> np.ndarray:
    """The elements that may move, as bool of that shape."""
    allowed = np.zeros(shape, bool)
    for box in reach:
        region = np.ones(shape, bool)
        for position, bits in box:
            size = shape[position]
            inside = np.array([bool(bits >> k & 1) for k in range(size)], bool)
            region &= inside.reshape((size, *(1,) * (len(shape) - 1 - position)))
        allowed |= region
    return allowed
