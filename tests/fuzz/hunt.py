"""Looks for a graph on which a mutant of a pass is wrong where the pass is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from opgraft.ir.inputs import InputCase

from fuzz.batch import Job
from fuzz.examine import CRASHED, FAILED, RIGHT, Examiner, Truths
from fuzz.generate import generate
from fuzz.mutants import Mutant, install
from fuzz.pipelines import choose
from fuzz.session import InProcess
from fuzz.workers import Row, Tell, run_jobs

# Long for a graph, short for a mutant that never ends.
_TIME_LIMIT_S = 10.0
_FIRST_SEED = 1_000_000
"""Seeds of no other evidence: what is found is no memory of what was once mended."""
N_COMPARED = 100
"""Graphs after which it is asked whether the pass as it is fires more often; if so, no more are tried."""
_BLOCK = 25


@dataclass(frozen=True)
class Hunt:
    mutant: Mutant
    n_graphs: int


@dataclass(frozen=True)
class Known:
    """A graph that the pass as it is leaves right: what it computes, and how often the pass fires."""

    seed: int
    original: bytes
    pipelines: tuple[str, ...]
    truths: Truths
    firings: int


@dataclass
class _Graphs:
    """The graphs around one pass that are known so far."""

    pass_name: str = ""
    n_drawn: int = 0
    found: list[Known] = field(default_factory=list)

    def up_to(self, pass_name: str, number: int) -> list[Known]:
        """Those among the first `number` graphs around the pass."""
        if pass_name != self.pass_name:
            self.pass_name, self.n_drawn, self.found = pass_name, 0, []
        jobs = [(_FIRST_SEED + i, pass_name) for i in range(self.n_drawn, number)]
        for row in run_jobs(_know, jobs, time_limit_s=_TIME_LIMIT_S):
            if row["outcome"] in RIGHT:
                self.found.append(row["known"])
        self.n_drawn = max(self.n_drawn, number)
        return [k for k in self.found if k.seed < _FIRST_SEED + number]


_GRAPHS = _Graphs()


def hunt(question: Hunt, tell: Tell) -> Row:
    """`outcome` is found, fires less, or survived. In a child of this child the mutant takes the pass's place."""
    name = question.mutant.pass_name
    fires_less = False
    for row in run_jobs(_examiner(question.mutant), _known(name, question.n_graphs), time_limit_s=_TIME_LIMIT_S):
        known: Known = row["job"]
        number = known.seed - _FIRST_SEED + 1
        tell(f"graph {number}")
        if row["outcome"] in (FAILED, CRASHED, "fuzzer failed"):
            return {"outcome": "found", "graphs": number, "seed": known.seed, "detail": row["detail"].strip()[-200:]}
        fires_less = fires_less or (row["outcome"] in RIGHT and row.get("firings", {}).get(name, 0) < known.firings)
        if fires_less and number >= N_COMPARED:
            return {"outcome": "fires less", "graphs": number}
    return {"outcome": "fires less" if fires_less else "survived", "graphs": question.n_graphs}


def _known(pass_name: str, n_graphs: int) -> Iterator[Known]:
    """The graphs, drawn in blocks as they are asked for."""
    for start in range(0, n_graphs, _BLOCK):
        number = min(start + _BLOCK, n_graphs)
        yield from (k for k in _GRAPHS.up_to(pass_name, number) if k.seed >= _FIRST_SEED + start)


def _know(job: Job, tell: Tell) -> Row:
    """In a child: what the pass as it is makes of a graph."""
    runner = InProcess()
    tell("generation")
    graph = generate(job[0], runner, job[1])
    pipelines, original = choose(graph), graph.model.SerializeToString()
    examiner = Examiner(runner, tell)
    cases = [InputCase(name, feed) for name, feed in zip(graph.labels, graph.feeds, strict=True)]
    truths, _ = examiner.run_original(original, cases)
    if not truths:
        return {"outcome": "not run"}
    row = examiner.compare_with(original, truths, pipelines)
    firings = row.get("firings", {}).get(job[1], 0)
    return row | {"known": Known(job[0], original, pipelines, truths, firings)}


def _examiner(mutant: Mutant) -> Callable[[Any, Tell], Row]:
    """Examines graphs with the mutant in the place of the pass, from the first one in a process on."""
    is_installed = False

    def examine(known: Known, tell: Tell) -> Row:
        nonlocal is_installed
        if not is_installed:
            install(mutant)
            is_installed = True
        return Examiner(InProcess(), tell).compare_with(known.original, known.truths, known.pipelines)

    return examine
