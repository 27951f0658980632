"""`optimize passes`: what can be put into a pipeline."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click


@click.command("passes")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def command(as_json: bool) -> None:
    """List every pass with its equation, contract and options, and the named pipelines."""
    from opgraft.passes._pipeline import NAMED, Pipeline
    from opgraft.passes._registry import known_passes, pass_class

    rows: list[dict[str, Any]] = []
    for name in known_passes():
        cls = pass_class(name)
        options = {f.name.replace("_", "-"): f.default for f in dataclasses.fields(cls)}
        equation = (cls.__doc__ or "").strip().splitlines()[0]
        rows.append({"name": name, "equation": equation, "contract": cls.contract.value, "options": options})
    Pipeline.parse("simplify")
    pipelines = {name: [s.name for s in stages()] for name, stages in NAMED.items()}
    if as_json:
        click.echo(json.dumps({"passes": rows, "pipelines": pipelines}, indent=2, default=str))
        return
    width = max(len(str(r["name"])) for r in rows)
    for row in rows:
        click.echo(f"{row['name']:{width}}  {row['contract']:7}  {row['equation']}")
        for option, default in row["options"].items():
            click.echo(f"{'':{width}}           {option}={default}")
    for name in pipelines:
        click.echo(f"{name:{width}}  a pipeline of {len(pipelines[name])} stages")
