"""`optimize explain MODEL PASS`: where a pass applies, and where and why it does not."""

from __future__ import annotations

from pathlib import Path

import click

_MAX_LINES = 40


@click.command("explain")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("pass_name", metavar="PASS")
@click.option("--all", "show_all", is_flag=True, help="Show every near miss.")
def command(model: Path, pass_name: str, show_all: bool) -> None:
    """Run PASS alone on MODEL (nothing is written) and list its rewrites and near misses."""
    from opgraft.cli.driver import Driver, Options

    options = Options(passes=pass_name, measure=False, verify="off", explain=True)
    with Driver(model, options) as driver:
        attempt = driver.attempt()
    rewrites = attempt.context.rewrites
    click.echo(f"{pass_name}: {len(rewrites)} rewrites")
    for rewrite in rewrites[: None if show_all else _MAX_LINES]:
        click.echo(f"  at {rewrite.site}" + (f" by {rewrite.pass_name}" if rewrite.pass_name != pass_name else ""))
    for name, misses in attempt.context.near_misses.items():
        reasons: dict[str, list[str]] = {}
        for miss in misses:
            reasons.setdefault(miss.reason, []).append(miss.where)
        for reason, places in sorted(reasons.items(), key=lambda item: -len(item[1])):
            click.echo(f"  no match ({name}): {reason}: {len(places)} places")
            for place in places if show_all else places[:3]:
                click.echo(f"    {place}")
