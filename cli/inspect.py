"""`optimize inspect MODEL`: what it is made of, what its dims are for, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opgraft.ir.cost import ModelCost
    from opgraft.ir.program import Program


@click.command("inspect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Bind a symbolic dim for the cost figures.")
@click.option("--target", default="cpu", show_default=True)
@click.option("--cache/--no-cache", default=True, show_default=True, help="Use the user cache folder.")
@click.option("--svg", type=click.Path(path_type=Path, dir_okay=False), help="Draw the blocks into this file.")
@click.option("--force", is_flag=True, help="Overwrite the drawing.")
@click.option("--check", is_flag=True, help="Perturb inputs and hold what moves against the analysis.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    model: Path,
    dims: tuple[str, ...],
    target: str,
    cache: bool,
    svg: Path | None,
    force: bool,
    check: bool,
    as_json: bool,
) -> None:
    """Show inputs, outputs, operators, weights, FLOPs and bytes of MODEL, its blocks, and what its dims are for.

    With every free dim bound also its roofline time: the least that TARGET can take, not a measurement.
    """
    from opgraft.cli.inspect_sites import check_claims, describe_sites, site_lines, write_drawing
    from opgraft.cli.main import EXIT_REFUTED
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.sites import find_sites

    program = capture_onnx(model)
    data = describe(program, model, _bindings(dims), target, use_cache=cache)
    sites = find_sites(program)
    data["sites"] = describe_sites(sites)
    if svg is not None:
        write_drawing(sites, model.name, svg, force=force)
    if check:
        data["check"] = check_claims(sites)
    if as_json:
        click.echo(json.dumps(data, indent=2))
    else:
        _print(model, data)
        for line in site_lines(data):
            click.echo(line)
    if check and data["check"]["wrong"]:
        raise SystemExit(EXIT_REFUTED)


def _print(model: Path, data: dict[str, Any]) -> None:
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


def describe(
    program: Program, model: Path, bindings: dict[str, int], target: str, *, use_cache: bool = True
) -> dict[str, Any]:
    """The inspection as data."""
    from opgraft.cli.estimate import program_cost
    from opgraft.cli.report import count_nodes
    from opgraft.ir.external import all_tensors

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
        "cost": _cost_lines(program_cost(program), bindings, target, use_cache),
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
