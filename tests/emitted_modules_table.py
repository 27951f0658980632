"""The rows of `evidence_emit_architectures.py` as `docs/emit_fx.md`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

PASSED = "passed"
Row = dict[str, Any]
HEADINGS = {"torch": "from torch", "file": "through a file", "exported": "exported again"}
EXPLANATION = """\
The emitted module in float64 against the original, at two bindings of every dynamic dim (the last column has the inputs
of both). A cell holds the largest difference as a fraction of the largest output; at most {tolerance:g} passes.

- *from torch*: captured from the torch module with its weights in float64, heads {head_dim} wide, where the scale of
  attention is exact; *through a file*: the same, saved and loaded; *simplified*: after the pipeline `simplify`, with
  the nodes before and after. Weights that the program holds unchanged have the module's names in the state dict:
  *names*.
- *dynamo-18*, *dynamo-23*: PyTorch's own export of the float32 module as `.onnx`, its optimization on; *static*: the
  same with as many dims as possible equal.
- *exported again*, *compiled*: the module emitted from the dynamo-18 file through `torch.export` with dynamic dims, and
  through `torch.compile(fullgraph=True, dynamic=True)`, backend {backend}; against the module itself.

The reference is the torch module in float64. Exporters write numbers of a module's code as float32, also where its
weights are float64, and compute with them: then the graph is another function by some 1e-8. Such cells are marked:
*n*, the torch module with the numbers in its operators rounded to float32; *e*, the same file with its weights in
float64, run by the reference evaluator of the onnx package.
"""


def table(
    rows: Mapping[tuple[str, str], Row], names: Sequence[str], cells: Sequence[str], versions: str, **settings: Any
) -> str:
    missing = 0
    lines = []
    for name in names:
        found = [rows.get((name, cell)) for cell in cells]
        missing += found.count(None)
        first = next((r for r in found if r and r.get("names")), {})
        names_kept = f"{first['names'] - len(first['lost'])} of {first['names']}" if first else ""
        shapes = next((r["shapes"] for r in found if r and "shapes" in r), "")
        lines.append(f"| {name} | {' | '.join(map(_cell, found))} | {names_kept} | {shapes} |")
    summary = [
        f"- {HEADINGS.get(cell, cell)}: " + counts([r for n in names if (r := rows.get((n, cell)))]) for cell in cells
    ]
    gaps = [r for n in names for c in cells if (r := rows.get((n, c))) and (r["outcome"] != PASSED or r.get("lost"))]
    head = ["architecture", *(HEADINGS.get(cell, cell) for cell in cells), "names", "inputs"]
    return (
        "\n".join(
            [
                "# Emitted torch modules",
                "",
                f"Written by `make evidence-emit_architectures`. Versions: {versions}.",
                "",
                EXPLANATION.format(**settings),
                *([f"Not yet run: {missing} cells.", ""] if missing else []),
                *([f"Of earlier sources: {settings['n_earlier']} cells.", ""] if settings["n_earlier"] else []),
                *summary,
                "",
                f"| {' | '.join(head)} |",
                f"|{'---|' * len(head)}",
                *lines,
                "",
                "## What did not pass" if gaps else "Nothing failed.",
                "",
                *(f"- {r['name']}, {HEADINGS.get(r['cell'], r['cell'])}: {r['outcome']}: {_reason(r)}" for r in gaps),
            ]
        )
        + "\n"
    )


def _cell(row: Row | None) -> str:
    if row is None or row["outcome"] != PASSED:
        return "" if row is None else f"**{row['outcome']}**"
    mark = {"evaluator": " e", "torch, numbers in float32": " n"}.get(row.get("oracle", ""), "")
    nodes = " ({}, {})".format(*row["nodes"]) if "nodes" in row else ""
    return f"{row['error']:.0e}{mark}{nodes}"


def counts(rows: Sequence[Row]) -> str:
    oracles = Counter(r.get("oracle", "the module itself") for r in rows if r["outcome"] == PASSED)
    others = Counter(r["outcome"] for r in rows if r["outcome"] != PASSED)
    worst = max((r["error"] for r in rows if r["outcome"] == PASSED), default=0.0)
    equal = ", ".join(f"{count} equal to {oracle}" for oracle, count in oracles.most_common())
    return ", ".join([f"{equal} (worst {worst:.0e})", *(f"{n} {o}" for o, n in others.items())])


def _reason(row: Row) -> str:
    lost = f"renamed: {', '.join(row['lost'][:5])}" if row.get("lost") else ""
    errors = ", ".join(f"{oracle} {error:.1e}" for oracle, error in row.get("errors", {}).items())
    return "; ".join(part for part in (row.get("detail", ""), errors, lost) if part).replace("|", "\\|")
