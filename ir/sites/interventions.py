"""Interventions: perturb one index of one dim, run, and hold what moved against what the analysis says can move.

The relations of dims claim what does *not* depend on what; an element that moves where none may is a wrong claim. The
program is run with every value exposed, before and after; the same kernels on the same numbers give the same bits, so
that any difference counts. Besides the inputs, the operands of attention sites are perturbed, as inputs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir
from opgraft.ir.dims import Dim, names_of
from opgraft.ir.errors import ExecutionError
from opgraft.ir.inputs import UnsupportedInput, input_cases, integer_domain
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.ir.sites.find_sites import Sites
from opgraft.ir.sites.reach import Prediction, Reach, Unpredictable, elements_in

Arrays = dict[str, np.ndarray]


class Runner(Protocol):
    """Runs models, in a process of its own."""

    def run_once(self, model: bytes, inputs: Mapping[str, Any]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class WrongClaim:
    """An element of `value` moved though nothing perturbed reaches it."""

    perturbed: str
    """`value[dim] index`."""
    value: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"perturbing {self.perturbed} moved {self.value}{list(self.index)}"


@dataclass
class InterventionReport:
    n_interventions: int = 0
    n_values: int = 0
    """Values compared, over all interventions."""
    n_bounded: int = 0
    """Those of which the analysis says that part of them cannot move."""
    n_predicted: int = 0
    n_moved: int = 0
    """Elements of bounded values that may move, and that did."""
    wrong: list[WrongClaim] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """What could not be tried, and why."""

    @property
    def agrees(self) -> bool:
        return self.n_interventions > 0 and not self.wrong


def check_interventions(
    sites: Sites, runner: Runner, *, arrays: Arrays | None = None, seed: int = 0, max_cuts: int = 6
) -> InterventionReport:
    """Perturb the first, a middle and the last index of every dim of the inputs and of some attention operands.

    `arrays`: the inputs to start from; made up where None."""
    report = InterventionReport()
    try:
        given = arrays or next(iter(input_cases(sites.program, seed=seed, limit=1))).arrays
    except (UnsupportedInput, StopIteration) as error:
        report.skipped.append(f"no inputs can be made up: {error}")
        return report
    bindings = _bindings_of(sites, given)
    exposed = exposed_values(sites)
    model = with_outputs(sites.program, exposed)
    base = runner.run_once(model, given)
    rng = np.random.default_rng(seed)
    prediction = Prediction(sites, bindings)
    for value in sites.program.graph.inputs:
        if value.name in given:
            _intervene(prediction, value, model, given, value.name or "", base, exposed, runner, rng, report)
    for value in _cuts(sites)[:max_cuts]:
        array = base.get(value.name or "")
        if array is None:
            continue
        name = f"{value.name}/given"
        cut, fed = _with_cut(sites.program, value, name, exposed), {**given, name: array}
        _intervene(prediction, value, cut, fed, name, runner.run_once(cut, fed), exposed, runner, rng, report)
    return report


def _intervene(
    prediction: Prediction,
    value: onnx_ir.Value,
    model: bytes,
    given: Mapping[str, np.ndarray],
    name: str,
    base: Mapping[str, Any],
    exposed: list[onnx_ir.Value],
    runner: Runner,
    rng: np.random.Generator,
    report: InterventionReport,
) -> None:
    array = given[name]
    if array.dtype.kind not in "biuf":
        report.skipped.append(f"{value.name}: {array.dtype} is not perturbed")
        return
    for position, size in enumerate(array.shape):
        for index in sorted({0, size // 2, size - 1}) if size else ():
            try:
                reach = prediction.reach(value, position, index)
            except Unpredictable as error:
                report.skipped.append(f"{value.name}[{position}]: {error}")
                break
            moved = _perturbed(array, position, index, value, rng)
            try:
                after = runner.run_once(model, {**given, name: moved})
            except ExecutionError as error:
                # A number that the operator does not take there: an index, a shape.
                report.skipped.append(f"{value.name}[{position}] {index}: {error}")
                continue
            report.n_interventions += 1
            label = f"{value.name}[{position}] {index}"
            for other in exposed:
                _compare(label, other, base, after, reach, report)


def _compare(
    label: str,
    value: onnx_ir.Value,
    base: Mapping[str, Any],
    after: Mapping[str, Any],
    reach: Mapping[onnx_ir.Value, Reach],
    report: InterventionReport,
) -> None:
    name = value.name or ""
    before, now = base.get(name), after.get(name)
    if not isinstance(before, np.ndarray) or not isinstance(now, np.ndarray) or before.shape != now.shape:
        return
    moved = _differs(before, now)
    may = elements_in(before.shape, reach.get(value, frozenset()))
    report.n_values += 1
    if not may.all():
        report.n_bounded += 1
        report.n_predicted += int(may.sum())
        report.n_moved += int(moved.sum())
    wrong = moved & ~may
    if wrong.any():
        report.wrong.append(WrongClaim(label, name, tuple(int(i) for i in np.argwhere(wrong)[0])))


def _differs(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Where numbers differ; any NaN is as good as another."""
    differs = np.asarray(before != now)
    if before.dtype.kind in "fc":
        differs &= ~(np.isnan(before) & np.isnan(now))
    return differs


def _perturbed(
    array: np.ndarray, position: int, index: int, value: onnx_ir.Value, rng: np.random.Generator
) -> np.ndarray:
    """The array with other numbers, within the input's domain, at one index of one dim."""
    changed = array.copy()
    place = (slice(None),) * position + (index,)
    part = changed[place]
    if array.dtype == bool:
        changed[place] = ~part
    elif array.dtype.kind in "iu":
        domain = integer_domain(value)
        span = max(domain.high - domain.low, 2)
        steps = rng.integers(1, span, size=part.shape)
        changed[place] = (part - domain.low + steps) % span + domain.low
    else:
        changed[place] = part + rng.standard_normal(part.shape).astype(array.dtype)
    return changed


def _bindings_of(sites: Sites, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    found: dict[str, int] = {}
    for value in sites.program.graph.inputs:
        array = arrays.get(value.name or "")
        for number, size in zip(sites.axes.of(value) or (), array.shape if array is not None else (), strict=False):
            declared = sites.axes.axes[number].size
            if isinstance(declared, Dim) and declared.is_name:
                found[next(iter(names_of(declared)))] = size
    return found


def exposed_values(sites: Sites) -> list[onnx_ir.Value]:
    """Values of the main graph that depend on inputs and are tensors of numbers."""
    return [
        value
        for node in sites.program.graph
        for value in node.outputs
        if value.name
        and value not in sites.axes.constant
        and sites.axes.of(value) is not None
        and _is_numeric(value, sites)
    ]


def _is_numeric(value: onnx_ir.Value, sites: Sites) -> bool:
    dtype = value.dtype or sites.facts.dtype(value)
    return dtype is not None and dtype in _COMPARED


_COMPARED = frozenset(
    onnx_ir.DataType[name]
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32")
)


def _cuts(sites: Sites) -> list[onnx_ir.Value]:
    """Queries, keys and values of the first and the last attention."""
    chosen = [*sites.attention[:1], *sites.attention[1:][-1:]]
    values = dict.fromkeys(v for site in chosen for v in (site.query, site.key, site.value))
    return [v for v in values if v.producer() is not None and v not in sites.axes.constant]


def with_outputs(program: Program, values: list[onnx_ir.Value]) -> bytes:
    """The model with these values of the main graph as its outputs."""
    changed = program.clone()
    _set_outputs(changed, [v.name or "" for v in values])
    return model_bytes(changed)


def _with_cut(program: Program, value: onnx_ir.Value, name: str, exposed: list[onnx_ir.Value]) -> bytes:
    """The program with an input `name` in place of what `value` is computed from."""
    changed = program.clone()
    inner = {v.name: v for node in changed.graph for v in node.outputs}[value.name]
    given = onnx_ir.Value(name=name, type=inner.type or onnx_ir.TensorType(onnx_ir.DataType.FLOAT), shape=inner.shape)
    for use in list(inner.uses()):
        use.node.replace_input_with(use.idx, given)
    changed.graph.inputs.append(given)
    _set_outputs(changed, [v.name or "" for v in exposed if v is not value])
    return model_bytes(changed)


def _set_outputs(program: Program, names: list[str]) -> None:
    by_name = {v.name: v for v in _named(program)}
    program.graph.outputs.clear()
    program.graph.outputs.extend(by_name[name] for name in names)


def _named(program: Program) -> Iterator[onnx_ir.Value]:
    for node in program.graph:
        yield from node.outputs
