"""`optimize MODEL`: the whole path on one model."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from opgraft.cli.decisions import Decisions
    from opgraft.cli.driver import Result
    from opgraft.cli.options import Options

_FILE = click.Path(path_type=Path)


@click.command("optimize")
@click.argument("model", type=_FILE)
@click.option("-o", "--output", type=_FILE, help="Where to write; default MODEL.opt.onnx.")
@click.option("--force", is_flag=True, help="Overwrite what exists (never the input).")
@click.option("--passes", default=None, help="A pipeline, e.g. 'simplify, upgrade-opset{version=21}'.")
@click.option("--target", default="cpu", show_default=True, help="See `optimize targets`.")
@click.option("--opset", type=int, default=None, help="Convert the result to this operator set.")
@click.option(
    "--verify",
    type=click.Choice(["off", "final", "each"]),
    default="final",
    show_default=True,
    help="At the end, or after each stage as well.",
)
@click.option("--inputs", type=_FILE, multiple=True, metavar="FILE.npz", help="Verify and measure with these too.")
@click.option("--measure/--no-measure", default=True, show_default=True, help="Keep only what is not slower.")
@click.option("--decisions", type=_FILE, help="Replay this decisions file, or write it when it does not exist.")
@click.option("--export", "export", type=click.Choice(["mobile"]), help="Also write a bundle beside the output.")
@click.option("--allow-unverified", is_flag=True, help="Keep rewrites that nothing could verify.")
@click.option("--dry-run", is_flag=True, help="Do everything but write models and decisions.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--report", type=_FILE, help="Also write the report as JSON to this file.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--cache/--no-cache", default=True, show_default=True, help="Use the user cache folder.")
@click.option("--print-after", metavar="PASS", help="Print the graph before and after a stage ('all': each).")
@click.option("--dump", type=_FILE, metavar="FOLDER", help="Write the graph after each stage into this folder.")
@click.option("--stop-after", metavar="PASS", help="Leave out the stages after the one that holds this pass.")
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

    destination = output if output is not None else default_output(model)
    decisions = _replayed(arguments["decisions"])
    options = _options(arguments, decisions)
    if arguments["decisions"] is not None and options.is_rewrite_only:
        from opgraft.ir.errors import UsageError

        raise UsageError("without verification and measurement nothing is decided", remedy="leave out --decisions")
    _check_side_files(model, destination, arguments, is_replay=decisions is not None)
    is_silent = arguments["quiet"] or arguments["as_json"]
    result = optimize(model, destination, options=options, progress=_progress(is_silent))
    if arguments["decisions"] is not None and decisions is None and not options.dry_run:
        _write_decisions(arguments["decisions"], result)
    if arguments["export"] == "mobile" and not options.dry_run:
        _export_mobile(destination, arguments["force"], result)
    if arguments["report"] is not None:
        _write_text(arguments["report"], json.dumps(result.report.to_json(), indent=2) + "\n")
    _print(result, arguments)
    return _exit_code(result, options)


def _exit_code(result: Result, options: Options) -> int:
    from opgraft.cli.main import EXIT_REFUTED, EXIT_UNVERIFIED

    if result.report.outcome == "unverified" and options.verify != "off" and not options.allow_unverified:
        return EXIT_UNVERIFIED
    return EXIT_REFUTED if result.report.refuted else 0


def _replayed(path: Path | None) -> Decisions | None:
    if path is None or not path.exists():
        return None
    from opgraft.cli.decisions import Decisions

    return Decisions.read(path)


def _options(arguments: dict[str, Any], decisions: Decisions | None) -> Options:
    from opgraft.cli.options import DEFAULT_PIPELINE, Options

    memory = arguments["memory_limit"]
    inputs = []
    if arguments["inputs"]:
        from opgraft.cli.given_inputs import read_inputs

        inputs = [read_inputs(path) for path in arguments["inputs"]]
    passes = arguments["passes"] or DEFAULT_PIPELINE
    return Options(
        passes=passes,
        opset=arguments["opset"],
        target=arguments["target"],
        verify=arguments["verify"],
        measure=arguments["measure"],
        force=arguments["force"],
        dry_run=arguments["dry_run"],
        allow_unverified=arguments["allow_unverified"],
        decisions=decisions,
        use_cache=arguments["cache"],
        instruments=_instruments(arguments, decisions.pipeline if decisions is not None else passes),
        stop_after=arguments["stop_after"],
        inputs=inputs,
        time_limit_s=arguments["time_limit"],
        memory_limit_bytes=int(memory * (1 << 30)) if memory is not None else None,
    )


def _check_side_files(model: Path, destination: Path, arguments: dict[str, Any], *, is_replay: bool) -> None:
    """Files beside the output are checked before the work begins. Raises OutputError."""
    from opgraft.ir.destination import check_output
    from opgraft.ir.errors import OutputError

    force, report, decisions = arguments["force"], arguments["report"], arguments["decisions"]
    source = model if os.path.exists(model) else None
    if report is not None:
        check_output(report, source, force=force)
    if decisions is not None and not is_replay:
        check_output(decisions, source, force=force)
    places = [p.absolute() for p in (destination, report, decisions) if p is not None]
    if len(set(places)) != len(places):
        raise OutputError("two outputs have one name", where=str(places[-1]), remedy="choose another name")
    if arguments["export"] == "mobile" and not arguments["dry_run"]:
        folder = mobile_folder(destination)
        if folder.exists() and not force:
            raise OutputError("the output exists", where=str(folder), remedy="--force overwrites it")


def mobile_folder(destination: Path) -> Path:
    return destination.with_suffix(".mobile")


def _write_decisions(path: Path, result: Result) -> None:
    if result.decisions is not None:
        _write_text(path, json.dumps(result.decisions.to_json(), indent=2) + "\n")


def _instruments(arguments: dict[str, Any], passes: str) -> list[Any]:
    wanted: list[Any] = []
    if arguments["print_after"]:
        from opgraft.passes._instruments import PrintGraph

        name = arguments["print_after"]
        wanted.append(PrintGraph(only="" if name == "all" else _stage_name(passes, name)))
    if arguments["dump"]:
        from opgraft.passes._instruments import Dump

        wanted.append(Dump(arguments["dump"]))
    return wanted


def _stage_name(passes: str, pass_name: str) -> str:
    """The stage that is, or holds, a pass. Raises UsageError."""
    from opgraft.cli.choose_pipeline import find_stage
    from opgraft.passes._pipeline import Pipeline

    stages = Pipeline.parse(passes).stages
    return stages[find_stage(stages, pass_name)].name


def _progress(is_silent: bool) -> Any:
    """A spinner on a terminal; nothing in a pipe."""
    if is_silent or not sys.stderr.isatty():
        return None
    from rich.console import Console

    console = Console(stderr=True)

    def step(name: str) -> AbstractContextManager[Any]:
        return console.status(name)

    return step


def _write_text(path: Path, text: str) -> None:
    from opgraft.ir.destination import write_text

    write_text(path, text)


def _export_mobile(destination: Path, force: bool, result: Result) -> None:
    from opgraft.backends.mobile.export import export_mobile

    bundle = export_mobile(destination, mobile_folder(destination), force=force)
    result.report.notes.append(f"mobile bundle: {bundle.folder}")


def _print(result: Result, arguments: dict[str, Any]) -> None:
    if arguments["as_json"]:
        click.echo(json.dumps(result.report.to_json(), indent=2))
    elif not arguments["quiet"]:
        from opgraft.cli.summary import print_summary

        print_summary(result.report)
