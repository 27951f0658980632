"""The class of a mask, proved by evaluation: which keys may a query see, at several sizes and with padded inputs.

Nothing is read off the look of the graph. What is added to the scores, or decides which of them are kept, is computed
from made-up inputs, and the pattern that comes out is compared with the definition of each class. What depends on
activations is a bias, and is not evaluated.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir
from opgraft.ir.axes.graph import AxisGraph
from opgraft.ir.program import Program, constant_array, is_op
from opgraft.ir.sites.attention_site import Addend, AttentionSite
from opgraft.ir.sites.probe import (
    Bindings,
    ProbeError,
    evaluate_part,
    given_for,
    part_between,
    size_under,
    small_bindings,
)

# Scores below this vanish in a softmax of float32, and exporters write nothing milder where they mean minus infinity:
# BERT's is -10000.
_MASKED_BELOW = -9999.0
_MAX_EDGE = 4200
"""Windows longer than this are not looked for: the pattern grows with the square."""
_COMPUTING = ("MatMul", "Gemm", "Conv", "Einsum", "Softmax", "LayerNormalization", "Attention", "LSTM", "GRU")


class MaskClass(enum.Enum):
    CAUSAL = "causal"
    WINDOW = "window"
    """Keys farther away than a fixed distance are not seen."""
    PADDING = "padding"
    """Keys that an input marks are not seen."""
    BIAS = "bias"
    """Numbers are added to scores that are seen."""
    PATTERN = "pattern"
    """A fixed pattern of another kind: windows of an image, blocks."""


@dataclass(frozen=True)
class Mask:
    """What is known of all masks and biases of one attention; no classes and no reason: nothing is masked."""

    classes: frozenset[MaskClass]
    window: int | None = None
    """The number of keys seen to one side, the query's own position included."""
    padding_inputs: tuple[onnx_ir.Value, ...] = ()
    """Inputs `[B, Tk]` whose zeros hide keys."""
    reason: str = ""
    """Why some of it could not be decided."""

    def __str__(self) -> str:
        names = sorted(c.value for c in self.classes)
        text = "+".join(names) or "none"
        return f"{text}, undecided: {self.reason}" if self.reason else text


@dataclass
class _Pattern:
    """One addend at one binding."""

    allowed: np.ndarray
    """bool `[..., Tq, Tk]`; a dim of 1 is stretched."""
    biased: bool
    shape: tuple[int, int]
    """Queries and keys of the scores."""


def classify_masks(program: Program, axes: AxisGraph, sites: Iterable[AttentionSite]) -> list[Mask]:
    """The mask of each site, in order."""
    sites = list(sites)
    evaluator = _Evaluator(program, axes)
    return [evaluator.mask_of(site) for site in sites]


class _Evaluator:
    def __init__(self, program: Program, axes: AxisGraph) -> None:
        self.program = program
        self.axes = axes
        self.small = small_bindings(program, axes)
        self._known: dict[tuple[onnx_ir.Value, int, int, bool | None], Mask] = {}

    def mask_of(self, site: AttentionSite) -> Mask:
        classes = {MaskClass.CAUSAL} if site.is_causal else set()
        window, reasons = None, [site.undecided] if site.undecided else []
        inputs: dict[onnx_ir.Value, None] = {}
        for addend in site.addends:
            for part in self._parts(addend):
                mask = self._classify(part)
                classes |= mask.classes
                window = mask.window if mask.window is not None else window
                reasons += [mask.reason] if mask.reason else []
                inputs.update(dict.fromkeys(mask.padding_inputs))
        return Mask(frozenset(classes), window, tuple(inputs), "; ".join(dict.fromkeys(reasons)))

    def _parts(self, addend: Addend) -> Iterator[Addend]:
        """A sum of a mask and a bias that depends on activations is taken apart."""
        node = addend.value.producer()
        if addend.keeps_where is None and is_op(node, "Add") and node is not None and self._computes(addend.value):
            for value in node.inputs:
                if value is not None:
                    yield from self._parts(replace(addend, value=value))
            return
        yield addend

    def _computes(self, value: onnx_ir.Value) -> bool:
        """Whether the value depends on activations: layers of the model, not just inputs and constants."""
        try:
            nodes, _ = part_between([value])
        except ProbeError:
            return True
        return any(
            is_op(node, *_COMPUTING) and any(v is not None and v not in self.axes.constant for v in node.inputs)
            for node in nodes
        )

    def _classify(self, addend: Addend) -> Mask:
        key = (addend.value, addend.query_axis, addend.key_axis, addend.keeps_where)
        if key not in self._known:
            try:
                self._known[key] = self._evaluate(addend)
            except ProbeError as error:
                self._known[key] = Mask(frozenset(), reason=f"{addend.value.name}: {error}")
        return self._known[key]

    def _evaluate(self, addend: Addend) -> Mask:
        if self._computes(addend.value):
            if addend.keeps_where is not None:
                raise ProbeError("a condition that depends on activations")
            return Mask(frozenset((MaskClass.BIAS,)))
        array = constant_array(addend.value)
        if array is not None and array.size == 1 and addend.keeps_where is None:
            return Mask(frozenset())
        if addend.keeps_where is not None and not self._fills_with_nothing(addend):
            return Mask(frozenset())
        nodes, inputs = part_between([addend.value])
        classes: set[MaskClass] | None = None
        window = None
        hiding: list[onnx_ir.Value] = []
        for bindings in self._bindings(nodes):
            ones = {v: given_for(self.axes, v, bindings) for v in inputs}
            base = self._pattern(addend, ones, bindings)
            found, window = _base_classes(base)
            hiding = self._padding(addend, base, ones, bindings)
            if hiding:
                found.add(MaskClass.PADDING)
            if base.biased:
                found.add(MaskClass.BIAS)
            # What holds at one size only is a coincidence of that size.
            classes = found if classes is None else self._agreed(classes, found)
        return Mask(frozenset(classes or ()), window, tuple(hiding))

    def _fills_with_nothing(self, addend: Addend) -> bool:
        """Whether a Where replaces scores by minus infinity, or as good as that; an operator's own mask does."""
        if not is_op(addend.node, "Where"):
            return True
        fill = addend.node.inputs[2 if addend.keeps_where else 1]
        if fill is None or fill not in self.axes.constant:
            return False
        (array,) = evaluate_part(self.program, self.axes, [fill], {})
        return array.size > 0 and bool((array.astype(np.float64) <= _MASKED_BELOW).all())

    def _agreed(self, first: set[MaskClass], second: set[MaskClass]) -> set[MaskClass]:
        if first == second or first | {MaskClass.WINDOW} == second:
            return second
        raise ProbeError(f"looks {_words(first)} at one size and {_words(second)} at another")

    def _bindings(self, nodes: Iterable[onnx_ir.Node]) -> list[Bindings]:
        """Two sets of sizes, all different, the second beyond every small number that the part holds: a window."""
        if not self.small:
            return [{}]
        edge = 7
        for node in nodes:
            for value in node.inputs:
                array = constant_array(value, limit=1)
                if (
                    array is not None
                    and array.size == 1
                    and array.dtype.kind in "iu"
                    and 0 < array.reshape(-1)[0] < _MAX_EDGE
                ):
                    edge = max(edge, int(array.reshape(-1)[0]) + 4)
        large = {name: (2 if index == 0 else edge + index) for index, name in enumerate(self.small)}
        return [self.small, large]

    def _pattern(self, addend: Addend, given: Mapping[onnx_ir.Value, np.ndarray], bindings: Bindings) -> _Pattern:
        (array,) = evaluate_part(self.program, self.axes, [addend.value], given)
        size = (size_under(self.axes, addend.query, bindings), size_under(self.axes, addend.key, bindings))
        if array.ndim > addend.rank:
            raise ProbeError("has more dims than the scores")
        array = array.reshape((1,) * (addend.rank - array.ndim) + array.shape)
        array = np.moveaxis(array, (addend.query_axis, addend.key_axis), (-2, -1))
        if any(have not in (1, wanted) for have, wanted in zip(array.shape[-2:], size, strict=True)):
            raise ProbeError("does not fit queries and keys alone: there are earlier keys")
        if addend.keeps_where is not None:
            return _Pattern(array.astype(bool) == addend.keeps_where, False, size)
        numbers = array.astype(np.float64)
        if is_op(addend.node, "Sub"):
            numbers = -numbers
        allowed = numbers > _MASKED_BELOW
        return _Pattern(allowed, bool(np.any(numbers[allowed] != 0)), size)

    def _padding(
        self, addend: Addend, base: _Pattern, ones: Mapping[onnx_ir.Value, np.ndarray], bindings: Bindings
    ) -> list[onnx_ir.Value]:
        """Inputs `[B, Tk]` whose zeros hide just these keys from every query that is no padding itself."""
        found: list[onnx_ir.Value] = []
        n_keys = base.shape[1]
        for value, array in ones.items():
            if value.producer() is not None or not array.ndim or n_keys < 3:
                continue
            if array.ndim != 2:
                marked = array.copy()
                marked[..., -1:] = 0
                if not np.array_equal(self._pattern(addend, {**ones, value: marked}, bindings).allowed, base.allowed):
                    raise ProbeError(f"depends on {value.name!r}, which is no [B, Tk]")
                continue
            for hidden in (slice(-2, None), slice(0, 2)):
                marked = array.copy()
                marked[0, hidden] = 0
                changed = self._pattern(addend, {**ones, value: marked}, bindings)
                if np.array_equal(changed.allowed, base.allowed) and changed.allowed.shape == base.allowed.shape:
                    break
                if array.shape[1] != n_keys or not _hides(base, changed, marked):
                    raise ProbeError(f"depends on {value.name!r} in a way that is no padding")
            else:
                found.append(value)
        return found


def _hides(base: _Pattern, changed: _Pattern, marked: np.ndarray) -> bool:
    """Whether `changed` is `base` without the keys marked 0; rows of padded queries may be anything."""
    n_queries, n_keys = base.shape
    before, after = (np.broadcast_to(p.allowed, (*p.allowed.shape[:-2], n_queries, n_keys)) for p in (base, changed))
    samples = after.shape[0]
    if samples not in (len(marked), 1) and samples % len(marked):
        return False
    keep = np.repeat(marked.astype(bool), max(1, samples // len(marked)), axis=0)[:samples]
    keep = keep.reshape(len(keep), *(1,) * (after.ndim - 2), n_keys)
    expected = before & keep
    rows = np.ones((len(keep), n_queries), bool)
    if n_queries == n_keys:
        rows = np.repeat(marked.astype(bool), max(1, samples // len(marked)), axis=0)[:samples]
    differs = (expected != after) & rows.reshape(len(rows), *(1,) * (after.ndim - 3), n_queries, 1)
    return not bool(differs.any())


def _base_classes(pattern: _Pattern) -> tuple[set[MaskClass], int | None]:
    """The class of what every query may see when nothing is padded."""
    n_queries, n_keys = pattern.shape
    allowed = np.broadcast_to(pattern.allowed, (*pattern.allowed.shape[:-2], n_queries, n_keys))
    if allowed.all():
        return set(), None
    flat = allowed.reshape(-1, n_queries, n_keys)
    if not (flat == flat[0]).all():
        return {MaskClass.PATTERN}, None
    seen = flat[0]
    query = np.arange(n_queries)[:, None] + (n_keys - n_queries)
    distance = query - np.arange(n_keys)[None, :]
    if (seen == (distance >= 0)).all():
        return {MaskClass.CAUSAL}, None
    window = int(seen[-1].sum())
    if (seen == ((distance >= 0) & (distance < window))).all():
        return {MaskClass.CAUSAL, MaskClass.WINDOW}, window
    if (seen == (np.abs(distance) < window)).all():
        return {MaskClass.WINDOW}, window
    return {MaskClass.PATTERN}, None


def _words(classes: set[MaskClass]) -> str:
    return "+".join(sorted(c.value for c in classes)) or "unmasked"
