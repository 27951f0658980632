"""The smallest part of a failing model that still fails: delta debugging over its nodes.

A node that is taken out leaves its results behind as inputs that are fed what the original computed, so that any part
of a graph is a model of its own.

Source: A. Zeller, R. Hildebrandt, "Simplifying and Isolating Failure-Inducing Input" (2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
from backend_forms import nodes_of
from onnx import ModelProto, NodeProto, helper

from fuzz.kernels import STRING
from fuzz.session import Feed, InProcess

Fails = Callable[[ModelProto, list[Feed]], bool]
_MAX_TRIES = 250


def shrink(model: ModelProto, feeds: Sequence[Feed], fails: Fails, runner: InProcess) -> tuple[ModelProto, list[Feed]]:
    """A part that still fails, and its inputs. Every value of the model must be computable by `runner`."""
    kept = list(feeds)
    for feed in feeds:
        if len(kept) > 1 and fails(model, [feed]):
            kept = [feed]
            break
    values = [_all_values(model, feed, runner) for feed in kept]
    if any(v is None for v in values):
        return model, kept
    known = [v for v in values if v is not None]
    best = list(range(len(model.graph.node)))
    size, tries = max(1, len(best) // 2), 0
    while size and tries < _MAX_TRIES:
        at, changed = 0, False
        while at < len(best) and tries < _MAX_TRIES:
            rest = best[:at] + best[at + size :]
            tries += 1
            part = _part(model, rest, kept, known) if rest else None
            if part is not None and fails(*part):
                best, changed = rest, True
            else:
                at += size
        size = size if changed and size == 1 else size // 2
    return _part(model, best, kept, known) or (model, kept)


def _all_values(model: ModelProto, feed: Feed, runner: InProcess) -> Feed | None:
    """What every value of the main graph is."""
    copy = ModelProto()
    copy.CopyFrom(model)
    named = {v.name for v in copy.graph.output}
    for node in copy.graph.node:
        for name in node.output:
            if name and name not in named:
                copy.graph.output.add(name=name)
    handle = runner.try_load(copy.SerializeToString())
    found = runner.try_run(handle, feed) if handle is not None else None
    if found is None:
        return None
    return {**feed, **{n: v for n, v in found.items() if isinstance(v, np.ndarray)}}


def _part(
    model: ModelProto, numbers: Sequence[int], feeds: Sequence[Feed], values: Sequence[Feed]
) -> tuple[ModelProto, list[Feed]] | None:
    """These nodes as a model; None where a result in between is not a tensor."""
    nodes = [model.graph.node[i] for i in numbers]
    made = {o for n in nodes for o in n.output if o}
    read = [i for n in nodes for i in _reads(n)]
    defaults = {t.name: t for t in model.graph.initializer}
    outer = {o for n in model.graph.node for o in n.output if o}
    part = ModelProto()
    part.CopyFrom(model)
    for name in ("node", "input", "output", "initializer", "value_info"):
        part.graph.ClearField(name)
    part.graph.node.extend(nodes)
    needed = list(dict.fromkeys(i for i in read if i not in made))
    given: list[Feed] = [{} for _ in feeds]
    passed_on = {v.name for v in model.graph.output}
    for info in model.graph.input:
        if info.name in needed or info.name in passed_on:
            part.graph.input.append(info)
    for name in needed:
        if name in defaults:
            part.graph.initializer.append(defaults[name])
        elif name in outer:
            if any(name not in v for v in values):
                return None
            part.graph.input.append(_declare(name, [v[name] for v in values]))
    for feed, found in zip(given, values, strict=True):
        feed |= {v.name: found[v.name] for v in part.graph.input if v.name in found}
    removed = {i for n in (set(range(len(model.graph.node))) - set(numbers)) for i in _reads(model.graph.node[n])}
    wanted = {v.name for v in model.graph.output} | removed
    leaves = [o for o in made if o in wanted or o not in set(read)]
    ordered = [o for n in nodes for o in n.output if o in leaves]
    # Outputs that are inputs or initializers.
    ordered += [v.name for v in model.graph.output if v.name not in outer and v.name in {*needed, *_fed(part)}]
    known = {v.name: v for v in model.graph.output}
    for name in ordered:
        if name in known:
            part.graph.output.append(known[name])
        elif all(name in v for v in values):
            part.graph.output.append(_declare(name, [v[name] for v in values], with_shape=False))
    called = {n.op_type for n in nodes_of(part) if n.domain not in ("", "ai.onnx")}
    functions = [f for f in part.functions if f.name in called]
    del part.functions[:]
    part.functions.extend(functions)
    return (part, given) if part.graph.output else None


def _fed(model: ModelProto) -> list[str]:
    return [v.name for v in model.graph.input]


def _reads(node: NodeProto) -> list[str]:
    """Operands, and what the bodies of the node take from around it."""
    names = [i for i in node.input if i]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            inner = attribute.g
            own = {v.name for v in inner.input} | {t.name for t in inner.initializer}
            own |= {o for n in inner.node for o in n.output}
            names += [i for n in inner.node for i in _reads(n) if i not in own]
            names += [v.name for v in inner.output if v.name not in own]
    return names


def _declare(name: str, arrays: Sequence[np.ndarray], *, with_shape: bool = True) -> onnx.ValueInfoProto:
    first = arrays[0]
    dtype = STRING if first.dtype == object else helper.np_dtype_to_tensor_dtype(first.dtype)
    dims = [n if all(a.shape[i] == n for a in arrays) else None for i, n in enumerate(first.shape)]
    return helper.make_tensor_value_info(name, dtype, dims if with_shape else None)
