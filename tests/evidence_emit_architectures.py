"""Every architecture of the list as an emitted torch module in float64, against torch and the reference evaluator.

    python tests/evidence_emit_architectures.py [NAME ...] [--write]

One JSON row per architecture and cell in `evidence/emit_architectures.jsonl`; rows of the present versions and sources
are not made again, so that an interrupted run goes on. Writes `docs/emit_fx.md` after a full run, or with `--write`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from architectures import ExportFailedError, export, sharpen, sharpened
from emitted_modules_table import PASSED, counts, table
from export_architectures import everything
from float64_oracles import Evaluator, quiet, relative_error, run_torch, run_torch_rounded, widened
from opgraft.ir.capture import capture
from opgraft.ir.capture_onnx import capture_onnx
from opgraft.ir.capture_torch_reference import copy_module
from opgraft.ir.emit_fx import emit_fx
from opgraft.ir.errors import InputError
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes
from opgraft.passes._pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "evidence" / "emit_architectures.jsonl"
TABLE = ROOT / "docs" / "emit_fx.md"
FAILED, NO_EXPORT = "failed", "export failed"
TOLERANCE = 1e-10
"""Of the largest output: some thousands of roundings of 1e-16 stay far below, one number that was rounded to float32 on
the way (6e-8) is far above."""
HEAD_DIM = 16
"""With heads of this width the scale of attention is 1/4, the same number in float32 and float64."""
SOURCES = (*("ir/fx/*.py", "ir/emit_fx.py", "ir/capture_torch*.py", "ir/element_types.py", "ir/integer_contents.py"),)
PASSES = ("passes/simplify/*.py",)
"""What a row depends on beside the architecture's own source. Rules of shapes, which change often, only decide between
equal forms of a node; `*_contrib.py` have operators that no exporter writes. What equals a reference goes on to do so
when the references are mended; what failed is tried again in every run."""
BACKEND = "eager"
"""Of torch.compile: the whole graph is traced by Dynamo, with dynamic sizes, and run operator by operator. Generating
code is not the emission's affair, and takes minutes per model."""
TIMEOUT_S = 1800
Tensors = list[torch.Tensor]
Rows = dict[tuple[str, str], dict[str, Any]]


@cache
def _hash(source: str, patterns: Sequence[str]) -> str:
    made = hashlib.sha256(source.encode())
    paths = sorted(found for pattern in patterns for found in ROOT.glob(pattern))
    for path in (path for path in paths if not path.stem.endswith("_contrib")):
        made.update(path.read_bytes())
    return made.hexdigest()[:12]


def versions(source: str = "", cell: str = "") -> str:
    """Of packages and of what a cell of an architecture with that source depends on."""
    packages = (f"{name} {importlib.metadata.version(name)}" for name in ("onnx", "torch", "transformers", "timm"))
    return ", ".join([*packages, _hash(source, SOURCES + PASSES if cell == "simplified" else SOURCES)])


class Subject:
    """A built architecture, its copy in float64, and inputs at two bindings of its dynamic dims."""

    def __init__(self, built: Any) -> None:
        self.built = built
        self.double = copy_module(built.module, double=True)
        self.feeds = [
            {name: widened(tensor) for name, tensor in built.inputs(seed=10 + place, **binding).items()}
            for place, binding in enumerate(built.bindings())
        ]
        self.shapes = "; ".join(
            ", ".join(f"{n} {'x'.join(map(str, t.shape)) or 'scalar'}" for n, t in f.items()) for f in self.feeds
        )

    @cached_property
    def exact(self) -> list[Tensors]:
        return [run_torch(self.double, feed) for feed in self.feeds]

    @cached_property
    def rounded(self) -> list[Tensors]:
        return [run_torch_rounded(self.double, feed) for feed in self.feeds]

    @cached_property
    def captured(self) -> Program:
        return capture(self.double, (), self.feeds[0], dynamic_shapes=self.built.dynamic_shapes)

    @cached_property
    def simplified(self) -> Program:
        program = self.captured.clone()
        Pipeline.parse("simplify").run(program)
        return program

    def run(self, program: Program, module: Callable[..., Any]) -> list[Tensors]:
        names = [value.name for value in program.graph.inputs]
        with torch.no_grad():
            results = [module(*(feed[name] for name in names)) for feed in self.feeds]
        return [list(result) if isinstance(result, list | tuple) else [result] for result in results]

    def held(self, program: Program, found: Sequence[Tensors], *, captured: bool) -> dict[str, Any]:
        """The first reference that agrees, or the differences from all."""
        errors: dict[str, float] = {}
        for oracle, wanted in self._references(program, captured):
            try:
                pairs = zip(wanted(), found, strict=True)
                errors[oracle] = max(relative_error(want, got) for want, got in pairs)
            except Exception as error:  # noqa: BLE001 - an oracle without an operator is none
                return _failed(f"{oracle}: {type(error).__name__}: {error}", errors=errors)
            if errors[oracle] <= TOLERANCE:
                return {"outcome": PASSED, "oracle": oracle, "error": errors[oracle], "errors": errors}
        return _failed("differs from every reference", errors=errors)

    def _references(self, program: Program, captured: bool) -> Iterator[tuple[str, Callable[[], list[Tensors]]]]:
        yield "torch", lambda: self.exact
        if captured:
            yield "torch, numbers in float32", lambda: self.rounded
        yield "evaluator", lambda: [Evaluator(program)(feed) for feed in self.feeds]

    def names_lost(self, program: Program, emitted: torch.nn.Module) -> tuple[int, list[str]]:
        """How many weights of the module are unchanged in the program, and which of these the emission renamed."""
        state = emitted.state_dict()
        kept, lost = 0, []
        for name, tensor in self.double.state_dict().items():
            value = program.graph.initializers.get(name)
            if value is None or value.const_value is None or not value.uses():
                continue
            if torch.equal(torch.from_numpy(value.const_value.numpy().copy()).to(tensor.dtype), tensor):
                kept += 1
                if name not in state or not torch.equal(state[name], tensor):
                    lost.append(name)
        return kept, lost

    def exported(self, program: Program, module: torch.fx.GraphModule) -> torch.nn.Module:
        """Through `torch.export`, with the dims dynamic that were."""
        placeholders = [node.target for node in module.graph.nodes if node.op == "placeholder"]
        names = [value.name or "" for value in program.graph.inputs]
        axes = self.built.dynamic_shapes
        shapes = {
            placeholder: dict.fromkeys(axes.get(name, {}), torch.export.Dim.AUTO)
            for placeholder, name in zip(placeholders, names, strict=True)
        }
        arguments = tuple(self.feeds[0][name] for name in names)
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=shapes).module()


def _failed(detail: str, **more: Any) -> dict[str, Any]:
    return {"outcome": FAILED, "detail": " ".join(detail.split())[:400], **more}


def compiled(module: torch.nn.Module) -> Callable[..., Any]:
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend=BACKEND, dynamic=True)


# -- cells -------------------------------------------------------------------------------------------------------------


def from_torch(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Captured in float64; then the same through a file; then after the simplification pipeline changed it."""
    program = subject.captured
    emitted = emit_fx(program, dtype="float64")
    kept, lost = subject.names_lost(program, emitted)
    row = subject.held(program, subject.run(program, emitted), captured=True)
    yield "torch", row | {"names": kept, "lost": lost, "shapes": subject.shapes}
    stored = capture_onnx(model_bytes(program))
    yield "file", subject.held(stored, subject.run(stored, emit_fx(stored, dtype="float64")), captured=True)
    program = subject.simplified
    emitted = emit_fx(program, dtype="float64")
    kept, lost = subject.names_lost(program, emitted)
    row = subject.held(subject.captured, subject.run(program, emitted), captured=True)
    nodes = [len(list(p.graph)) for p in (subject.captured, program)]
    yield "simplified", row | {"names": kept, "lost": lost, "nodes": nodes}


def from_export(subject: Subject, path: Path) -> dict[str, Any]:
    program = capture_onnx(path)
    found = subject.run(program, emit_fx(program, dtype="float64"))
    return subject.held(program, found, captured=False) | {"shapes": subject.shapes}


def again(subject: Subject, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    program = capture_onnx(path)
    emitted = emit_fx(program, dtype="float64")
    found = subject.run(program, emitted)
    yield "exported", same(subject, program, lambda: subject.exported(program, emitted), found)
    yield "compiled", same(subject, program, lambda: compiled(emitted), found)


def same(subject: Subject, program: Program, make: Callable[[], Any], found: Sequence[Tensors]) -> dict[str, Any]:
    """Against what the emitted module gave, which its own cell holds against the references."""
    try:
        again = subject.run(program, make())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a failure
        return _failed(f"{type(error).__name__}: {error}")
    error = max(relative_error(want, got) for want, got in zip(found, again, strict=True))
    return {"outcome": PASSED if error <= TOLERANCE else FAILED, "error": error, "detail": ""}


def subject_of(architecture: Any) -> Subject:
    """With heads of a width whose scale is exact, where the architecture can be built so."""
    sizes = replace(architecture.presets["default"], head_dim=HEAD_DIM)
    try:
        subject = Subject(sharpen(architecture.build(sizes)))
        _ = subject.captured
    except Exception:  # noqa: BLE001 - its widths may depend on one another, or on sizes in torch's exporter
        subject = Subject(sharpened(architecture, "default"))
    return subject


def is_twin(name: str) -> bool:
    """Whether the list has the same architecture under a shorter name; these come last."""
    return name.endswith(("_eager", "_maskless", "_sdpa"))


GROUPS: dict[str, tuple[str, ...]] = {
    "dynamo-18": ("dynamo-18",),
    "static": ("dynamo-18, static",),
    "dynamo-23": ("dynamo-23",),
    "torch": ("torch", "file", "simplified"),
    "again": ("exported", "compiled"),
}
STAGES = (("dynamo-18", "static", "dynamo-23"), ("torch", "again"))
"""Seconds per architecture first, minutes later."""
CELLS = ["torch", "file", "simplified", "dynamo-18", "dynamo-18, static", "dynamo-23", "exported", "compiled"]


def examine(architecture: Any, group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The cells of a group; where something raises, the first cell that is missing is the failure."""
    if group == "torch":
        yield from from_torch(subject_of(architecture))
        return
    static = next(name for name in ("colliding_heads", "colliding", "default") if name in architecture.presets)
    sizes = static if group == "static" else "default"
    path = export(architecture, "dynamo-23" if group == "dynamo-23" else "dynamo-18", sizes)
    subject = Subject(sharpened(architecture, sizes))
    if group == "again":
        yield from again(subject, path)
    else:
        yield GROUPS[group][0], from_export(subject, path)


def rows_of(name: str, architecture: Any, group: str) -> Iterator[dict[str, Any]]:
    cells = list(GROUPS[group])
    started = time.perf_counter()
    with quiet():
        try:
            for cell, found in examine(architecture, group):
                cells.remove(cell)
                seconds = round(time.perf_counter() - started, 1)
                yield {
                    "name": name,
                    "cell": cell,
                    **found,
                    "seconds": seconds,
                    "versions": versions(architecture.source_hash, cell),
                }
                started = time.perf_counter()
        except Exception as error:  # noqa: BLE001 - as above
            is_exporter = isinstance(error, ExportFailedError) or (
                group == "torch" and isinstance(error, InputError) and cells == list(GROUPS[group])
            )
            outcome = NO_EXPORT if is_exporter else FAILED
            for cell in cells:
                failed = _failed(f"{type(error).__name__}: {error}") | {"outcome": outcome}
                yield {"name": name, "cell": cell, **failed, "versions": versions(architecture.source_hash, cell)}


def recorded() -> Rows:
    """The last row of every cell, of whatever version."""
    entries = everything()
    lines = ROWS.read_text().splitlines() if ROWS.exists() else []
    return {(r["name"], r["cell"]): r for r in map(json.loads, lines) if r["name"] in entries and r["cell"] in CELLS}


def current(rows: Rows) -> Rows:
    """Those of the present versions and sources that did not fail."""
    sources = {name: entry.source_hash for name, entry in everything().items()}
    return {
        key: row
        for key, row in rows.items()
        if row["outcome"] != FAILED and row["versions"] == versions(sources[key[0]], key[1])
    }


def add_rows(name: str, architecture: Any, groups: Sequence[str]) -> None:
    with ROWS.open("a") as sink:
        for row in (row for group in groups for row in rows_of(name, architecture, group)):
            print(json.dumps(row), file=sink, flush=True)
            note = row["detail"] if row["outcome"] != PASSED else f"{row['error']:.1e} {row.get('oracle', '')}"
            print(name, row["cell"], row["outcome"], note, flush=True)


def run(names: Sequence[str]) -> None:
    """What is missing, each architecture in a process of its own: torch's compiler keeps memory."""
    rows = recorded()
    known = current(rows)
    ROWS.parent.mkdir(exist_ok=True)
    ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows.values()))
    entries = everything()
    for entry in entries.values():
        for cell in CELLS:
            versions(entry.source_hash, cell)  # of the sources as imported, though a file be edited meanwhile
    for stage, name in product(STAGES, names):
        groups = [group for group in stage if any((name, cell) not in known for cell in GROUPS[group])]
        if not groups:
            continue
        arguments = (name, entries[name], groups)
        process = multiprocessing.get_context("fork").Process(target=add_rows, args=arguments)
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.terminate()
            process.join()
        if process.exitcode:
            print(f"{name}: ended with {process.exitcode}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="architectures; all if none are given")
    parser.add_argument("--write", action="store_true", help="write the table after a part too")
    options = parser.parse_args()
    names = list(everything())
    run(options.names or sorted(names, key=is_twin))
    rows = recorded()
    n_earlier = len([r for r in rows.values() if r["outcome"] != FAILED]) - len(current(rows))
    if options.write or not options.names:
        settings = {"tolerance": TOLERANCE, "head_dim": HEAD_DIM, "backend": BACKEND, "n_earlier": n_earlier}
        TABLE.write_text(table(rows, names, CELLS, versions(), **settings))
    for cell in CELLS:
        print(f"{cell}: {counts([r for (_, c), r in rows.items() if c == cell])}")
    is_bad = any(row["outcome"] == FAILED or row.get("lost") for row in rows.values())
    return 1 if is_bad or n_earlier or any((n, c) not in rows for n in options.names or names for c in CELLS) else 0


if __name__ == "__main__":
    raise SystemExit(main())
