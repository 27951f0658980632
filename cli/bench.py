"""`optimize bench A B`: which of two models is faster?"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.command("bench")
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--threads", type=click.IntRange(min=1), multiple=True, default=(1, 2), show_default=True)
@click.option("--pairs", type=click.IntRange(min=6), default=25, show_default=True, help="Interleaved pairs.")
@click.option("--inputs", type=click.Path(path_type=Path), metavar="FILE.npz", help="Measure on these.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(
    baseline: Path, candidate: Path, threads: tuple[int, ...], pairs: int, inputs: Path | None, as_json: bool
) -> None:
    """Measure CANDIDATE against BASELINE: interleaved runs, 95 % intervals, and BASELINE against itself."""
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.backends.onnxruntime.timing import compare_latency, measure_footprint
    from opgraft.cli.given_inputs import check_inputs, read_inputs
    from opgraft.cli.summary import footprint_line, latency_line
    from opgraft.cli.weigh import latency_report
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.errors import ExecutionError
    from opgraft.ir.verify import Verifier

    program = capture_onnx(baseline)
    capture_onnx(candidate)
    case = check_inputs(program, read_inputs(inputs), str(inputs)) if inputs is not None else None
    with Executor() as executor:
        case = case or Verifier(program, baseline, executor).ordinary_case()
        if case is None:
            raise ExecutionError("no inputs were found that the model runs on", where=str(baseline))
        rows = [
            latency_report(compare_latency(executor, baseline, candidate, case.arrays, pairs=pairs, threads=n))
            for n in threads
        ]
    footprints = {str(m): asdict(measure_footprint(m, case.arrays)) for m in (baseline, candidate)}
    if as_json:
        click.echo(
            json.dumps({"inputs": case.name, "latency": [asdict(r) for r in rows], "footprint": footprints}, indent=2)
        )
        return
    click.echo(f"inputs: {case.name}")
    for row in rows:
        click.echo(latency_line(row))
    for name, footprint in footprints.items():
        click.echo(footprint_line(name, footprint))
