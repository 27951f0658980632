"""Every architecture in every export form: captured, simplified, verified, understood; and that held against the truth.

    python tests/evidence_coverage.py [NAME ...] [--forms F ...] [--sizes S ...] [--jobs 2] [--exported] [--write]

One JSON row per (architecture, sizes, form) in `evidence/coverage.jsonl`; rows of the present versions and sources are
kept, so that an interrupted run goes on. `docs/coverage.md` is written with `--write`, and after a full run.

Sites and roles are found in the graph without names, with its nodes shuffled and no shapes recorded. A gap counts as
explained only when the exporter or the runtime itself fails; its message stands in the table.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from export_architectures import everything
from ground_truth import anonymous, check_roles, compare, expected_roles, module_results
from opgraft.backends.onnxruntime.executor import Executor
from opgraft.ir.axes.roles import Role
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.compare import same_bits
from opgraft.ir.errors import ExecutionError
from opgraft.ir.save import model_bytes
from opgraft.ir.sites import Sites, find_sites
from opgraft.ir.sites.interventions import check_interventions, exposed_values, with_outputs
from opgraft.passes._pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
# Perturbing every value's every index takes seconds; one form shows what the others share.
INTERVENED = (("dynamo-18", "colliding_heads"), ("dynamo-18", "colliding"))
# Colliding channels are told apart by the same rules in every form: one per exporter, and the newest.
FORMS_OF_CHANNELS = ("dynamo-18", "dynamo-23", "torchscript")
OTHER_SITES = ("norms", "linears", "mlps", "embeddings", "convolutions", "recurrences", "routers")
# One rounding of float32, where the runtime happens to give torch's very bits.
_FLOOR = 1.2e-7


@cache
def versions() -> str:
    """Of packages, and of the sources that a row depends on."""
    packages = ("onnx", "onnxruntime", "torch", "transformers")
    sources = hashlib.sha256()
    apart = (ROOT / "ir" / "fx", ROOT / "ir" / "emit_fx.py")
    for path in sorted([*ROOT.glob("ir/**/*.py"), *ROOT.glob("passes/**/*.py"), ROOT / "tests" / "ground_truth.py"]):
        if path not in apart and path.parent not in apart:
            sources.update(path.read_bytes())
    return ", ".join([*(f"{p} {importlib.metadata.version(p)}" for p in packages), sources.hexdigest()[:12]])


def examine(architecture: Any, sizes: str, form: str, executor: Executor) -> dict[str, Any]:
    from architectures import ExportFailedError, export, samples, sharpened

    try:
        path = export(architecture, form, sizes)
    except ExportFailedError as error:
        return {"outcome": "export failed", "message": _line_of(error)}
    row: dict[str, Any] = {"outcome": "captured"}
    program = capture_onnx(path)
    stored = samples(architecture, sizes)
    start = time.perf_counter()
    sites = find_sites(capture_onnx(anonymous(path)))
    _ = sites.rotary
    row["analysis_s"] = round(time.perf_counter() - start, 3)
    row |= _attention(sites, sharpened(architecture, sizes))
    try:
        before = _results(executor, program, stored)
    except ExecutionError as error:
        return row | {"outcome": "runtime failed", "message": _line_of(error)}
    row |= _simplified(program, stored, before, executor)
    row |= _roles(architecture, sizes, sites, stored[0], executor)
    if (form, sizes) in INTERVENED:
        report = check_interventions(sites, executor)
        row["interventions"] = report.n_interventions
        row["bounded"] = report.n_bounded
        row["contradicted"] = [str(w) for w in report.wrong]
        row["not_tried"] = report.skipped[:3]
    return row


def _line_of(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _results(executor: Executor, program: Any, stored: list[Any]) -> list[Mapping[str, Any]]:
    model = executor.load(model_bytes(program))
    found = [executor.run(model, sample.inputs) for sample in stored]
    executor.release(model)
    return found


def _simplified(program: Any, stored: list[Any], before: list[Mapping[str, Any]], executor: Executor) -> dict[str, Any]:
    """Nodes before and after, and whether both give the same bits, and torch's numbers."""
    candidate = program.clone()
    n_before = len(list(candidate.graph))
    Pipeline.parse("simplify").run(candidate)
    row: dict[str, Any] = {"nodes": n_before, "simplified": len(list(candidate.graph))}
    n_same = n_verified = 0
    worst = 0.0
    for sample, was, now in zip(stored, before, _results(executor, candidate, stored), strict=True):
        rounding = _difference(was, sample.outputs)
        n_same += not same_bits(was, now)
        # Where a pass with the NUMERIC contract applied: the runtime and torch differ by roundings of the same kind.
        n_verified += _difference(was, now) <= 4 * rounding + _FLOOR
        worst = max(worst, rounding)
    return row | {"shapes": len(stored), "same": n_same, "verified": n_verified, "torch_difference": worst}


def _difference(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    """The largest difference of any output, relative to its largest element; infinite where it is of another kind."""
    worst = 0.0
    for name, wanted in right.items():
        have = left[name]
        if not isinstance(have, np.ndarray) or have.shape != wanted.shape:
            return float("inf")
        if wanted.dtype.kind == "f" and wanted.size:
            worst = max(worst, float(np.abs(have - wanted).max() / (np.abs(wanted).max() or 1.0)))
        elif not np.array_equal(have, wanted):
            return float("inf")
    return worst


def _attention(sites: Sites, built: Any) -> dict[str, Any]:
    """What is found without running anything, against the architecture's config."""
    found = compare(sites, built.truth)
    return {
        "attention": found.n_attention,
        "expected": found.n_expected,
        "missing": found.missing,
        "wrong": found.wrong,
        "undecided": found.undecided,
        "refused": [r.reason for r in sites.refused],
        "dims": found.n_dims,
        "unknown": found.n_unknown,
        "sites": {kind: len(getattr(sites, kind)) for kind in OTHER_SITES},
    }


def _roles(architecture: Any, sizes: str, sites: Sites, sample: Any, executor: Executor) -> dict[str, Any]:
    """Roles against the results of submodules, whose values are recognised in a run."""
    import torch
    from architectures import sharpened

    built = sharpened(architecture, sizes)
    values = executor.run_once(with_outputs(sites.program, exposed_values(sites)), sample.inputs)
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    tensors = module_results(built, {name: torch.from_numpy(array) for name, array in sample.inputs.items()})
    verdicts = [verdict for *_, verdict in check_roles(sites, arrays, tensors, _expected(architecture, sizes))]
    return {
        "roles_checked": len(verdicts),
        "roles_unknown": sum(v == "" for v in verdicts),
        "roles_wrong": [v for v in verdicts if v] + list(_wrong_inputs(built, sites)),
    }


@cache
def _expected(architecture: Any, sizes: str) -> dict[str, tuple[str, ...]]:
    """Told at sizes that are all different, where the architecture has them."""
    from architectures import record_module_shapes, sharpened

    base = sharpened(architecture, "default" if "default" in architecture.presets else sizes)
    return expected_roles(base, record_module_shapes(base.module, base.inputs()))


def _wrong_inputs(built: Any, sites: Sites) -> Iterator[str]:
    """The batch of every input, and nothing else, is a batch."""
    roles = {value.name: sites.roles.of(value) or () for value in sites.program.graph.inputs}
    for name, axes in built.axes.items():
        for position, dim in axes.items():
            have = roles[name][position] if position < len(roles.get(name, ())) else ()
            if have and (dim == "batch") != (have == (Role.BATCH,)):
                yield f"input {name}[{position}] is {have}, not {dim}"


# -- rows -------------------------------------------------------------------------------------------------------------


def cells(names: Iterable[str], forms: Iterable[str], sizes: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    for name in names:
        for size in everything()[name].presets:
            if size in sizes:
                chosen = [f for f in forms if size != "colliding_channels" or f in FORMS_OF_CHANNELS]
                yield from ((name, size, form) for form in chosen)


def _model(name: str, sizes: str, form: str) -> Path:
    from architectures.exporting import model_path

    return model_path(everything()[name], form, sizes)


def _is_exported(name: str, sizes: str, form: str) -> bool:
    path = _model(name, sizes, form)
    return path.exists() or path.with_suffix(".failed").exists()


def read_rows(path: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    known = {(r["name"], r["sizes"], r["form"]): r for r in rows if r["versions"] == versions()}
    return {cell: r for cell, r in known.items() if cell[0] in everything() and r["model"] == _model(*cell).name}


def work(jobs: list[tuple[str, str, str]]) -> list[dict[str, Any]]:
    """All cells of one architecture, in a process of its own."""
    rows = []
    with Executor(time_limit_s=120) as executor:
        for name, sizes, form in jobs:
            try:
                row = examine(everything()[name], sizes, form, executor)
            except Exception as error:  # noqa: BLE001 - a row for every cell, also for those that show a defect
                row = {"outcome": "failed", "message": f"{type(error).__name__}: {_line_of(error)}"}
            cell = {"name": name, "sizes": sizes, "form": form, "model": _model(name, sizes, form).name}
            rows.append({**cell, "versions": versions(), **row})
    return rows


def run(path: Path, wanted: list[tuple[str, str, str]], n_jobs: int) -> dict[tuple[str, str, str], dict[str, Any]]:
    known = read_rows(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in known.values()))
    missing: dict[str, list[tuple[str, str, str]]] = {}
    for cell in wanted:
        if cell not in known:
            missing.setdefault(cell[0], []).append(cell)
    import torch

    torch.set_num_threads(1)
    Pipeline.parse("simplify")  # loads all that the workers share, before they are forked
    with multiprocessing.get_context("fork").Pool(n_jobs, maxtasksperchild=1) as pool, path.open("a") as file:
        for rows in pool.imap_unordered(work, missing.values()):
            for row in rows:
                known[row["name"], row["sizes"], row["form"]] = row
                file.write(json.dumps(row) + "\n")
                print(summary(row), flush=True)
            file.flush()
    return known


def summary(row: dict[str, Any]) -> str:
    head = f"{row['name']:20} {row['sizes']:18} {row['form']:14}"
    if row["outcome"] != "captured":
        return f"{head} {row['outcome']}: {row['message'][:90]}"
    faults = [*row["missing"], *row["wrong"], *row["roles_wrong"], *row.get("contradicted", [])]
    return (
        f"{head} {row['nodes']:5} -> {row['simplified']:4} verified {row['verified']}/{row['shapes']} "
        f"attention {row['attention']}/{row['expected']} unknown {row['unknown']}/{row['dims']} {faults[:2] or ''}"
    )


# -- the table --------------------------------------------------------------------------------------------------------


def is_right(row: dict[str, Any]) -> bool:
    faults = (row.get(kind) for kind in ("missing", "wrong", "roles_wrong", "contradicted"))
    return not any(faults) and row.get("verified") == row.get("shapes")


def table(rows: list[dict[str, Any]], n_wanted: int) -> str:
    lines = [
        "# Coverage",
        "",
        "Written by `make evidence-coverage` from `evidence/coverage.jsonl`.",
        f"Versions: {versions()}.",
        *(
            [f"Not run yet on these sources: {n_wanted - len(rows)} of {n_wanted} cells."]
            if n_wanted > len(rows)
            else ()
        ),
        "",
        *_totals(rows),
        "",
        "| architecture | captured | nodes | simplified | verified | attention | other sites | roles | tried |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    done = [r for r in rows if r["outcome"] == "captured"]
    for name in dict.fromkeys(r["name"] for r in rows):
        lines.append(_line(name, [r for r in done if r["name"] == name], [r for r in rows if r["name"] == name]))
    lines += ["", "## Gaps", ""]
    lines += [f"- {gap}" for gap in _gaps(rows)] or ["None."]
    return "\n".join(lines) + "\n"


def _totals(rows: list[dict[str, Any]]) -> Iterator[str]:
    done = [r for r in rows if r["outcome"] == "captured"]
    checked = [r for r in done if "interventions" in r]

    def total(key: str, of: list[dict[str, Any]] = done) -> int:
        return sum(len(r[key]) if isinstance(r[key], list) else r[key] for r in of)

    refused = sum(r["outcome"] == "export failed" for r in rows)
    rejected = sum(r["outcome"] == "runtime failed" for r in rows)
    failed = sum(r["outcome"] == "failed" for r in rows)
    analysed = [r for r in rows if "attention" in r]
    yield (
        f"- {len({r['name'] for r in rows})} architectures, {len(rows)} cells (architecture, sizes, export form): "
        f"{len(done)} captured, {refused} that the exporter refuses, {rejected} that the runtime does not run as "
        f"exported, {failed} failed here"
    )
    verified = sum(r["verified"] == r["shapes"] for r in done)
    same = sum(r["same"] == r["shapes"] for r in done)
    yield f"- simplified and verified at every shape tried: {verified} of {len(done)} ({same} with the same bits)"
    # What is neither found, refused nor missing is computed of constants alone (`ground_truth.compare`).
    folded = sum(r["expected"] - r["attention"] - len(r["refused"]) for r in analysed if not r["missing"])
    yield (
        f"- attention: {total('expected', analysed)} expected, {total('attention', analysed)} found, "
        f"{total('refused', analysed)} refused with a reason, {folded} folded by the exporter; cells with one missing "
        f"{sum(bool(r['missing']) for r in analysed)}, with a wrong one {sum(bool(r['wrong']) for r in analysed)}; "
        f"mask or rotary positions left open {total('undecided', analysed)}"
    )
    yield (
        f"- roles: {total('dims') - total('unknown')} of {total('dims')} dims have one "
        f"({total('unknown') / max(total('dims'), 1):.2%} unknown); {total('roles_checked')} held against the results "
        f"of submodules, {total('roles_unknown')} unknown, {total('roles_wrong')} wrong"
    )
    tried = {r["name"] for r in checked if r["interventions"]}
    yield (
        f"- interventions (the column `tried`): {total('interventions', checked)} on {len(tried)} architectures, "
        f"{total('bounded', checked)} values bounded, {total('contradicted', checked)} claims contradicted"
    )


def _line(name: str, done: list[dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    forms = f"{len(done)}/{len(rows)}"
    if not done:
        return f"| {name} | {forms} | | | | | | | |"
    first = done[0]
    sites = ", ".join(f"{count} {kind}" for kind, count in first["sites"].items() if count)
    unknown, dims = sum(r["unknown"] for r in done), sum(r["dims"] for r in done)
    attention = f"{sum(r['attention'] for r in done)}/{sum(r['expected'] for r in done)}"
    checked = [r for r in done if "interventions" in r]
    tried = f"{sum(r['interventions'] for r in checked)}, {sum(len(r['contradicted']) for r in checked)} contradicted"
    verified = f"{sum(r['verified'] == r['shapes'] for r in done)}/{len(done)}"
    return (
        f"| {name} | {forms} | {first['nodes']} | {first['simplified']} | {verified} | {attention} | {sites} | "
        f"{1 - unknown / max(dims, 1):.1%} | {tried} |"
    )


def _gaps(rows: list[dict[str, Any]]) -> Iterator[str]:
    for row in rows:
        where = f"{row['name']}, {row['sizes']}, {row['form']}"
        if row["outcome"] != "captured":
            yield f"{where}: {row['outcome']}: `{row['message'][:160].replace('`', chr(39))}`"
        for kind in ("missing", "wrong", "roles_wrong", "contradicted", "refused", "undecided"):
            for fault in list(dict.fromkeys(row.get(kind, [])))[:3]:
                yield f"{where}: {kind.replace('_', ' ')}: {fault}"
        if row.get("verified") != row.get("shapes"):
            yield f"{where}: other numbers after simplification"


def main() -> int:
    from architectures import FORMS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--sizes", nargs="+", default=["default", "colliding_heads", "colliding_channels", "colliding"])
    parser.add_argument("--jobs", type=int, default=2, help="processes; 0: only what the rows hold already")
    parser.add_argument("--output", type=Path, default=ROOT / "evidence" / "coverage.jsonl")
    parser.add_argument("--exported", action="store_true", help="only what the cache of models holds already")
    parser.add_argument("--write", action="store_true", help="write docs/coverage.md from what is there")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    wanted = list(cells(options.names or everything(), options.forms, options.sizes))
    if options.exported:
        wanted = [cell for cell in wanted if _is_exported(*cell)]
    known = run(options.output, wanted, options.jobs) if options.jobs else read_rows(options.output)
    rows = [known[cell] for cell in wanted if cell in known]
    if options.write or not options.names:
        (ROOT / "docs" / "coverage.md").write_text(table(rows, len(wanted)))
    bad = [r for r in rows if r["outcome"] == "failed" or not is_right(r)]
    print(f"{len(rows)} cells, {len(bad)} with a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
