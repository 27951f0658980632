"""`optimize MODEL`: the whole path on one model."""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opgraft.cli.driver import Options, Result


@click.command("optimize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write; default MODEL.opt.onnx.")
@click.option("--force", is_flag=True, help="Overwrite an existing output (never the input).")
@click.option("--passes", default=None, help="A pipeline, e.g. 'simplify, upgrade-opset{version=21}'.")
@click.option("--target", default="cpu", show_default=True, help="See `optimize targets`.")
@click.option("--opset", type=int, default=None, help="Convert the result to this operator set.")
@click.option(
    "--verify", type=click.Choice(["off", "final", "each"]), default="final", show_default=True, help="When to verify."
)
@click.option("--measure/--no-measure", default=True, show_default=True, help="Keep only what is not slower.")
@click.option(
    "--decisions",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Replay this decisions file, or write it when it does not exist.",
)
@click.option("--export", "export", type=click.Choice(["mobile"]), help="Also write a bundle beside the output.")
@click.option("--allow-unverified", is_flag=True, help="Keep rewrites that nothing could verify.")
@click.option("--dry-run", is_flag=True, help="Do everything but write.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--report", type=click.Path(path_type=Path), help="Also write the report as JSON to this file.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Use the user cache folder for probes.")
@click.option(
    "--print-after", default=None, metavar="STAGE", help="Print the graph after a stage ('all': wherever it changed)."
)
@click.option("--dump", type=click.Path(path_type=Path), help="Write the graph after each stage into this folder.")
@click.option("--stop-after", default=None, metavar="STAGE", help="Stop the pipeline after this stage.")
@click.option("--time-limit", type=float, default=300.0, show_default=True, help="Seconds for one run in the runtime.")
@click.option("--memory-limit", type=float, default=None, metavar="GIB", help="Memory for the runtime's processes.")
def command(**arguments: Any) -> int:
    """Optimize MODEL: rewrite, verify, measure, write.

    The input is never touched. Exit code 7: a rewrite was refuted and taken back; 8: not verified.
    """
    return run(**arguments)


def default_output(model: Path) -> Path:
    if not model.name:
        from opgraft.ir.errors import InputError

        raise InputError("this is a folder", where=str(model), remedy="name the .onnx file in it")
    return model.with_name(f"{model.stem}.opt.onnx")


def run(model: Path, output: Path | None, **arguments: Any) -> int:
    from opgraft.cli.driver import optimize
    from opgraft.cli.main import EXIT_REFUTED, EXIT_UNVERIFIED

    options = _options(arguments)
    destination = output if output is not None else default_output(model)
    decisions_file: Path | None = arguments["decisions"]
    quiet = arguments["quiet"] or arguments["as_json"]
    result = optimize(model, destination, options=options, progress=_progress(quiet))
    if decisions_file is not None and options.decisions is None and not options.dry_run:
        _write_text(decisions_file, json.dumps(result.decisions.to_json(), indent=2) + "\n")
    if arguments["export"] == "mobile" and not options.dry_run:
        _export_mobile(destination, arguments["force"], result)
    if arguments["report"] is not None:
        _write_text(arguments["report"], json.dumps(result.report.to_json(), indent=2) + "\n")
    _print(result, arguments)
    if result.report.refuted:
        return EXIT_REFUTED
    if options.verify != "off" and result.report.outcome == "unverified":
        return EXIT_UNVERIFIED
    return 0


def _options(arguments: dict[str, Any]) -> Options:
    from opgraft.cli.decisions import Decisions
    from opgraft.cli.driver import DEFAULT_PIPELINE, Options
    from opgraft.ir.errors import UsageError

    decisions_file: Path | None = arguments["decisions"]
    replayed = Decisions.read(decisions_file) if decisions_file is not None and decisions_file.exists() else None
    if replayed is not None and (arguments["passes"] is not None or arguments["opset"] is not None):
        raise UsageError("--decisions replays its own pipeline", remedy="leave out --passes and --opset")
    passes = arguments["passes"] or DEFAULT_PIPELINE
    if arguments["opset"] is not None:
        passes = f"{passes}, upgrade-opset{{version={arguments['opset']}}}"
    memory = arguments["memory_limit"]
    return Options(
        passes=passes,
        target=arguments["target"],
        verify=arguments["verify"],
        measure=arguments["measure"],
        force=arguments["force"],
        dry_run=arguments["dry_run"],
        allow_unverified=arguments["allow_unverified"],
        decisions=replayed,
        use_cache=arguments["cache"],
        instruments=_instruments(arguments),
        time_limit_s=arguments["time_limit"],
        memory_limit_bytes=int(memory * (1 << 30)) if memory is not None else None,
    )


def _instruments(arguments: dict[str, Any]) -> list[Any]:
    wanted = []
    if arguments["print_after"]:
        from opgraft.passes._instruments import PrintGraph

        stage = arguments["print_after"]
        wanted.append(PrintGraph(None if stage == "all" else stage))
    if arguments["dump"]:
        from opgraft.passes._instruments import Dump

        wanted.append(Dump(arguments["dump"]))
    if arguments["stop_after"]:
        from opgraft.passes._instruments import StopAfter

        wanted.append(StopAfter(arguments["stop_after"]))
    return wanted


def _progress(quiet: bool) -> Any:
    """A spinner on a terminal; nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)

    def step(name: str) -> AbstractContextManager[Any]:
        return console.status(name)

    return step


def _write_text(path: Path, text: str) -> None:
    from opgraft.ir.save import write_text

    write_text(path, text)


def _export_mobile(destination: Path, force: bool, result: Result) -> None:
    from opgraft.backends.mobile.export import export_mobile

    folder = destination.with_suffix(".mobile")
    bundle = export_mobile(destination, folder, force=force)
    result.report.notes.append(f"mobile bundle: {folder} ({len(bundle.files)} files)")


def _print(result: Result, arguments: dict[str, Any]) -> None:
    if arguments["as_json"]:
        click.echo(json.dumps(result.report.to_json(), indent=2))
    elif not arguments["quiet"]:
        from opgraft.cli.summary import print_summary

        print_summary(result.report)
