"""A sample of `make evidence-fuzz` and `make evidence-mutants`; and that the fuzzer notices what it must notice."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from opgraft.passes._registry import builtin_modules, pass_class

sys.path.insert(0, str(Path(__file__).parent))
import onnx.parser
from evidence_fuzz import complaints, jobs, table
from evidence_mutants import equivalent
from fuzz.batch import Job, examine_job, outcome_of, shrunk
from fuzz.examine import CRASHED, FAILED, RIGHT
from fuzz.generate import generate
from fuzz.hunt import Hunt, hunt
from fuzz.mutants import mutants
from fuzz.session import InProcess
from fuzz.workers import Row, Tell, run_jobs

N_GRAPHS = 240


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found = []
    for row in run_jobs(examine_job, jobs(N_GRAPHS)):
        seed, focus = row.pop("job")
        found.append({"seed": seed, "focus": focus, **outcome_of(row)})
    return found


def test_random_graphs_keep_their_meaning(rows: list[Row]) -> None:
    wrong = [r for r in rows if r["outcome"] in (FAILED, CRASHED)]
    again = "again: python tests/evidence_fuzz.py --seed N --focus PASS"
    assert not wrong, f"{[(r['seed'], r['focus'], r['detail']) for r in wrong]}\n{again}"
    assert not any(r["outcome"] == "fuzzer failed" for r in rows)


def test_nearly_all_run(rows: list[Row]) -> None:
    counts = Counter(r["outcome"] for r in rows)
    assert sum(counts[o] for o in RIGHT) >= 0.95 * N_GRAPHS, counts


def test_what_the_graphs_hold(rows: list[Row]) -> None:
    operators, dtypes, ranks = Counter[str](), Counter[str](), Counter[str]()
    for row in rows:
        if row["outcome"] in RIGHT:
            operators.update(row["operators"])
            dtypes.update(row["dtypes"])
            ranks.update(row["ranks"])
    assert len(operators) >= 120
    assert {"If", "Loop", "Scan", "Einsum", "Resize", "LSTM", "QLinearConv", "SequenceAt"} <= set(operators)
    wanted = {"FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT32", "INT64", "BOOL", "STRING"}
    assert wanted <= set(dtypes)
    assert set("012345") <= set(ranks)
    assert {11, 21, 26} <= {r["opset"] for r in rows}


def _features(seed: int, tell: Tell) -> Row:
    """What one graph has, in a child: a mutant of a golden may bring the runtime down."""
    model = generate(seed, InProcess()).model
    graph = model.graph
    given, defaults = {v.name for v in graph.input}, {t.name for t in graph.initializer}
    read = {i for n in graph.node for i in n.input}
    dims = [d for v in graph.input for d in v.type.tensor_type.shape.dim]
    outputs = {v.name for v in graph.output}
    return {
        "outcome": "seen",
        "overridable": bool(given & defaults),
        "output is input": bool(given & outputs),
        "absent input": any("" in n.input for n in graph.node),
        "shared constant": any(sum(t.name in n.input for n in graph.node) > 1 for t in graph.initializer),
        "unused": any(not {*n.output} & {*read, *outputs} for n in graph.node),
        "function": bool(model.functions),
        "parameter": any(a.ref_attr_name for f in model.functions for n in f.node for a in n.attribute),
        "symbolic": any(d.dim_param for d in dims),
        "empty": any(d.HasField("dim_value") and d.dim_value == 0 for d in dims),
    }


def test_what_some_graph_has() -> None:
    seen = [row for row in run_jobs(_features, range(100)) if row["outcome"] == "seen"]
    never = [name for name in seen[0] if not any(row[name] for row in seen) and name != "job"]
    assert not never


def _digest(job: Job, tell: Tell) -> Row:
    graph = generate(job[0], InProcess(), job[1])
    feeds = [[v.tolist() for v in feed.values()] for feed in graph.feeds]
    return {"outcome": hashlib.sha256(graph.model.SerializeToString() + repr(feeds).encode()).hexdigest()}


def test_a_seed_always_draws_the_same() -> None:
    wanted = [(3, ""), (4, "fuse-clips"), (5, "inline-functions")]
    first, second = ([row["outcome"] for row in run_jobs(_digest, wanted)] for _ in range(2))
    assert first == second
    assert len(set(first)) == 3


def test_the_table_is_made_of_rows(rows: list[Row]) -> None:
    text = table(rows)
    assert f"- {N_GRAPHS} graphs" in text
    assert all(f"| {name} |" in text for name in builtin_modules())
    assert any("firings" in c for c in complaints(rows))  # a sample is no evidence


# -- the fuzzer notices ----------------------------------------------------------------------------------------------


def _with_a_wrong_pass(job: Job, tell: Tell) -> Row:
    pass_class("eliminate-identity").roots = ("Abs",)  # type: ignore[attr-defined]
    return examine_job(job, tell)


def _shrunk_with_a_wrong_pass(subject: tuple[Job, str], tell: Tell) -> Row:
    pass_class("eliminate-identity").roots = ("Abs",)  # type: ignore[attr-defined]
    return shrunk(subject, tell)


def test_a_wrong_pass_is_found_and_shrunk() -> None:
    wanted = [(seed, "eliminate-identity" if seed % 2 else "") for seed in range(60)]
    wrong = [r for r in run_jobs(_with_a_wrong_pass, wanted) if r["outcome"] == FAILED]
    assert wrong
    smallest = next(run_jobs(_shrunk_with_a_wrong_pass, [(wrong[0]["job"], wrong[0]["detail"])]))
    model = onnx.parser.parse_model("\n".join(x for x in smallest["text"].splitlines() if not x.startswith("#")))
    assert "Abs" in {n.op_type for n in model.graph.node}
    assert len(model.graph.node) <= 3


def _misbehaving(job: str, tell: Tell) -> Row:
    tell(job)
    if job == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if job == "hang":
        time.sleep(60)
    if job == "raise":
        raise ValueError("no")
    return {"outcome": "fine"}


def test_children_that_crash_or_hang_cost_one_job() -> None:
    names = ["a", "crash", "b", "hang", "raise", "c"]
    found: dict[str, Any] = {row["job"]: row for row in run_jobs(_misbehaving, names, 2, time_limit_s=2)}
    outcomes = {name: found[name]["outcome"] for name in names}
    fine = dict.fromkeys("abc", "fine")
    assert outcomes == {**fine, "crash": "crashed", "hang": "crashed", "raise": "fuzzer failed"}
    assert "SIGSEGV" in found["crash"]["detail"]
    assert found["crash"]["stage"] == "crash"


@pytest.mark.parametrize("name", sorted(builtin_modules()))
def test_every_pass_has_mutants(name: str) -> None:
    found = list(islice(mutants(name), 3))
    assert len({m.label for m in found}) >= 2  # of a pass of one line there are no more
    assert found == list(islice(mutants(name), 3))


def test_equivalent_mutants_exist() -> None:
    passes = {key.partition(":")[0] for key in equivalent()}
    keys = {mutant.key for name in passes for mutant in mutants(name)}
    assert not equivalent().keys() - keys


FOUND_SOON = ("compose-transposes", "eliminate-idempotent", "eliminate-nop-slice", "fuse-clips")


@pytest.mark.parametrize("name", FOUND_SOON)
def test_a_mutant_is_found(name: str) -> None:
    guards = [m for m in mutants(name) if m.kind in ("guard", "operands", "arms", "comparison", "number")]
    outcomes = []
    for mutant in guards[:4]:
        outcomes.append(next(run_jobs(hunt, [Hunt(mutant, 50)], time_limit_s=120))["outcome"])
        if outcomes[-1] == "found":
            return
    pytest.fail(f"none of {[m.label for m in guards[:4]]}: {outcomes}")
