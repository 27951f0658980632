"""Looks for a graph on which a mutant of a pass is wrong where the pass is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fuzz.batch import Job, examine_job
from fuzz.examine import CRASHED, FAILED, RIGHT
from fuzz.mutants import Mutant, install
from fuzz.workers import Row, Tell, run_jobs

# Long for a graph, short for a mutant that never ends.
_TIME_LIMIT_S = 10.0
_FIRST_SEED = 1_000_000
"""Seeds of no other evidence: what is found is no memory of what was once mended."""
_N_COMPARED = 100
"""Graphs for which it is asked whether the pass as it is fires more often."""


@dataclass(frozen=True)
class Hunt:
    mutant: Mutant
    n_graphs: int


def hunt(question: Hunt, tell: Tell) -> Row:
    """`outcome` is found, fires less, or survived. In a child of this child the mutant takes the pass's place."""
    name = question.mutant.pass_name
    jobs = [(_FIRST_SEED + i, name) for i in range(question.n_graphs)]
    firings: dict[Job, int] = {}
    for number, row in enumerate(run_jobs(_examiner(question.mutant), jobs, time_limit_s=_TIME_LIMIT_S), 1):
        tell(f"graph {number}")
        job = row["job"]
        if row["outcome"] in RIGHT and number <= _N_COMPARED:
            firings[job] = row.get("firings", {}).get(name, 0)
        if row["outcome"] in (FAILED, CRASHED, "fuzzer failed") and _is_right(job):
            return {"outcome": "found", "graphs": number, "seed": job[0], "detail": row["detail"].strip()[-200:]}
    as_it_is = run_jobs(examine_job, list(firings), time_limit_s=_TIME_LIMIT_S)
    fires_less = any(row.get("firings", {}).get(name, 0) > firings[row["job"]] for row in as_it_is)
    return {"outcome": "fires less" if fires_less else "survived", "graphs": question.n_graphs}


def _is_right(job: Job) -> bool:
    """Whether the pass as it is leaves this graph right."""
    return next(run_jobs(examine_job, [job], time_limit_s=_TIME_LIMIT_S))["outcome"] in RIGHT


def _examiner(mutant: Mutant) -> Callable[[Job, Tell], Row]:
    """Examines graphs with the mutant in the place of the pass, from the first one in a process on."""
    is_installed = False

    def examine(job: Job, tell: Tell) -> Row:
        nonlocal is_installed
        if not is_installed:
            install(mutant)
            is_installed = True
        return examine_job(job, tell)

    return examine
