"""What a child does with one graph, and with one failure."""

from __future__ import annotations

import re

import onnx
import onnx.printer
from onnx import ModelProto
from opgraft.ir.inputs import InputCase

from fuzz.examine import CRASHED, FAILED, Examiner
from fuzz.generate import generate
from fuzz.pipelines import choose
from fuzz.session import Feed, InProcess
from fuzz.shrink import shrink
from fuzz.workers import Row, Tell, run_jobs

Job = tuple[int, str]
"""A seed, and the pass that the graph is built around ("": none)."""


def examine_job(job: Job, tell: Tell) -> Row:
    """Generate and examine one graph."""
    runner = InProcess()
    tell("generation")
    graph = generate(job[0], runner, job[1])
    pipelines = choose(graph)
    row = Examiner(runner, tell).examine(graph, pipelines)
    opset = next(o.version for o in graph.model.opset_import if o.domain == "")
    counts = {
        "operators": graph.operators,
        "dtypes": graph.dtypes,
        "ranks": {str(k): n for k, n in graph.ranks.items()},
    }
    return {**row, "pipelines": pipelines, "opset": opset, "nodes": len(graph.model.graph.node), **counts}


def outcome_of(row: Row) -> Row:
    """The row as it is kept: what the runtime itself did not survive is no failure of ours."""
    if row["outcome"] == CRASHED and row.get("stage") in ("", "generation", "original"):
        return row | {"outcome": "not survived by the runtime"}
    return row


def shrunk(subject: tuple[Job, str], tell: Tell) -> Row:
    """The text of the smallest part of a failing graph that fails in the same way."""
    job, detail = subject
    runner = InProcess()
    graph = generate(job[0], runner, job[1])
    pipelines, kind = choose(graph), failure_kind(detail)

    def fails(model: ModelProto, feeds: list[Feed]) -> bool:
        question = (model.SerializeToString(), feeds, pipelines)
        row = next(run_jobs(_compare, [question], time_limit_s=20))
        return row["outcome"] in (FAILED, CRASHED) and failure_kind(row.get("detail", "")) == kind

    model, feeds = shrink(graph.model, graph.feeds, fails, runner)
    lines = [onnx.printer.to_text(model), "# fed:"]
    lines += [f"# {name} = {value.tolist()} {value.dtype}" for name, value in feeds[0].items()]
    return {"outcome": "shrunk", "text": "\n".join(lines)}


def _compare(question: tuple[bytes, list[Feed], tuple[str, ...]], tell: Tell) -> Row:
    original, feeds, pipelines = question
    cases = [InputCase(f"random, binding {i}", feed) for i, feed in enumerate(feeds)]
    return Examiner(InProcess(), tell).compare(original, cases, pipelines)


def failure_kind(detail: str) -> str:
    """What is the same about a failure when names, numbers and inputs differ."""
    last = detail.strip().splitlines()[-1] if detail.strip() else ""
    if "result does not" in last:
        return re.sub(r"[^a-zA-Z ]|\bn\d+", "", last.partition("ONNX Runtime")[2])[:60]
    return re.split("[,:]", last)[0]
