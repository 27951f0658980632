"""Three wrong versions of every pass: does the fuzzer notice?

    python tests/evidence_mutants.py [--passes fuse-clips,...] [--graphs 1000] [--jobs 2]

A mutant is one small change of the code of a pass (tests/fuzz/mutants.py). It is found when a graph that the pass as it
is leaves right comes out wrong, crashes, or is refused. A mutant that only fires less often than the pass breaks no
promise: it is listed, and another one is drawn for it, until three are found or there are no more. One JSON row per
mutant; rows that exist for the same source and goldens of their pass and the same generator are kept. The table
`docs/evidence_mutants.md` is written from the rows.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from opgraft.passes._registry import builtin_modules, pass_class

sys.path.insert(0, str(Path(__file__).parent))
from evidence_fuzz import GENERATOR, versions
from fuzz.hunt import N_COMPARED, Hunt, hunt
from fuzz.mutants import CODE_ELSEWHERE, mutants
from fuzz.workers import run_jobs

ROOT = Path(__file__).resolve().parent.parent
MUTANTS_PER_PASS = 3
FOUND, WEAKER, EQUAL, SURVIVED = "found", "fires less", "equivalent", "survived"
# One mutant may take all of its graphs, each of which may hang once.
_TIME_LIMIT_S = 900.0


@cache
def equivalent() -> dict[str, str]:
    """Mutants that cannot make a result wrong, by key, and why: `# why` above the keys."""
    found, why = {}, ""
    for line in (ROOT / "tests" / "fuzz" / "equivalent_mutants.txt").read_text().splitlines():
        if line.startswith("# "):
            why = line.removeprefix("# ")
        elif line:
            found[line] = why
    return found


def pass_versions(pass_name: str) -> str:
    """What a mutant's row is valid for: the source and the goldens of its own pass, and the generator."""
    modules = [builtin_modules()[pass_name], *filter(None, [CODE_ELSEWHERE.get(pass_name)])]
    files = [f"{module.removeprefix('opgraft.').replace('.', '/')}.py" for module in modules]
    return versions((*files, f"tests/goldens/{pass_name}.txt", *GENERATOR))


def read_rows(path: Path, n_graphs: int) -> list[dict[str, Any]]:
    """The rows of the present versions; a survivor of fewer graphs is looked for again."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r for r in rows if r["pass"] in builtin_modules() and r["versions"] == pass_versions(r["pass"])]
    return [r for r in rows if r["outcome"] != SURVIVED or r["key"] in equivalent() or r["graphs"] >= n_graphs]


def questions(passes: list[str], rows: list[dict[str, Any]], n_graphs: int) -> Iterator[Hunt]:
    """The mutants without a row, in the order of each pass, until enough of it are found; `rows` grows meanwhile."""
    for name in passes:
        passed: list[str] = []
        for mutant in mutants(name):
            own = {r["mutant"]: r["outcome"] for r in rows if r["pass"] == name}
            if sum(own.get(label) == FOUND for label in passed) >= MUTANTS_PER_PASS:
                break
            passed.append(mutant.label)
            if mutant.label not in own:
                yield Hunt(mutant, N_COMPARED if mutant.key in equivalent() else n_graphs)


def run(path: Path, passes: list[str], n_graphs: int, n_jobs: int) -> list[dict[str, Any]]:
    """Hunt until every pass has its three; return all rows."""
    for name in builtin_modules():
        pass_class(name)
    rows = read_rows(path, n_graphs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with path.open("a") as sink:
        for found in run_jobs(hunt, questions(passes, rows, n_graphs), n_jobs, time_limit_s=_TIME_LIMIT_S):
            mutant = found.pop("job").mutant
            row = {"pass": mutant.pass_name, "mutant": mutant.label, "key": mutant.key, "kind": mutant.kind}
            row |= {**found, "versions": pass_versions(mutant.pass_name)}
            rows.append(row)
            print(json.dumps(row), file=sink, flush=True)
            print(outcome_of(row), row["mutant"], " ".join(row.get("detail", "").split())[:100], flush=True)
    return rows


def outcome_of(row: dict[str, Any]) -> str:
    """What became of a mutant; one that can change nothing has not survived."""
    return EQUAL if row["outcome"] == SURVIVED and row["key"] in equivalent() else str(row["outcome"])


# -- table -----------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]], passes: list[str]) -> str:
    """The document, from the rows alone."""
    counts = Counter(outcome_of(r) for r in rows)
    kinds = Counter(r["kind"] for r in rows if r["outcome"] == FOUND)
    tries = sorted(r["graphs"] for r in rows if r["outcome"] == FOUND)
    lines = [
        "# Mutants of the passes, and the fuzzer",
        "",
        "Written by `make evidence-mutants` from `evidence/mutants.jsonl`.",
        f"Versions of the generator: {versions(GENERATOR)}. A row is kept while the generator, the source of its",
        "own pass and the goldens of that are as they were; other sources may have changed since.",
        "",
        "Every pass is broken by one small change of its code at a time, drawn from its name (tests/fuzz/mutants.py).",
        "A mutant is found when a random graph that the pass leaves right comes out wrong, crashes or is refused.",
        f"One that only fires less often than the pass, in {_span(rows)} graphs none of which comes out wrong, breaks",
        "no promise, and another is drawn in its place, until three are found or there are no more; what it loses is",
        "noticed by the goldens.",
        "",
        f"- {len(rows)} mutants of {len({r['pass'] for r in rows})} passes ({len(passes)} exist).",
        f"- **{counts[FOUND]} found, {counts[SURVIVED]} survived**;",
        f"  {counts[WEAKER]} fire less, {counts[EQUAL]} equivalent.",
        *(f"- Only {n} of `{name}`: all {n_all} mutants that there are were tried." for name, n, n_all in _few(rows)),
    ]
    if tries:
        lines.append(f"- Graphs until found: half within {tries[len(tries) // 2]}, the last after {tries[-1]}.")
    lines += [f"- Found by kind: {', '.join(f'{k} {n}' for k, n in kinds.most_common())}.", ""]
    for outcome, title in ((SURVIVED, "Survivors"), (EQUAL, "Equivalent, and why"), (WEAKER, "Fire less")):
        chosen = [r for r in rows if outcome_of(r) == outcome]
        why = {r["mutant"]: equivalent().get(r["key"]) or f"({r['graphs']} graphs)" for r in chosen}
        lines += [f"## {title}", "", *(f"- `{mutant}` {text}" for mutant, text in why.items()), ""]
    lines += ["## Found", "", "| mutant | graphs | how |", "|---|--:|---|"]
    cells = [(r["mutant"], r["graphs"], r["detail"]) for r in rows if r["outcome"] == FOUND]
    lines += [f"| `{_cell(m)}` | {n} | {_cell(how)} |" for m, n, how in sorted(cells)]
    return "\n".join(lines) + "\n"


def _span(rows: list[dict[str, Any]]) -> str:
    """On how many graphs those were tried that fire less."""
    tried = {r["graphs"] for r in rows if r["outcome"] == WEAKER} or {N_COMPARED}
    return " to ".join(str(n) for n in sorted({min(tried), max(tried)}))


def _few(rows: list[dict[str, Any]]) -> Iterator[tuple[str, int, int]]:
    """Passes of which fewer are found than wanted: how many, and of how many."""
    for name in dict.fromkeys(r["pass"] for r in rows):
        own = [r["outcome"] for r in rows if r["pass"] == name]
        if own.count(FOUND) < MUTANTS_PER_PASS:
            yield name, own.count(FOUND), len(own)


def _cell(text: str) -> str:
    text = re.sub(r'[^"\s]*/opgraft/', "", text)  # where the sources lay says nothing
    return " ".join(text.replace("|", "\\|").split())[:140]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", default="", help="only these, by name, with commas between")
    parser.add_argument("--graphs", type=int, default=1000, help="at most so many for each mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=ROOT / "evidence" / "mutants.jsonl")
    arguments = parser.parse_args()
    passes = arguments.passes.split(",") if arguments.passes else list(builtin_modules())
    rows = run(arguments.output, passes, arguments.graphs, arguments.jobs)
    text = table(rows, list(builtin_modules()))
    if not arguments.passes and arguments.graphs == parser.get_default("graphs"):
        (ROOT / "docs" / "evidence_mutants.md").write_text(text)
    print(text)
    return 1 if any(outcome_of(r) == SURVIVED for r in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
