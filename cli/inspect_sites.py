"""What `optimize inspect` says of blocks, attention and dims: data, lines, a drawing, and a check by trying."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir
    from opgraft.ir.sites import Sites

_MAX_REASONS = 8


def describe_sites(sites: Sites) -> dict[str, Any]:
    """The analyses as data that JSON can hold."""
    from opgraft.ir.axes.roles import text_of
    from opgraft.ir.sites.outline import outline, shape_text

    graph = sites.program.graph
    return {
        "interface": {v.name: shape_text(sites, v) for v in (*graph.inputs, *graph.outputs)},
        "outline": [
            {
                "count": repeat.count,
                "parts": [
                    {"kind": p.kind, "title": p.title, "detail": p.detail, "shape": p.shape} for p in repeat.parts
                ],
            }
            for repeat in outline(sites)
        ],
        "attention": list(_attention(sites)),
        "refused": [{"node": r.node.name, "reason": r.reason} for r in sites.refused],
        "roles": {
            value.name: [text_of(sites.roles.roles[n]) for n in numbers] for value, numbers in _data_values(sites)
        },
        "dims": _share(sites),
        "opaque": [
            {"node": node.name, "operator": node.op_type, "reason": why} for node, why in sites.axes.opaque.items()
        ],
    }


def _attention(sites: Sites) -> Iterator[dict[str, Any]]:
    for site, mask, rotary in zip(sites.attention, sites.masks, sites.rotary, strict=True):
        yield {
            "node": site.softmax.name,
            "kind": "channel" if site.is_channel else "cross" if site.is_cross else "self",
            "heads": _number(site.heads),
            "kv_heads": _number(site.kv_heads),
            "head_dim": _number(site.head_dim),
            "scale": site.scale,
            "mask": sorted(c.value for c in mask.classes),
            "window": mask.window,
            "undecided": mask.reason,
            "rotary": rotary,
            "query": site.query.name,
            "key": site.key.name,
            "value": site.value.name,
            "output": site.output.name,
        }


def _number(size: Any) -> int | str:
    return size if isinstance(size, int) else str(size)


def _data_values(sites: Sites) -> Iterator[tuple[onnx_ir.Value, range]]:
    """Values that hold data: no constants, and no shape arithmetic."""
    for value, numbers in sites.axes.values():
        if value not in sites.axes.constant and sites.facts.integers(value) is None:
            yield value, numbers


def _share(sites: Sites) -> dict[str, Any]:
    """How many dims have a role, and why the others have none, with a place for each reason."""
    n_dims = n_known = 0
    reasons: Counter[str] = Counter()
    places: dict[str, str] = {}
    for _, numbers in _data_values(sites):
        for number in numbers:
            n_dims += 1
            if sites.roles.roles[number]:
                n_known += 1
            else:
                reason = sites.roles.reason(number)
                reasons[reason] += 1
                places.setdefault(reason, str(sites.axes.axes[number]))
    unknown = [{"reason": r, "count": c, "first": places[r]} for r, c in reasons.most_common()]
    return {"count": n_dims, "with_role": n_known, "unknown": unknown}


def site_lines(data: dict[str, Any]) -> Iterator[str]:
    found = data["sites"]
    yield "blocks:"
    for repeat in found["outline"]:
        indent = "  "
        if repeat["count"] > 1:
            yield f"  {repeat['count']} x"
            indent = "      "
        for part in repeat["parts"]:
            if part["kind"] != "add":
                words = f"{part['title']}  {part['detail']}".rstrip()
                yield f"{indent}{words:50} {part['shape']}"
    for refused in found["refused"]:
        yield f"not called attention: {refused['node']}: {refused['reason']}"
    dims = found["dims"]
    yield f"dims with a role: {dims['with_role']} of {dims['count']}"
    for unknown in dims["unknown"][:_MAX_REASONS]:
        yield f"  {unknown['count']} unknown: {unknown['reason']} (first {unknown['first']})"
    if "check" in data:
        yield from _check_lines(data["check"])


def _check_lines(check: dict[str, Any]) -> Iterator[str]:
    share = check["moved"] / check["predicted"] if check["predicted"] else 0.0
    yield (
        f"interventions: {check['interventions']}, values compared: {check['values']}, of which bounded: "
        f"{check['bounded']}; {share:.0%} of the elements that may move did"
    )
    for wrong in check["wrong"]:
        yield f"  wrong: {wrong}"
    for skipped in check["skipped"]:
        yield f"  not tried: {skipped}"
    if not check["wrong"]:
        yield "  nothing moved that the analysis says cannot"


def check_claims(sites: Sites) -> dict[str, Any]:
    """Interventions on this program, in a child process."""
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.ir.sites.interventions import check_interventions

    with Executor() as executor:
        report = check_interventions(sites, executor)
    return {
        "interventions": report.n_interventions,
        "values": report.n_values,
        "bounded": report.n_bounded,
        "predicted": report.n_predicted,
        "moved": report.n_moved,
        "wrong": [str(w) for w in report.wrong],
        "skipped": report.skipped,
    }


def write_drawing(sites: Sites, title: str, path: Path, *, force: bool) -> None:
    """Raises OutputError when the file exists or cannot be written."""
    from opgraft.cli.block_diagram import draw_blocks
    from opgraft.ir.destination import check_output, write_text
    from opgraft.ir.sites.outline import outline, shape_text

    graph = sites.program.graph
    check_output(path, sites.program.path, force=force)
    inputs = [(v.name or "", shape_text(sites, v)) for v in graph.inputs]
    outputs = [(v.name or "", shape_text(sites, v)) for v in graph.outputs]
    write_text(path, draw_blocks(title, inputs, outline(sites), outputs))
