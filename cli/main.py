"""The commands `optimize` and `opgraft`: parse first, import rooms later, one line per error.

Exit codes:
  0    done: verified and written; also with `--verify off`, and with `--allow-unverified` whatever the evidence
  1    a bug of opgraft, with a traceback or asking for a report
  2    wrong usage: an unknown option, pass or target, or decisions of another model
  3    bad input: a model or data file that is missing, invalid or hostile
  4    the output cannot be written, or exists
  5    an optional package is missing
  6    the runtime rejected or did not survive the model where an answer needs it (bench, mobile), or memory ran out
  7    a rewrite was refuted and taken back, the rest is verified and written; `verify`: the models differ
  8    not verified: written unchanged, or as far as local evidence goes; `verify`: it could not be found out
  130  interrupted; 143 terminated
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click
from opgraft.cli.defer_sympy import defer_sympy

# Subcommand -> module; each holds a click command named `command`.
SUBCOMMANDS = {
    "optimize": ("opgraft.cli.optimize", "Optimize a model (the default command)."),
    "inspect": ("opgraft.cli.inspect", "Show what a model is made of and what it costs."),
    "explain": ("opgraft.cli.explain", "Say why a pass does or does not apply."),
    "verify": ("opgraft.cli.verify", "Compare two models on generated inputs."),
    "bench": ("opgraft.cli.bench", "Measure two models against each other."),
    "passes": ("opgraft.cli.passes", "List the passes and pipelines."),
    "targets": ("opgraft.cli.targets", "List the targets."),
    "completion": ("opgraft.cli.completion", "Print a shell completion script."),
}
EXIT_REFUTED = 7
EXIT_UNVERIFIED = 8


class LazyGroup(click.Group):
    """Imports a subcommand when it is called; a first word that is no subcommand is a model to optimize."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command: click.Command = import_module(SUBCOMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in SUBCOMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Subcommands, and files: the first word may be a model."""
        from click.shell_completion import CompletionItem

        items = [CompletionItem(n, help=text) for n, (_, text) in SUBCOMMANDS.items() if n.startswith(incomplete)]
        return [*items, CompletionItem(incomplete, type="file")]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in SUBCOMMANDS and args[0] not in ("--help", "-h", "--version"):
            args = ["optimize", *args]
        return super().parse_args(ctx, args)


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from opgraft import __version__

        click.echo(f"opgraft {__version__}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Make a neural network faster and smaller, and prove that it is still right.

    \b
      optimize model.onnx                  writes model.opt.onnx, verified and measured
      optimize model.onnx --export mobile  also writes a folder for mobile runtimes
      optimize explain model.onnx PASS     why a pass does not apply
    """


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with a documented code; `args` default to the process's own."""
    try:
        _run(args)
    except SystemExit as stop:
        if args is None:
            _leave(stop)
        raise


def _leave(stop: SystemExit) -> None:
    """End the process without taking the graph apart object by object: a tenth of the time of a large model."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return
    if isinstance(stop.code, int):
        os._exit(stop.code)


def _run(args: Sequence[str] | None) -> None:
    # A graph is one large cycle that lives to the end: looking for garbage in it at every 700 new objects takes a
    # third of the time of a 16,000-node model. Arrays are freed by their reference counts as ever.
    gc.set_threshold(500_000, 50, 50)
    defer_sympy()
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(args=list(args) if args is not None else None, standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours.
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:  # noqa: BLE001 - the last resort decides what is a bug
        _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(*_: object) -> None:
    # Unwinds the stack, so that temporary files and child processes go too.
    sys.exit(143)


def _report(error: Exception) -> None:
    from opgraft.ir.errors import OpgraftError

    if isinstance(error, OpgraftError):
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    if isinstance(error, MemoryError):
        click.echo("error: out of memory", err=True)
        sys.exit(6)
    if isinstance(error, OSError):
        click.echo(f"error: {error.filename or ''}: {error.strerror or error}", err=True)
        sys.exit(4)
    raise error


if __name__ == "__main__":
    main()
