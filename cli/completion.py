"""`optimize completion SHELL`: a script for the shell's completion."""

from __future__ import annotations

import click


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--command", "name", type=click.Choice(["optimize", "opgraft"]), default="optimize", show_default=True)
def command(shell: str, name: str) -> None:
    """Print the script; for bash: `eval "$(optimize completion bash)"`."""
    from click.shell_completion import get_completion_class
    from opgraft.cli.main import cli

    cls = get_completion_class(shell)
    if cls is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(cls(cli, {}, name, f"_{name.upper()}_COMPLETE").source())
