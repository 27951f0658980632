"""Every ONNX backend test that the runtime passes, in five forms, through the lossless pipeline.

    python tests/evidence_backend.py [--limit N] [--jobs 2] [--output evidence/backend.jsonl] [--no-light]

One JSON row per (source, test, form); rows that exist for the same versions and sources are kept, so an interrupted
run continues. A second source are the models of the goldens, drawn from several seeds, so that passes for whose
patterns no backend test exists fire as well. The table `docs/evidence_backend.md` is written from the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import random
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.passes._pipeline import Pipeline
from opgraft.passes._registry import builtin_modules, pass_class

sys.path.insert(0, str(Path(__file__).parent))
from backend_forms import FORMS, Case, Feed, is_random, load_cases, nodes_of, required_inputs
from backend_harness import FAILED, PASSED, Harness
from golden import STYLES, Golden, draw_inputs, parse_model, read_goldens
from golden_mutations import declare_shapes, mutate

ROOT = Path(__file__).resolve().parent.parent
TESTS, ON_DEMAND, GOLDENS = "backend tests", "backend tests, passes on demand", "goldens"
MIN_FIRINGS = 20
FIRST_MUTANT = 4
N_SEEDS = 16
"""Each seed draws weights and inputs anew, in another style: ordinary, signed zeros, extreme, not finite. From
`FIRST_MUTANT` on it changes the model as well."""
NOT_COMPOSABLE = frozenset({"upgrade-opset"})
"""Passes on demand with evidence of their own; here they run on their goldens only."""


@cache
def versions() -> str:
    """What a row is valid for: the passes, and what they import."""
    for name in builtin_modules():
        pass_class(name)
    imported = {Path(m.__file__) for n, m in list(sys.modules.items()) if n.startswith("opgraft.ir.") and m.__file__}
    digest = hashlib.sha256()
    for file in sorted({p.resolve() for p in (*imported, *(ROOT / "passes").rglob("*.py"))}):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime")]
    return f"{', '.join(packages)}, source {digest.hexdigest()[:8]}"


@cache
def passes_on_demand() -> tuple[str, ...]:
    """The built-in passes that the lossless pipeline leaves out."""
    listed = {p.name for p in Pipeline.parse("optimize").passes}
    return tuple(n for n in builtin_modules() if n not in listed and n not in NOT_COMPOSABLE)


# -- jobs ------------------------------------------------------------------------------------------------------------

Job = tuple[str, Any]
"""A source, and a case or a (golden, seed)."""


def jobs(light: bool) -> list[Job]:
    found: list[Job] = [(TESTS, case) for case in load_cases(light=light)]
    for file in sorted((ROOT / "tests" / "goldens").glob("*.txt")):
        found += [(GOLDENS, (golden, seed)) for golden in read_goldens(file) for seed in range(N_SEEDS)]
    return found


def job_name(job: Job) -> str:
    source, subject = job
    return subject.name if source == TESTS else f"{subject[0].label}, {subject[0].kind}, seed {subject[1]}"


def examine(harness: Harness, job: Job) -> list[dict[str, Any]]:
    """The rows of one job."""
    source, subject = job
    if source == GOLDENS:
        case = golden_case(harness, *subject)
        if case is None:
            return [{"source": source, "test": job_name(job), "form": "as is", "outcome": "no inputs"}]
        # A mutant runs as it is and in one of the other forms. Those have no initializers that callers override.
        forms = list(FORMS) if subject[1] < FIRST_MUTANT else ["as is", list(FORMS)[1 + subject[1] % 4]]
        forms = forms if len(required_inputs(case.model)) == len(case.model.graph.input) else forms[:1]
        job_of = {"job": job_name(job)} if case.name != job_name(job) else {}
        return [{"source": source} | job_of | harness.examine(case, form) for form in forms]
    if not harness.passes(subject):
        return [{"source": source, "test": subject.name, "form": "as is", "outcome": "not passed"}]
    rows = []
    for form in FORMS:
        rows.append({"source": source} | harness.examine(subject, form))
        rows += _on_demand(harness, subject, form)
    return rows


def _on_demand(harness: Harness, case: Case, form: str) -> Iterator[dict[str, Any]]:
    """The same with the other passes in front, where one of them applies."""
    pipelines = (*passes_on_demand(), "optimize")
    if len(pipelines) == 1 or case.kind == "light":
        return
    try:
        model = FORMS[form](case).model.SerializeToString()
        _, context = harness.run_pipeline(model, passes_on_demand())
        if not context.rewrites:
            return
    except Exception:  # noqa: BLE001 - the full run below, or the row of the ordinary pipeline, says what is wrong
        pass
    special = Case(case.name, case.kind, case.model, case.feeds, case.expected, case.rtol, case.atol, pipelines)
    yield {"source": ON_DEMAND} | harness.examine(special, form)


def golden_case(harness: Harness, golden: Golden, seed: int) -> Case | None:
    """A golden's model with drawn weights, and the drawn inputs that it takes; a mutant from `FIRST_MUTANT` on."""
    model = parse_model(golden.sections["before"], seed)
    style = STYLES[seed % len(STYLES)]
    name = job_name((GOLDENS, (golden, seed)))
    given: Feed = {}
    program, fixed = capture_onnx(model), golden.sections.get("inputs", "")
    drawn = list(draw_inputs(program, fixed, seed))
    if seed >= FIRST_MUTANT:
        rng = np.random.default_rng([seed, zlib.crc32(golden.label.encode())])
        model, given, mutations = mutate(model, rng)
        name = f"{name}: {mutations}"
    if any(is_random(node) for node in nodes_of(model)):
        return None
    inputs = {v.name for v in model.graph.input}
    data = model.SerializeToString()
    accepted = harness.accepted(data, [_given(feed, inputs, given) for label, feed in drawn if f" {style}," in label])
    if not accepted:
        return None
    # Its own error is estimated on many inputs of ordinary magnitude: few numbers are a poor estimate.
    more = [pair for other in range(seed + 100, seed + 103) for pair in draw_inputs(program, fixed, other)]
    keep_extreme = style == "extreme"
    ordinary = [_given(f, inputs, given) for label, f in [*drawn, *more] if keep_extreme or " extreme," not in label]
    is_fixed = len(required_inputs(model)) == len(model.graph.input)
    if seed >= FIRST_MUTANT and seed % 3 and is_fixed:  # inference takes initializers that callers override as they are
        model = declare_shapes(model)
    # With the golden's own pass first, or as users have it.
    pipelines = (golden.pipeline, "optimize") if seed < FIRST_MUTANT or seed % 2 else ("optimize",)
    return Case(name, golden.kind, model, accepted, pipelines=pipelines, error_feeds=ordinary)


def _given(feed: Feed, inputs: set[str], given: Feed) -> Feed:
    return {name: value for name, value in feed.items() if name in inputs} | given


# -- rows ------------------------------------------------------------------------------------------------------------

_JOBS: list[Job] = []


def _work(numbers: list[int]) -> list[dict[str, Any]]:
    """Rows of some jobs, in a process of its own."""
    warnings.simplefilter("ignore")
    with Harness() as harness, np.errstate(all="ignore"):
        return [row for n in numbers for row in examine(harness, _JOBS[n])]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the present versions."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if r["versions"] == versions()]


def _line(row: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if v not in ("", {}, False)}, separators=(",", ":"))


def run(path: Path, *, limit: int | None, n_jobs: int, light: bool) -> list[dict[str, Any]]:
    """Do every job whose rows are missing; return all rows."""
    rows = read_rows(path)
    done = {(r["source"], r.get("job", r["test"])) for r in rows}
    for name in builtin_modules():
        pass_class(name)  # all sources are read now, before the workers part
    found = jobs(light)
    if limit is not None:
        found = random.Random(0).sample(found, min(limit, len(found)))
    _JOBS[:] = [job for job in found if (job[0], job_name(job)) not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the rows of other versions: the file holds one state.
    path.write_text("".join(_line(r) + "\n" for r in rows))
    batches = [list(range(i, min(i + 25, len(_JOBS)))) for i in range(0, len(_JOBS), 25)]
    with path.open("a") as sink, multiprocessing.get_context("fork").Pool(n_jobs) as pool:
        for number, batch in enumerate(pool.imap_unordered(_work, batches), 1):
            for row in batch:
                row["versions"] = versions()
                rows.append(row)
                print(_line(row), file=sink, flush=True)
                if row["outcome"] == FAILED:
                    print("FAILED", row["source"], row["test"], row["form"], row["detail"], flush=True)
            print(f"\r{number}/{len(batches)} batches", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


# -- table -----------------------------------------------------------------------------------------------------------


def firings(rows: list[dict[str, Any]], sources: tuple[str, ...]) -> Counter[str]:
    """Rewrites per pass, counted in rows that were proven right."""
    total: Counter[str] = Counter()
    for row in rows:
        if row["source"] in sources and row["outcome"] in PASSED:
            total.update(row.get("firings", {}))
    return total


def too_few(rows: list[dict[str, Any]]) -> list[str]:
    total = firings(rows, (TESTS, ON_DEMAND, GOLDENS))
    return [name for name in builtin_modules() if total[name] < MIN_FIRINGS]


def table(rows: list[dict[str, Any]]) -> str:
    """The document, from the rows alone."""
    tests = {r["test"] for r in rows if r["source"] == TESTS}
    absent = {r["test"] for r in rows if r["outcome"] == "not passed"}
    goldens = {r["test"] for r in rows if r["source"] == GOLDENS and r["outcome"] in (*PASSED, FAILED)}
    failures = [r for r in rows if r["outcome"] == FAILED]
    lines = [
        "# ONNX backend tests through the lossless pipeline",
        "",
        "Written by `make evidence-backend` from `evidence/backend.jsonl`.",
        f"Versions: {versions()}.",
        "",
        f"- Tests in the onnx package: {len(tests)}; passed by the runtime with its optimizations off, and therefore",
        f"  taken: {len(tests) - len(absent)}.",
        f"- Models from the goldens of the passes, with drawn weights and inputs: {len(goldens)}, most of them with",
        "  changed attributes, constants, operands or interfaces (tests/golden_mutations.py).",
        "",
        "Each runs in five forms (a mutant as it is and in one other), before and after, on the recorded or drawn",
        "inputs and on inputs with signed zeros, NaN and infinities. Exact passes keep every bit. Where a numeric pass",
        "fires, the error is within four times the original's own float32 error and one unit in the last place of its",
        "largest number, and the exact passes alone keep every bit.",
        "",
        f"**{len(failures)} failures.**",
        "",
    ]
    for source in (TESTS, ON_DEMAND, GOLDENS):
        lines += _forms_table(source, [r for r in rows if r["source"] == source])
    lines += _passes_table(rows)
    lines += ["", "## Not run", ""]
    reasons = Counter(_reason(r) for r in rows if r["outcome"] in ("not run", "not applicable"))
    lines += [f"- {count} x {reason}" for reason, count in reasons.most_common()]
    lines += [f"- FAILED {r['source']}: {r['test']}, {r['form']}: {r['detail']}" for r in failures]
    return "\n".join(lines) + "\n"


def _forms_table(source: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"## {source[0].upper()}{source[1:]}", ""]
    lines += ["| form | models | changed | same bits | within tolerance | failed | runs |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|"]
    for form in FORMS:
        chosen = [r for r in rows if r["form"] == form and r["outcome"] in (*PASSED, FAILED)]
        counts = Counter(r["outcome"] for r in chosen)
        changed = sum(bool(r.get("changed")) for r in chosen)
        feeds = sum(r.get("feeds", 0) for r in chosen)
        cells = (form, len(chosen), changed, *(counts[o] for o in (*PASSED, FAILED)), feeds)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    loaded = sum(bool(r.get("loaded_optimized")) for r in rows)
    return [*lines, "", f"{loaded} changed models, a sample, also loaded and ran with the runtime's optimizations.", ""]


def _passes_table(rows: list[dict[str, Any]]) -> list[str]:
    columns = [firings(rows, (TESTS,)), firings(rows, (ON_DEMAND,)), firings(rows, (GOLDENS,))]
    lines = ["## Firings per pass", "", "| pass | backend tests | on demand | goldens |", "|---|--:|--:|--:|"]
    lines += [f"| {name} | {' | '.join(str(c[name]) for c in columns)} |" for name in builtin_modules()]
    return lines


def _reason(row: dict[str, Any]) -> str:
    text = row["detail"].partition("ONNX Runtime rejects it: ")[2] or row["detail"]
    for phrase in ("Could not find an implementation for", "of operator (Body)"):
        if phrase in text:
            return f"{row['form']}: the runtime lacks this element type in the operators around the test"
    return f"{row['form']}: {text[:160]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="a seeded sample of so many models")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "evidence" / "backend.jsonl")
    parser.add_argument("--no-light", action="store_true", help="without the real architectures")
    arguments = parser.parse_args()
    rows = run(arguments.output, limit=arguments.limit, n_jobs=arguments.jobs, light=not arguments.no_light)
    text = table(rows)
    if arguments.limit is None:
        document = ROOT / "docs" / "evidence_backend.md"
        document.parent.mkdir(exist_ok=True)
        document.write_text(text)
    print(text)
    few = too_few(rows)
    if few:
        print(f"fewer than {MIN_FIRINGS} firings: {', '.join(few)}")
    return 1 if few or any(r["outcome"] == FAILED for r in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
