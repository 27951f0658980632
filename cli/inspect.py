"""`optimize inspect MODEL`: what it is made of and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opgraft.ir.cost import ModelCost


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Bind a symbolic dim for the cost figures.")
@click.option("--target", default="cpu", show_default=True)
@click.option("--cache/--no-cache", default=True, show_default=True, help="Use the user cache folder.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(model: Path, dims: tuple[str, ...], target: str, cache: bool, as_json: bool) -> None:
    """Show inputs, outputs, operators, weights, FLOPs and bytes of MODEL.

    With every free dim bound also its roofline time: the least that TARGET can take, not a measurement.
    """
    data = describe(model, _bindings(dims), target, use_cache=cache)
    if as_json:
        click.echo(json.dumps(data, indent=2))
        return
    weights_mib = data["weight_bytes"] / (1 << 20)
    click.echo(f"{model}: opset {data['opset']}, {data['n_nodes']} nodes, {weights_mib:.2f} MiB of weights")
    for kind in ("inputs", "outputs"):
        for row in data[kind]:
            click.echo(f"{kind[:-1]:6} {row['name']}: {row['type']} {row['shape']}")
    for name, count in sorted(data["operators"].items(), key=lambda item: -item[1]):
        click.echo(f"{count:6} {name}")
    for line in data["cost"]:
        click.echo(line)


def _bindings(dims: tuple[str, ...]) -> dict[str, int]:
    from opgraft.ir.errors import UsageError

    bound = {}
    for text in dims:
        name, _, size = text.partition("=")
        if not size.isdigit():
            raise UsageError(f"--dim {text!r} is not NAME=SIZE", remedy="for example --dim batch=2")
        bound[name] = int(size)
    return bound


def describe(model: Path, bindings: dict[str, int], target: str, *, use_cache: bool = True) -> dict[str, Any]:
    """The inspection as data."""
    from opgraft.cli.report import count_nodes
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.cost import cost_of
    from opgraft.ir.external import all_tensors

    program = capture_onnx(model)
    return {
        "model": str(model),
        "opset": program.opset,
        "ir_version": program.model.ir_version,
        "n_nodes": sum(count_nodes(program).values()),
        "operators": count_nodes(program),
        "weight_bytes": sum(t.nbytes for _, t in all_tensors(program.model)),
        "inputs": [_value(v) for v in program.graph.inputs],
        "outputs": [_value(v) for v in program.graph.outputs],
        "functions": [f"{k[0]}::{k[1]}" for k in program.model.functions],
        "cost": _cost_lines(cost_of(program.model), bindings, target, use_cache),
        "notes": program.notes,
    }


def _cost_lines(cost: ModelCost, bindings: dict[str, int], target_name: str, use_cache: bool) -> list[str]:
    from opgraft.ir.cost import work_in_numbers
    from opgraft.ir.target import Target

    target = Target.load(target_name)
    lines = [f"FLOPs {cost.total.flops}", f"free dims: {', '.join(sorted(cost.dims)) or 'none'}"]
    if cost.unknown:
        lines.append(f"{len(cost.unknown)} nodes of unknown cost left out, the first: {cost.unknown[0].reason}")
    if not cost.dims <= set(bindings):
        return lines
    if target.peaks is None:
        from opgraft.backends.onnxruntime.peaks import measured_peaks

        target = target.with_peaks(measured_peaks(use_cache=use_cache))
    amounts = work_in_numbers(cost.total, bindings)
    found = cost.roofline(target, bindings)
    shares = ", ".join(f"{name} {seconds * 1e3:.3f} ms" for name, seconds in sorted(found.by_constraint().items()))
    traffic_mib = (amounts.bytes_read + amounts.bytes_written) / (1 << 20)
    lines.append(f"at these sizes: {amounts.flops:.4g} FLOPs, {traffic_mib:.2f} MiB read and written")
    lines.append(f"roofline on {target.name}, a lower bound: {found.seconds * 1e3:.3f} ms ({shares})")
    return lines


def _value(value: Any) -> dict[str, str]:
    return {"name": value.name, "type": str(value.type), "shape": str(value.shape)}
