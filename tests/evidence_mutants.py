"""Three wrong versions of every pass: does the fuzzer notice?

    python tests/evidence_mutants.py [--passes fuse-clips,...] [--graphs 1000] [--jobs 2]

A mutant is one small change of the code of a pass (tests/fuzz/mutants.py). It is found when a graph that the pass as it
is leaves right comes out wrong, crashes, or is refused. A mutant that only fires less often than the pass breaks no
promise: it is listed, and another one is drawn for it. One JSON row per mutant; rows that exist for the same versions
are kept. The table `docs/evidence_mutants.md` is written from the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from opgraft.passes._registry import builtin_modules, pass_class

sys.path.insert(0, str(Path(__file__).parent))
from evidence_fuzz import versions
from fuzz.hunt import Hunt, hunt
from fuzz.mutants import Mutant, mutants
from fuzz.workers import run_jobs

ROOT = Path(__file__).resolve().parent.parent
MUTANTS_PER_PASS = 3
MAX_DRAWN = 9
FOUND, WEAKER, EQUAL, SURVIVED = "found", "fires less", "equivalent", "survived"
_SELECTION = "which functions are inlined is an option; each inlined call is right by itself"
EQUIVALENT: dict[str, str] = {
    "inline-functions: return not self.functions or function.name in wanted or "
    'f"{function.domain}.{function.name}" in wanted: '
    "f'{function.domain}.{function.name}' in wanted -> f'{function.domain}.{function.name}' not in wanted": _SELECTION,
    "fold-constants: if not all(self._may_keep(o, results[o], region, context) for o in used):: "
    "all((self._may_keep(o, results[o], region, context) for o in used)) -> "
    "any((self._may_keep(o, results[o], region, context) for o in used))": "the limit on sizes: a larger constant is "
    "kept beside a small one of the same node, of the right contents",
    'lift-constants: rewrite = context.applied(self, node.name or old.name or "Constant"): '
    "node.name or old.name or 'Constant' -> node.name and old.name and 'Constant'": "what the report calls the place",
}
"""Mutants that cannot make a result wrong, by key, and why."""
# One mutant may take all of its graphs, each of which may hang once.
_TIME_LIMIT_S = 900.0


def read_rows(path: Path, n_graphs: int) -> list[dict[str, Any]]:
    """The rows of the present versions; what was not found on fewer graphs is looked for again."""
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [r for r in rows if r["versions"] == versions() and (r["outcome"] == FOUND or r["graphs"] >= n_graphs)]


def next_mutant(pass_name: str, rows: list[dict[str, Any]]) -> Mutant | None:
    """The first one in the pass's order without a row; None when enough have been tried."""
    own = {r["mutant"]: outcome_of(r) for r in rows if r["pass"] == pass_name}
    if sum(o in (FOUND, SURVIVED) for o in own.values()) >= MUTANTS_PER_PASS or len(own) >= MAX_DRAWN:
        return None
    return next((m for m in mutants(pass_name) if m.label not in own), None)


def run(path: Path, passes: list[str], n_graphs: int, n_jobs: int) -> list[dict[str, Any]]:
    """Hunt until every pass has its three; return all rows."""
    for name in builtin_modules():
        pass_class(name)
    rows = read_rows(path, n_graphs)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with path.open("a") as sink:
        while True:
            drawn = [m for name in passes if (m := next_mutant(name, rows)) is not None]
            if not drawn:
                return rows
            questions = [Hunt(m, n_graphs) for m in drawn]
            for found in run_jobs(hunt, questions, n_jobs, time_limit_s=_TIME_LIMIT_S):
                question = found.pop("job")
                mutant = question.mutant
                row = {"pass": mutant.pass_name, "mutant": mutant.label, "key": mutant.key, "kind": mutant.kind}
                row |= {**found, "versions": versions()}
                rows.append(row)
                print(json.dumps(row), file=sink, flush=True)
                print(row["outcome"], row["mutant"], row.get("detail", "")[:100], flush=True)


def outcome_of(row: dict[str, Any]) -> str:
    """What became of a mutant; one that can change nothing has not survived."""
    return EQUAL if row["outcome"] == SURVIVED and row["key"] in EQUIVALENT else str(row["outcome"])


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
        f"Versions: {versions()}.",
        "",
        "Every pass is broken by one small change of its code at a time, drawn from its name (tests/fuzz/mutants.py).",
        "A mutant is found when a random graph that the pass leaves right comes out wrong, crashes or is refused.",
        "One that only fires less often than the pass breaks no promise, and another is drawn in its place; what it",
        "loses is noticed by the goldens.",
        "",
        f"- {len(rows)} mutants of {len({r['pass'] for r in rows})} passes ({len(passes)} exist).",
        f"- **{counts[FOUND]} found, {counts[SURVIVED]} survived**;",
        f"  {counts[WEAKER]} fire less, {counts[EQUAL]} equivalent.",
    ]
    if tries:
        lines.append(f"- Graphs until found: half within {tries[len(tries) // 2]}, the last after {tries[-1]}.")
    lines += [f"- Found by kind: {', '.join(f'{k} {n}' for k, n in kinds.most_common())}.", ""]
    for outcome, title in ((SURVIVED, "Survivors"), (EQUAL, "Equivalent, and why"), (WEAKER, "Fire less")):
        chosen = [r for r in rows if outcome_of(r) == outcome]
        lines += [f"## {title}", "", *(f"- `{r['mutant']}` {EQUIVALENT.get(r['key'], '')}" for r in chosen), ""]
    lines += ["## Found", "", "| mutant | graphs | how |", "|---|--:|---|"]
    cells = [(r["mutant"], r["graphs"], r["detail"]) for r in rows if r["outcome"] == FOUND]
    lines += [f"| `{_cell(m)}` | {n} | {_cell(how)} |" for m, n, how in sorted(cells)]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
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
