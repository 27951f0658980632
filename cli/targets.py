"""`optimize targets`: where a model can be meant to run."""

from __future__ import annotations

import click


@click.command("targets")
def command() -> None:
    """List the targets with their figures and where those come from."""
    from opgraft.ir.target import Target, known_targets

    for name in known_targets():
        click.echo(Target.load(name).describe())
