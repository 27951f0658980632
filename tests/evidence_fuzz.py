"""Random graphs through the lossless passes: the same bits, or the same numbers within the tolerance.

    python tests/evidence_fuzz.py [--graphs 10000] [--jobs 2] [--output evidence/fuzz.jsonl]
    python tests/evidence_fuzz.py --seed 4711              one graph: its text, and what became of it

One JSON row per graph; rows that exist for the same versions and sources are kept, so an interrupted run continues.
Every other graph is built around the goldens of one pass, in turns. A failure is shrunk to the nodes that it needs
and written as ONNX text into `evidence/fuzz_failures`. The table `docs/evidence_fuzz.md` is written from the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import onnx.printer
from opgraft.passes._registry import builtin_modules, pass_class

sys.path.insert(0, str(Path(__file__).parent))
from fuzz.batch import Job, examine_job, outcome_of, shrunk
from fuzz.examine import AMPLIFIED, CRASHED, FAILED, RIGHT, SAME, WITHIN
from fuzz.generate import generate
from fuzz.pipelines import choose
from fuzz.session import InProcess
from fuzz.workers import run_jobs

ROOT = Path(__file__).resolve().parent.parent
MIN_FIRINGS = 100
MIN_SHARE = 0.95
GENERATOR = ("tests/fuzz/*.py", "tests/golden.py", "tests/golden_mutations.py", "tests/backend_forms.py")
_SOURCES = ("ir/**/*.py", "passes/**/*.py", "tests/goldens/*.txt", *GENERATOR)
# How many turns a pass has where it asks for what is seldom drawn; one otherwise.
_TURNS = {"compose-transpose-views": 3, "eliminate-matmul-reshapes": 4, "slices-to-split": 4, "lower-linear": 2}
_TURNS |= {"fuse-pad-into-pool": 2, "materialize-reshape-shape": 2}
# Analyses, and what is from and to torch, which no pass reads; and which mutants there are, which decides nothing.
_UNREAD = (
    *("ir/axes/**/*.py", "ir/sites/**/*.py", "ir/fx/**/*.py", "ir/emit_fx.py", "ir/capture_torch*.py"),
    "tests/fuzz/mutants.py",
)


@cache
def versions(patterns: tuple[str, ...] = _SOURCES) -> str:
    """What a row is valid for: the runtime and these sources."""
    files = {p for pattern in patterns for p in ROOT.glob(pattern)}
    files -= {p for pattern in _UNREAD for p in ROOT.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.relative_to(ROOT).as_posix().encode() + file.read_bytes())
    packages = [f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime")]
    return f"{', '.join(packages)}, source {digest.hexdigest()[:8]}"


def jobs(n_graphs: int) -> list[Job]:
    """Seeds, every other one around one pass, in turns."""
    names = [name for name in builtin_modules() for _ in range(_TURNS.get(name, 1))]
    return [(seed, names[seed // 2 % len(names)] if seed % 2 else "") for seed in range(n_graphs)]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of the present versions."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if r["versions"] == versions()]


def _line(row: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in row.items() if v not in ("", {}, [])}, separators=(",", ":"))


def run(path: Path, n_graphs: int, n_jobs: int) -> list[dict[str, Any]]:
    """Examine every graph whose row is missing; return all rows."""
    for name in builtin_modules():
        pass_class(name)  # all sources are read now, before the children part
    wanted = jobs(n_graphs)
    rows = [r for r in read_rows(path) if r["seed"] < n_graphs]
    done = {r["seed"] for r in rows}
    missing = [job for job in wanted if job[0] not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the rows of other versions: the file holds one state.
    path.write_text("".join(_line(r) + "\n" for r in rows))
    failures = path.parent / "fuzz_failures"
    with path.open("a") as sink:
        for number, found in enumerate(run_jobs(examine_job, missing, n_jobs), 1):
            seed, focus = found.pop("job")
            row = {"seed": seed, "focus": focus, **outcome_of(found), "versions": versions()}
            rows.append(row)
            print(_line(row), file=sink, flush=True)
            if row["outcome"] in (FAILED, CRASHED):
                print(f"\n{row['outcome'].upper()} {seed} {focus}: {row['detail']}", flush=True)
                write_failure(failures, (seed, focus), row)
            print(f"\r{number}/{len(missing)} graphs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return rows


def write_failure(folder: Path, job: Job, row: dict[str, Any]) -> None:
    """The failing graph, shrunk, as text."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"seed-{job[0]}" + (f"-{job[1]}" if job[1] else "")
    found = next(run_jobs(shrunk, [(job, row["detail"])], time_limit_s=600))
    text = found.get("text", found.get("detail", ""))
    (folder / f"{name}.txt").write_text(
        f"# {' '.join(row['detail'].split())}\n# pipelines: {row.get('pipelines')}\n{text}\n"
    )


# -- table -----------------------------------------------------------------------------------------------------------


def firings(rows: list[dict[str, Any]]) -> Counter[str]:
    """Rewrites per pass, counted in graphs that were proven right."""
    total: Counter[str] = Counter()
    for row in rows:
        if row["outcome"] in RIGHT:
            total.update(row.get("firings", {}))
    return total


def table(rows: list[dict[str, Any]]) -> str:
    """The document, from the rows alone."""
    n_rows, counts = len(rows), Counter(r["outcome"] for r in rows)
    ran = sum(counts[o] for o in (*RIGHT, FAILED))
    lines = [
        "# Random graphs through the lossless passes",
        "",
        "Written by `make evidence-fuzz` from `evidence/fuzz.jsonl`.",
        f"Versions: {next((r['versions'] for r in rows if 'versions' in r), versions())}.",
        "",
        "Each graph is drawn from a seed (tests/fuzz): operators of the whole standard with their shapes and element",
        "types known, among them the graphs of the goldens and mutants of those, with new weights. It runs before and",
        "after the passes with the runtime's optimizations off, at two bindings of the symbolic dims, with ordinary",
        "numbers and with NaN, infinities and zeros of both signs. Exact passes keep every bit; where numeric ones",
        "fire, the result is within the tolerance of `ir/verify.py` and the exact ones alone keep every bit.",
        "",
        f"- {n_rows} graphs, {ran} of them run on the runtime: {100 * ran / max(1, n_rows):.1f} %.",
        f"- {counts[SAME]} with the same bits, {counts[WITHIN]} within the tolerance;",
        f"  {counts[AMPLIFIED]} where a later operator made a rounding large and each numeric rewrite was proven by",
        "  itself, cut out of the graph.",
        f"- {sum(r.get('runs', 0) for r in rows)} runs of both sides compared.",
        f"- **{counts[FAILED]} wrong results, {counts[CRASHED]} crashes after a rewrite.**",
        *(f"  - {r['outcome']}: seed {r['seed']} {r['focus']}: {r['detail']}" for r in _bad(rows)),
        "",
    ]
    lines += _coverage(rows)
    lines += ["## Firings per pass", "", "| pass | firings |", "|---|--:|"]
    total = firings(rows)
    lines += [f"| {name} | {total[name]} |" for name in builtin_modules()]
    lines += ["", "## Graphs that the runtime does not run", ""]
    reasons = Counter(_reason(r) for r in rows if r["outcome"] not in (*RIGHT, FAILED, CRASHED))
    lines += [f"- {count} x {reason}" for reason, count in reasons.most_common(25)]
    return "\n".join(lines) + "\n"


def _coverage(rows: list[dict[str, Any]]) -> Iterator[str]:
    proven = [r for r in rows if r["outcome"] in RIGHT]
    yield from ("## What the graphs that ran hold", "")
    for title, key in (
        ("operators", "operators"),
        ("element types", "dtypes"),
        ("ranks", "ranks"),
        ("opsets", "opset"),
    ):
        total: Counter[str] = Counter()
        for row in proven:
            total.update(row[key] if isinstance(row.get(key), dict) else [str(row.get(key))])
        shown = sorted(total, key=int) if key in ("ranks", "opset") else sorted(total)
        yield f"- {len(total)} {title}: {', '.join(f'{name} {total[name]}' for name in shown)}"
    yield ""


def _bad(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in rows if r["outcome"] in (FAILED, CRASHED)]


def _reason(row: dict[str, Any]) -> str:
    text = row["detail"].partition("ONNX Runtime rejects it: ")[2] or row["detail"]
    return f"{row['outcome']}: {text.partition('ONNX Runtime rejects the run: ')[2] or text}"[:160]


def complaints(rows: list[dict[str, Any]]) -> list[str]:
    """What keeps the evidence from being complete."""
    found = [f"{len(_bad(rows))} failures"] if _bad(rows) else []
    counts = Counter(r["outcome"] for r in rows)
    if sum(counts[o] for o in (*RIGHT, FAILED)) < MIN_SHARE * len(rows):
        found.append(f"fewer than {MIN_SHARE:.0%} of the graphs run")
    total = firings(rows)
    few = [f"{name} {total[name]}" for name in builtin_modules() if total[name] < MIN_FIRINGS]
    return found + ([f"fewer than {MIN_FIRINGS} firings: {', '.join(few)}"] if few else [])


def show(job: Job) -> int:
    """One graph, for a person."""
    graph = generate(job[0], InProcess(), job[1])
    print(onnx.printer.to_text(graph.model), graph.planted, choose(graph))
    found = next(run_jobs(examine_job, [job]))
    print(json.dumps({k: v for k, v in found.items() if k not in ("operators", "dtypes", "ranks")}, indent=1))
    return 0 if found["outcome"] in RIGHT else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "evidence" / "fuzz.jsonl")
    parser.add_argument("--seed", type=int, help="show one graph")
    parser.add_argument("--focus", default="", help="with --seed: the pass around which it is built")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        return show((arguments.seed, arguments.focus))
    rows = run(arguments.output, arguments.graphs, arguments.jobs)
    text = table(rows)
    if arguments.graphs == parser.get_default("graphs"):
        document = ROOT / "docs" / "evidence_fuzz.md"
        document.parent.mkdir(exist_ok=True)
        document.write_text(text)
    print(text)
    wrong = complaints(rows)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
