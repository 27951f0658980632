"""Holds what the analyses find against what a torch module's config and hooks tell: sites, heads, and roles of dims.

The graph that is analysed has no names, no recorded shapes and shuffled nodes. Its values are recognised by content:
the module's submodules are run with hooks, the graph with every value exposed, and what is equal is the same tensor.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from opgraft.ir.axes.roles import Role, Roles, text_of
from opgraft.ir.sites import Sites

ROLE_GROUPS: Mapping[str, frozenset[Role]] = {
    "batch": frozenset((Role.BATCH,)),
    # A sequence of patches is a sequence; a feature map's rows and columns may be called either.
    "token": frozenset((Role.TOKEN, Role.QUERY, Role.KEY)),
    "spatial": frozenset((Role.SPATIAL, Role.TOKEN, Role.QUERY, Role.KEY)),
    "channel": frozenset((Role.CHANNEL,)),
    "vocabulary": frozenset((Role.VOCABULARY, Role.CHANNEL)),
    "feature": frozenset((Role.CHANNEL, Role.TOKEN)),
}
# Which of the fixed patterns it is, an analysis does not say.
_FIXED_PATTERNS = frozenset(("block-causal", "block-diagonal", "sparse", "border"))
# Modules that are given tokens as features and features as tokens.
_TURNED = "channel_mixer"
# Two kernels of one product differ by a few roundings; tensors of different meaning differ by far more.
_SAME = 1e-4


@dataclass
class Comparison:
    """Attention found and expected, and roles of dims of submodules' results."""

    n_attention: int = 0
    n_expected: int = 0
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Claims that the ground truth contradicts."""
    undecided: list[str] = field(default_factory=list)
    """Found, with a mask or rotary positions of which nothing is claimed."""
    n_dims: int = 0
    n_unknown: int = 0
    n_roles_checked: int = 0
    n_roles_unknown: int = 0


def anonymous(path: Path, seed: int = 0) -> onnx.ModelProto:
    """The model without names, shapes of inner values, docs and metadata, its nodes in another order."""
    model = onnx.load(path)
    rng = random.Random(seed)
    names: dict[str, str] = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
    _anonymize(model.graph, names)
    del model.graph.value_info[:]
    order = _shuffled(list(model.graph.node), model.graph, rng)
    del model.graph.node[:]
    model.graph.node.extend(order)
    initializers = list(model.graph.initializer)
    rng.shuffle(initializers)
    del model.graph.initializer[:]
    model.graph.initializer.extend(initializers)
    del model.metadata_props[:]
    return model


def _anonymize(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    def renamed(name: str) -> str:
        return names.setdefault(name, f"v{len(names)}") if name else ""

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
        tensor.doc_string = ""
    for place, node in enumerate(graph.node):
        node.name = f"n{place}"
        node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed(n) for n in node.input]
        node.output[:] = [renamed(n) for n in node.output]
        for attribute in node.attribute:
            bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
            for body in bodies:
                for value in (*body.input, *body.output):
                    value.name = renamed(value.name)
                del body.value_info[:]
                _anonymize(body, names)


def _shuffled(nodes: list[onnx.NodeProto], graph: onnx.GraphProto, rng: random.Random) -> list[onnx.NodeProto]:
    """Another topological order."""
    made = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    waits = [{made[name] for name in _reads(node) if name in made} for node in nodes]
    users: dict[int, list[int]] = {}
    for place, before in enumerate(waits):
        for other in before:
            users.setdefault(other, []).append(place)
    ready = [place for place, before in enumerate(waits) if not before]
    result = []
    while ready:
        place = ready.pop(rng.randrange(len(ready)))
        result.append(nodes[place])
        for user in users.get(place, []):
            waits[user].discard(place)
            if not waits[user]:
                ready.append(user)
    return result


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        bodies = [attribute.g] if attribute.HasField("g") else list(attribute.graphs)
        for body in bodies:
            for inner in body.node:
                yield from _reads(inner)
            yield from (value.name for value in body.output)


def compare(sites: Sites, truth: Any) -> Comparison:
    """Sites against `architectures.Truth`."""
    found = Comparison(n_attention=len(sites.attention), n_expected=len(truth.attention))
    seen = Counter(_seen(sites))
    expected = Counter(_expected(truth.attention))
    # An attention of constants alone is one number for every input, and folded by exporters: DETR's first over its
    # object queries. And what is refused, with a reason, is not missed.
    computed = sum(
        node.op_type in ("Softmax", "Attention") and node.outputs[0] not in sites.axes.constant
        for node in sites.program.graph
    )
    excused = max(0, len(truth.attention) - computed) + len(sites.refused)
    lacking, excess = expected - seen, seen - expected
    for item in list(excess.elements()):
        match = next((other for other in lacking.elements() if _agree(item, other)), None)
        if match is not None:
            excess -= Counter((item,))
            lacking -= Counter((match,))
            found.undecided.append(_words(item))
    for item, count in lacking.items():
        used = min(count, excused)
        excused -= used
        count -= used
        if not count:
            continue
        found.missing.append(f"{count} x {_words(item)}")
    for item, count in excess.items():
        found.wrong.append(f"{count} x {_words(item)}")
    for value, numbers in sites.axes.values():
        if sites.facts.integers(value) is None and value not in sites.axes.constant:
            found.n_dims += len(numbers)
            found.n_unknown += sum(not sites.roles.roles[n] for n in numbers)
    return found


_Item = tuple[str, str, str, str, frozenset[str], bool | None]


def _agree(found: _Item, wanted: _Item) -> bool:
    """Whether what was found claims nothing that is not so, and leaves masks or rotary positions open."""
    is_open = "undecided" in found[4] or found[5] is None
    same = found[:4] == wanted[:4] and found[4] - {"undecided"} <= wanted[4] and found[5] in (None, wanted[5])
    return is_open and same and ("undecided" in found[4] or found[4] == wanted[4])


def _words(item: _Item) -> str:
    heads, kv_heads, width, kind, masks, rotary = item
    turned = {True: " rotary", False: "", None: " rotary?"}[rotary]
    return f"{kind} heads {heads}/{kv_heads} x {width} masks {'+'.join(sorted(masks)) or 'none'}{turned}"


def _seen(sites: Sites) -> Iterator[_Item]:
    for site, mask, rotary in zip(sites.attention, sites.masks, sites.rotary, strict=True):
        kind = "channel" if site.is_channel else "cross" if site.is_cross else "self"
        masks = frozenset(c.value for c in mask.classes)
        if mask.reason:
            masks |= {"undecided"}
        yield str(site.heads), str(site.kv_heads), str(site.head_dim), kind, masks, rotary


def _expected(attention: Iterable[Any]) -> Iterator[_Item]:
    for truth in attention:
        masks = set(truth.mask)
        kind = truth.kind
        if kind == "window":
            # Windows of an image are samples of their own; the mask of shifted ones is -100, a number like a bias.
            kind = "self"
            masks = {"bias"} if masks else masks
        if masks & _FIXED_PATTERNS:
            # Of fixed patterns together, one is made that is neither.
            masks = masks - {*_FIXED_PATTERNS, "causal", "window"} | {"pattern"}
        yield str(truth.heads), str(truth.kv_heads), str(truth.head_dim), kind, frozenset(masks), truth.rotary


# -- roles ------------------------------------------------------------------------------------------------------------


def expected_roles(built: Any, shapes: Mapping[str, tuple[Any, Any]]) -> dict[str, tuple[str, ...]]:
    """Module path -> roles of the dims of its result, told by the kind of module and, with sizes that are all
    different, by the sizes of its result."""
    import torch

    modules = dict(built.module.named_modules())
    named = {}
    for name, values in built.dims.items():
        named.setdefault(values[0], name)
    # Patches of an image are tokens to some layers and rows and columns to others.
    position = "spatial" if any(tensor.ndim == 4 for tensor in built.inputs().values()) else "token"
    images = _images(modules, shapes)
    result = {}
    for path, (_, outs) in shapes.items():
        if len(outs) != 1 or path not in modules:
            continue
        module, shape = modules[path], outs[0]
        if isinstance(module, torch.nn.modules.conv._ConvNd) and len(shape) >= 3:
            rest = "token" if len(shape) == 3 else "spatial"
            # Of one channel in and out it is a filter that slides along whatever it is given: channels in ECA.
            is_filter = module.in_channels == module.out_channels == 1
            if named.get(shape[0]) == "batch" and not is_filter:
                result[path] = ("batch", "channel", *(rest,) * (len(shape) - 2))
        elif isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and len(shape) == 3:
            kinds = [named.get(size) for size in shape[:-1]]
            if kinds[0] == "batch" and len(set(shape)) == len(shape) and shape[0] * shape[1] not in images:
                last = "vocabulary" if path == built.head else "channel"
                result[path] = ("batch", position, last)
    return {path: _turned(roles) if _TURNED in path.split(".") else roles for path, roles in result.items()}


def _turned(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Channels stand where the kind of module lets expect tokens; what it makes of tokens is either."""
    return tuple({"token": "channel", "channel": "feature"}.get(role, role) for role in roles)


def _images(modules: Mapping[str, Any], shapes: Mapping[str, tuple[Any, Any]]) -> set[int]:
    """How many images convolutions get: parts of a sample that are images of their own are no tokens."""
    import torch

    taken = (ins[0] for path, (ins, _) in shapes.items() if isinstance(modules.get(path), torch.nn.Conv2d) and ins)
    return {shape[0] for shape in taken if len(shape) == 4}


def check_roles(
    sites: Sites,
    values: Mapping[str, np.ndarray],
    tensors: Mapping[str, np.ndarray],
    roles: Mapping[str, tuple[str, ...]],
) -> Iterator[tuple[str, int, str | None]]:
    """Module path, dim, and what is wrong with the role found there: None when right, "" when unknown.

    `values`: the graph's by name; `tensors`: the results of submodules by path.
    """
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, array in values.items():
        by_shape.setdefault(array.shape, []).append(name)
    known = {value.name: value for value, _ in sites.axes.values()}
    single = {site.head_dim for site in sites.attention if site.kv_heads == 1}
    for path, expected in roles.items():
        tensor = tensors.get(path)
        if tensor is None or tensor.ndim != len(expected):
            continue
        for name in by_shape.get(tensor.shape, []):
            if _is_same(values[name], tensor):
                found = sites.roles.of(known[name]) or ()
                for place, (have, want) in enumerate(zip(found, expected, strict=True)):
                    yield path, place, _judge(have, want, tensor.shape[place], tensor.shape[place] in single)


def _judge(have: Roles, want: str, size: int, single_head: bool) -> str | None:
    """With one head, the channel that a projection makes is the head's."""
    if not have or (single_head and want == "channel" and have == (Role.HEAD_DIM,)):
        return None if have else ""
    if all(role in ROLE_GROUPS[want] for role in have) or (have == (Role.UNIT,) and size == 1):
        return None
    return f"{text_of(have)}, not {want}"


def _is_same(left: np.ndarray, right: np.ndarray) -> bool:
    if left.dtype.kind != "f" or left.size < 2:
        return False
    scale = float(np.abs(right).max())
    return bool(scale > 0 and np.abs(left - right).max() <= _SAME * scale and np.ptp(right) > 0)


def module_results(built: Any, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The single tensors that submodules return, by path; of the first call."""
    import torch
    from architectures.truth import on_module_calls

    results: dict[str, np.ndarray] = {}

    def leave(path: str, value: Any) -> None:
        if isinstance(value, torch.Tensor) and path and path not in results:
            results[path] = value.detach().numpy().copy()

    with on_module_calls(built.module, lambda *_: None, leave), torch.no_grad():
        built.module(**inputs)
    return results
