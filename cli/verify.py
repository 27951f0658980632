"""`optimize verify A B`: are two models the same?"""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("verify")
@click.argument("original", type=click.Path(path_type=Path))
@click.argument("candidate", type=click.Path(path_type=Path))
@click.option("--contract", type=click.Choice(["exact", "numeric"]), default="numeric", show_default=True)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE.npz",
    help="Compare on these instead of generated inputs.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(original: Path, candidate: Path, contract: str, inputs: tuple[Path, ...], seed: int, as_json: bool) -> int:
    """Compare CANDIDATE with ORIGINAL on generated inputs (batches, lengths, masks, edges) or given ones.

    Exit code 0 when they agree, 7 when they differ, 8 when it could not be found out.
    """
    from opgraft.backends.onnxruntime.executor import Executor
    from opgraft.cli.given_inputs import check_inputs, read_inputs
    from opgraft.cli.main import EXIT_REFUTED, EXIT_UNVERIFIED
    from opgraft.cli.report import json_value
    from opgraft.ir.capture_onnx import capture_onnx
    from opgraft.ir.verify import Outcome, Verifier

    program = capture_onnx(original)
    capture_onnx(candidate)
    cases = [check_inputs(program, read_inputs(path), str(path)) for path in inputs] or None
    with Executor() as executor:
        found = Verifier(program, original, executor, seed=seed, cases=cases).verify(candidate, contract)
    if as_json:
        fields = {k: v for k, v in vars(found).items() if k != "failing_case"}
        click.echo(json.dumps(json_value({**fields, "outcome": found.outcome.value}), indent=2))
    else:
        click.echo(f"{found.outcome.value} ({contract}) on {len(found.cases)} sets of inputs")
        if contract == "numeric" and found.cases:
            click.echo(
                f"largest error {found.max_abs_error:.3g}, allowed {found.tolerance:.3g}, "
                f"the original's own float32 error {found.float32_error:.3g}"
            )
        for line in [*found.differences, found.reason]:
            if line:
                click.echo(line)
    return {Outcome.VERIFIED: 0, Outcome.REFUTED: EXIT_REFUTED, Outcome.UNVERIFIED: EXIT_UNVERIFIED}[found.outcome]
