"""Every operator test of the onnx package with interventions: `python tests/evidence_axes.py [--output FILE]`.

One JSON row per test in `evidence/axes.jsonl`, kept while versions and sources stay; writes `docs/evidence_axes.md`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from operator_interventions import examine, operator_cases
from opgraft.backends.onnxruntime.executor import Executor

ROOT = Path(__file__).resolve().parent.parent


def versions() -> str:
    sources = hashlib.sha256()
    for path in sorted([*ROOT.glob("ir/axes/*.py"), *ROOT.glob("ir/sites/*.py"), *ROOT.glob("ir/*shape*.py")]):
        sources.update(path.read_bytes())
    packages = (f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "onnxruntime"))
    return ", ".join([*packages, sources.hexdigest()[:12]])


def run(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    known = {row["case"]: row for row in map(json.loads, lines) if row["versions"] == versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in known.values()))
    with Executor(time_limit_s=60) as executor, path.open("a") as file:
        for case in operator_cases():
            if case.name not in known:
                known[case.name] = {**examine(case, executor), "versions": versions()}
                file.write(json.dumps(known[case.name]) + "\n")
                file.flush()
    return list(known.values())


def table(rows: list[dict[str, Any]]) -> str:
    tried = [r for r in rows if r.get("interventions")]
    bounded, predicted, moved = (sum(r[key] for r in tried) for key in ("bounded", "predicted", "moved"))
    wrong = [r for r in tried if r["wrong"]]
    opaque = Counter(reason for r in tried for reason in r["opaque"])
    lines = [
        "# Interventions on operator tests",
        "",
        f"Written by `make evidence-axes` from `evidence/axes.jsonl`. Versions: {versions()}.",
        "",
        f"{len(tried)} tests of {len({r['operator'] for r in tried})} operators, "
        f"{sum(r['interventions'] for r in tried)} interventions; "
        f"{len({r['operator'] for r in tried if r['bounded']})} operators whose rule bounds what may move, "
        f"{bounded} values bounded, of whose elements that may move {moved / max(predicted, 1):.0%} did.",
        f"Tests in which something moved that may not: {len(wrong)}.",
        "",
        *(f"- {r['case']}: {r['wrong'][0]}" for r in wrong),
        "",
        "| opaque because | tests |",
        "|---|---|",
        *(f"| {reason} | {count} |" for reason, count in opaque.most_common()),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "evidence" / "axes.jsonl")
    rows = run(parser.parse_args().output)
    (ROOT / "docs" / "evidence_axes.md").write_text(table(rows))
    print(table(rows).split("\n\n")[2])
    return 1 if any(row.get("wrong") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
