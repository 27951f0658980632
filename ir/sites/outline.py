"""The program as a short list of parts in order: what a person would draw. Repeated runs of parts are folded.

embedding, 6 x (attention, add, norm, mlp, add, norm), pool
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx_ir
from opgraft.ir.axes.roles import Role, text_of
from opgraft.ir.program import is_op
from opgraft.ir.sites.attention_site import AttentionSite
from opgraft.ir.sites.find_sites import Sites
from opgraft.ir.sites.layers import GatedMlp, Linear, Mlp
from opgraft.ir.sites.masks import Mask

_VIEWS = (
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "Slice",
    "Split",
    "Gather",
    "Add",
)
_BETWEEN = (*_VIEWS, "Mul", "Div", "Sub", "Neg", "Concat", "Expand", "RotaryEmbedding", "Where", "ScatterND", "Pow")
_REACH = 90
_MAX_PERIOD = 48


@dataclass(frozen=True)
class Part:
    """One box of the drawing."""

    kind: str
    """attention, mlp, norm, add, linear, embedding, convolution, recurrence, router, pool."""
    title: str
    detail: str
    shape: str
    """Of the result, each dim with role and size."""
    output: onnx_ir.Value
    stream: onnx_ir.Value | None = None
    """Of an add: what is carried past the branch."""

    @property
    def signature(self) -> tuple[str, str, str]:
        return (self.kind, self.title, self.detail)


@dataclass(frozen=True)
class Repeat:
    """`count` times the same parts, one after the other; those of the first time."""

    count: int
    parts: tuple[Part, ...]


def outline(sites: Sites) -> list[Repeat]:
    return list(_folded(_parts(sites)))


def _parts(sites: Sites) -> list[Part]:
    inside: set[onnx_ir.Node] = set()
    found: dict[onnx_ir.Node, Part] = {}
    linears = {linear.node: linear for linear in sites.linears}
    for site, mask, rotary in zip(sites.attention, sites.masks, sites.rotary, strict=True):
        projections, last, output = _projections(site, linears)
        inside.update(projections)
        found[last] = _attention_part(sites, site, mask, rotary, output)
    for mlp in sites.mlps:
        first = (mlp.gate, mlp.up) if isinstance(mlp, GatedMlp) else (mlp.first,)
        second = mlp.down if isinstance(mlp, GatedMlp) else mlp.second
        if second.node in inside or any(part.node in inside for part in first):
            continue
        inside.update(part.node for part in (*first, second))
        found[second.node] = _mlp_part(sites, mlp, second)
    for norm in sites.norms:
        if norm.nodes[-1] not in inside:
            found[norm.nodes[-1]] = _part(sites, "norm", f"{norm.kind} norm", "", norm.output)
    in_scores = {addend.node for site in sites.attention for addend in site.addends}
    for residual in sites.residuals:
        output = residual.node.outputs[0]
        if residual.node in in_scores:
            continue
        found[residual.node] = replace(_part(sites, "add", "add", "", output), stream=residual.stream)
    for embedding in sites.embeddings:
        rows = sites.axes.operand(embedding.node, 0)
        size = " x ".join(str(sites.axes.axes[n].size) for n in rows or ())
        found[embedding.node] = _part(sites, "embedding", "embedding", size, embedding.output)
    for linear in sites.linears:
        if linear.node not in inside:
            found[linear.node] = _part(sites, "linear", "linear", _linear_size(sites, linear), linear.output)
    for node in sites.convolutions:
        found[node] = _part(sites, "convolution", "convolution", _kernel(sites, node), node.outputs[0])
    for node in sites.recurrences:
        found[node] = _part(sites, "recurrence", node.op_type, "", node.outputs[0])
    for node in sites.routers:
        found[node] = _part(sites, "router", "router", "", node.outputs[0])
    for node in sites.program.graph:
        if node not in found and _pools(sites, node):
            found[node] = _part(sites, "pool", node.op_type, "", node.outputs[0])
    order = {node: place for place, node in enumerate(sites.program.graph)}
    return _summed([part for _, part in sorted(found.items(), key=lambda item: order.get(item[0], 0))])


def _summed(parts: list[Part]) -> list[Part]:
    """Tables looked up one after the other are one part: their rows are added up."""
    result: list[Part] = []
    for part in parts:
        last = result[-1] if result else None
        if part.kind == "embedding" and last is not None and last.kind == "embedding":
            rows, width = last.detail.rsplit(" x ", 1)
            if part.detail.endswith(f" x {width}"):
                detail = f"{rows} + {part.detail.rsplit(' x ', 1)[0]} x {width}"
                result[-1] = replace(last, title="embeddings", detail=detail)
                continue
        result.append(part)
    return result


def _part(sites: Sites, kind: str, title: str, detail: str, output: onnx_ir.Value) -> Part:
    return Part(kind, title, detail, shape_text(sites, output), output)


def shape_text(sites: Sites, value: onnx_ir.Value) -> str:
    """`[batch B, token T, channel 384]`: the size of each dim, and its role where the size does not say it."""
    numbers = sites.axes.of(value)
    if numbers is None:
        return "[?]"
    words = []
    for number in numbers:
        size, role = str(sites.axes.axes[number].size), text_of(sites.roles.roles[number])
        size = "?" if size.startswith("?") else size
        words.append(role if role == size else f"{role} {size}")
    return f"[{', '.join(words)}]"


def _attention_part(sites: Sites, site: AttentionSite, mask: Mask, rotary: bool | None, output: onnx_ir.Value) -> Part:
    kind = "channel attention" if site.is_channel else "cross-attention" if site.is_cross else "attention"
    shared = "" if site.heads == site.kv_heads else f" ({site.kv_heads} kv)"
    words = [f"{site.heads} heads{shared} x {site.head_dim}"]
    if mask.classes or mask.reason:
        words.append("mask " + ("+".join(sorted(c.value for c in mask.classes)) or "undecided"))
    if mask.window is not None:
        words.append(f"window {mask.window}")
    if rotary:
        words.append("rotary")
    return _part(sites, "attention", kind, ", ".join(words), output)


def _mlp_part(sites: Sites, mlp: GatedMlp | Mlp, last: Linear) -> Part:
    first = mlp.gate if isinstance(mlp, GatedMlp) else mlp.first
    narrow, wide = _linear_size(sites, first).split(" -> ")
    end = _linear_size(sites, last).split(" -> ")[-1]
    title = "gated mlp" if isinstance(mlp, GatedMlp) else "mlp"
    return _part(sites, "mlp", title, f"{narrow} -> {wide} -> {end}", last.output)


def _linear_size(sites: Sites, linear: Linear) -> str:
    ins, outs = sites.axes.of(linear.source), sites.axes.of(linear.node.outputs[0])
    sizes = [str(sites.axes.axes[numbers[-1]].size) if numbers else "?" for numbers in (ins, outs)]
    return " -> ".join(sizes)


def _kernel(sites: Sites, node: onnx_ir.Node) -> str:
    weight = sites.axes.operand(node, 1)
    if weight is None:
        return ""
    sizes = [str(sites.axes.axes[n].size) for n in weight]
    group = node.attributes.get("group")
    grouped = f", {group.as_int()} groups" if group is not None and group.as_int() > 1 else ""
    return f"{'x'.join(sizes[2:])}, {sizes[0]} channels{grouped}"


def _pools(sites: Sites, node: onnx_ir.Node) -> bool:
    """Whether a whole dim of positions is averaged away."""
    if is_op(node, "GlobalAveragePool", "GlobalMaxPool"):
        return True
    if not is_op(node, "ReduceMean", "ReduceMax"):
        return False
    positions = {Role.TOKEN, Role.QUERY, Role.KEY, Role.SPATIAL}
    gone = [
        n
        for n in sites.axes.operand(node, 0) or ()
        if any(r.node is node and r.target < 0 for r in sites.axes.out_of[n])
    ]
    return bool(gone) and all(positions & set(sites.roles.roles[n]) for n in gone)


def _projections(
    site: AttentionSite, linears: dict[onnx_ir.Node, Linear]
) -> tuple[set[onnx_ir.Node], onnx_ir.Node, onnx_ir.Value]:
    """The linear layers before and after an attention, its last node and its result."""
    found = {node for value in (site.query, site.key, site.value) for node in _backward(value, linears)}
    pending, seen = [site.output], {site.output}
    while pending and len(seen) < _REACH:
        value = pending.pop(0)
        for use in value.uses():
            if use.node in linears:
                return {*found, use.node}, use.node, linears[use.node].output
            if is_op(use.node, *_VIEWS, "Concat", "Mul", "Sigmoid") and use.node.outputs[0] not in seen:
                seen.add(use.node.outputs[0])
                pending.append(use.node.outputs[0])
    return found, site.context, site.output


def _backward(value: onnx_ir.Value, linears: dict[onnx_ir.Node, Linear]) -> Iterator[onnx_ir.Node]:
    """The nearest layers before a value, and the normalizations on the way."""
    pending, seen = [value], {value}
    while pending and len(seen) < _REACH:
        node = pending.pop(0).producer()
        if node is None:
            continue
        if node in linears:
            yield node
            continue
        if not is_op(node, *_BETWEEN, "RMSNormalization", "LayerNormalization", "Sqrt", "Reciprocal", "ReduceMean"):
            continue
        yield node
        for before in node.inputs:
            if before is not None and before not in seen:
                seen.add(before)
                pending.append(before)


def _folded(parts: Sequence[Part]) -> Iterator[Repeat]:
    start = 0
    while start < len(parts):
        period, count = _repetition(parts, start)
        yield Repeat(count, tuple(parts[start : start + period]))
        start += period * count


def _repetition(parts: Sequence[Part], start: int) -> tuple[int, int]:
    """The run from `start` that repeats so often that it saves most, as its length and how often."""
    best = (1, 1)
    for period in range(1, min(_MAX_PERIOD, (len(parts) - start) // 2) + 1):
        count = 1
        while _same_run(parts, start, start + count * period, period):
            count += 1
        if count > 1 and period * (count - 1) > best[0] * (best[1] - 1):
            best = (period, count)
    return best


def _same_run(parts: Sequence[Part], first: int, second: int, length: int) -> bool:
    if second + length > len(parts):
        return False
    return all(parts[first + k].signature == parts[second + k].signature for k in range(length))
