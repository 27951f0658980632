"""Emitted modules on a GPU: `make evidence-emit_gpu`, on a machine that has one.

    python tests/evidence_emit_gpu.py pack FOLDER     # the exported architectures and inputs at two bindings
    python tests/evidence_emit_gpu.py run FOLDER      # needs torch, onnx, onnx_ir, and opgraft
    python tests/evidence_emit_gpu.py table           # docs/emit_gpu.md

Each module is emitted from its `.onnx` file, moved with `.to("cuda")`, and held against the same module on the CPU in
float64: in float64, operator by operator; in float32; and in float32 compiled by Inductor as one graph with dynamic
sizes. One JSON row per architecture and cell, appended to `evidence/emit_gpu.jsonl`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import math
import multiprocessing
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.emit_fx import emit_fx

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "emit_gpu.md"
ROWS = ROOT / "evidence" / "emit_gpu.jsonl"
FOLDER = ROOT / "evidence" / "emit_gpu"
FLOAT64_TOLERANCE = 1e-10
"""Of the largest number of an output: what every emission in float64 is held to."""
FLOAT32_FACTOR, FLOAT32_FLOOR = 16, 1e-5
"""The GPU adds in another order than the CPU, whose own error in float32 says how far such roundings carry here: a
maximum over few numbers, so that another draw of the same kind may be several times as large."""
FLIPPED = 1e-3
"""Beyond it float32 on the CPU has taken another choice than float64."""
CELLS = ("float64", "float32", "compiled")
Tensors = list[torch.Tensor]


def pack(folder: Path) -> None:
    """Copies of the files of `tests/export_architectures.py` (opset 18), and their inputs."""
    sys.path.insert(0, str(Path(__file__).parent))
    from architectures.exporting import model_path, samples
    from export_architectures import everything

    folder.mkdir(parents=True, exist_ok=True)
    for name, architecture in everything().items():
        path = model_path(architecture, "dynamo-18", "default")
        if not path.exists():
            print(f"{name}: not exported")
            continue
        shutil.copyfile(path, folder / f"{name}.onnx")
        found = {f"{i}/{k}": a for i, s in enumerate(samples(architecture, "default")) for k, a in s.inputs.items()}
        np.savez(folder / f"{name}.npz", **found)


class Subject:
    def __init__(self, path: Path) -> None:
        self.program = capture_onnx(path)
        names = [value.name for value in self.program.graph.inputs]
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            self.feeds = [[torch.from_numpy(stored[f"{place}/{name}"]) for name in names] for place in range(2)]
        self.exact = self.run(emit_fx(self.program, dtype="float64"), "cpu")

    def run(self, module: Callable[..., Any], device: str) -> list[Tensors]:
        with torch.no_grad():
            found = [module(*(tensor.to(device) for tensor in feed)) for feed in self.feeds]
        return [[t.cpu() for t in (f if isinstance(f, (list, tuple)) else [f])] for f in found]

    def error(self, found: Sequence[Tensors]) -> float:
        """The largest difference, as a fraction of the largest number of that output; infinite for another kind."""
        pairs = [p for want, got in zip(self.exact, found, strict=True) for p in zip(want, got, strict=True)]
        return max(_difference(want, got) for want, got in pairs)


def _difference(want: torch.Tensor, got: torch.Tensor) -> float:
    if want.shape != got.shape or want.is_floating_point() != got.is_floating_point():
        return math.inf
    if not want.is_floating_point():
        return 0.0 if torch.equal(want, got) else math.inf
    if not want.numel():
        return 0.0
    error = float((want - got.double()).abs().max() / want.abs().max())
    return math.inf if math.isnan(error) else error


def cells(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    subject = Subject(path)
    found = subject.error(subject.run(emit_fx(subject.program, dtype="float64").to("cuda"), "cuda"))
    yield "float64", {"error": found, "passed": found <= FLOAT64_TOLERANCE}
    single = emit_fx(subject.program)
    at_home = subject.error(subject.run(single, "cpu"))
    limit = max(FLOAT32_FACTOR * at_home, FLOAT32_FLOOR)
    moved = single.to("cuda")
    for cell in CELLS[1:]:
        module = torch.compile(moved, fullgraph=True, dynamic=True) if cell == "compiled" else moved
        found = subject.error(subject.run(module, "cuda"))
        yield cell, {"error": found, "cpu": at_home, "passed": found <= limit}


def examine(path: Path) -> list[dict[str, Any]]:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    # Convolutions would else round their operands to 10 bits, whatever was emitted.
    torch.backends.cudnn.allow_tf32 = False
    logging.disable(logging.WARNING)
    wanted, rows = list(CELLS), []
    start = time.perf_counter()
    try:
        for cell, row in cells(path):
            wanted.remove(cell)
            rows.append({"name": path.stem, "cell": cell, **row, "seconds": round(time.perf_counter() - start, 1)})
            start = time.perf_counter()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
        detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        rows += [{"name": path.stem, "cell": cell, "passed": False, "detail": detail} for cell in wanted[:1]]
    return rows


def run(folder: Path, output: Path, jobs: int, limit_s: float) -> None:
    """Row by row, as the machine may be lent for a while only."""
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: run this on a machine that has one")
    packages = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("torch", "onnx", "onnx_ir"))
    machine = {"device": torch.cuda.get_device_name(), "versions": packages}
    paths = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_size)
    start = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=4) as pool, output.open("a") as file:
        results = pool.imap_unordered(examine, paths)
        for _ in paths:
            try:
                rows = results.next(max(1.0, limit_s - (time.monotonic() - start)))
            except multiprocessing.TimeoutError:
                print("stopped: the time is over")
                pool.terminate()
                break
            for row in rows:
                file.write(json.dumps({**row, **machine}) + "\n")
                outcome = "passed" if row["passed"] else "FAILED"
                print(row["name"], row["cell"], outcome, row.get("detail", ""), flush=True)
            file.flush()


def table() -> str:
    rows = {(row["name"], row["cell"]): row for row in map(json.loads, ROWS.read_text().splitlines())}
    names = list(dict.fromkeys(name for name, _ in rows))
    machine = next(iter(rows.values()))
    lines = [
        "# Emitted modules on a GPU",
        "",
        f"Written by `make evidence-emit_gpu`: {machine['device']}, {machine['versions']}.",
        "Largest difference from the module on the CPU in float64, as a fraction of the output's largest number,",
        "at two bindings of the dynamic dims; `CPU` is float32 on the CPU. Where that is off by more than 1e-3, a",
        "rounding flips a choice (a bucket of positions), and nothing is said of float32.",
        "",
    ]
    for cell in CELLS:
        every = [row for (_, c), row in rows.items() if c == cell]
        of_cell = [row for row in every if row.get("cpu", 0.0) <= FLIPPED]
        errors = [row["error"] for row in of_cell if row["passed"]]
        worst = f" (worst {max(errors):.0e})" if errors else ""
        untold = f", {len(every) - len(of_cell)} untold" if len(every) > len(of_cell) else ""
        lines.append(f"- {cell}: {len(errors)} of {len(of_cell)} passed{worst}{untold}")
    lines += ["", "| architecture | float64 | float32 | compiled | CPU |", "|---|---|---|---|---|"]
    for name in names:
        shown = [_shown(rows.get((name, cell))) for cell in CELLS]
        at_home = rows.get((name, "float32"), {}).get("cpu")
        lines.append(f"| {name} | {' | '.join(shown)} | {'' if at_home is None else f'{at_home:.0e}'} |")
    failed = [f"- {n}, {c}: {row.get('detail', row.get('error'))}" for (n, c), row in rows.items() if not row["passed"]]
    return "\n".join([*lines, "", *failed]).rstrip() + "\n"


def _shown(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['error']:.0e}" if row["passed"] else "**failed**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", nargs="?", choices=("pack", "run", "table"), help="all three if none is given")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--output", type=Path, default=ROWS)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3600, help="when to stop")
    options = parser.parse_args()
    if options.step in ("pack", None):
        pack(options.folder)
    if options.step in ("run", None):
        run(options.folder, options.output, options.jobs, options.seconds)
    if options.step in ("table", None):
        TABLE.write_text(table())


if __name__ == "__main__":
    main()
