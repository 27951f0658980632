"""Fill the cache of exported models: `python tests/export_architectures.py [NAME ...] [--forms F ...] [--sizes S ...]`.

Resumable: what is in the cache is not exported again. Every architecture runs in a process of its own, one at a time.
Prints a row per model: nodes, seconds, and the largest difference between ONNX Runtime and torch at two bindings of
the dims, relative to the standard deviation of the output; or the exporter's message.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SIZES = ("default", "colliding_heads", "colliding_channels", "colliding")
TIMEOUT_S = 3600


def main() -> None:
    from architectures import FORMS

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all if none are given")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--recorded", action="store_true", help="only print what was exported earlier")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.ERROR)
    for architecture in everything().values():
        _ = architecture.source_hash  # of the source as imported, though the file be edited meanwhile
    if options.recorded:
        for name in options.names or everything():
            for size, form, record in records(name, options.forms, options.sizes):
                if record.exists():
                    print_row(name, size, form, json.loads(record.read_text()))
        return
    for name in options.names or everything():
        process = multiprocessing.get_context("fork").Process(
            target=export_all, args=(name, options.forms, options.sizes)
        )
        process.start()
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.terminate()
            process.join()
            print(f"{name}: stopped after {TIMEOUT_S} s", flush=True)
        elif process.exitcode:
            print(f"{name}: ended with {process.exitcode}", flush=True)


def everything() -> dict[str, Any]:
    """The list, and the models of `examples/zoo`."""
    from architectures import ARCHITECTURES
    from architectures.zoo_blocks import zoo_architectures

    return {**ARCHITECTURES, **zoo_architectures()}


def records(name: str, forms: list[str], sizes: list[str]) -> Iterator[tuple[str, str, Path]]:
    """Sizes, form, and the file that tells how the export went; raw forms come before those made from them."""
    from architectures import FORMS
    from architectures.exporting import model_path

    architecture = everything()[name]
    for size in (size for size in sizes if size in architecture.presets):
        for form in (form for form in FORMS if form in forms):
            yield size, form, model_path(architecture, form, size).with_suffix(".json")


def export_all(name: str, forms: list[str], sizes: list[str]) -> None:
    from architectures.exporting import write_file

    for size, form, record in records(name, forms, sizes):
        row = json.loads(record.read_text()) if record.exists() else measured(name, form, size)
        if "broken" not in row:
            write_file(record, json.dumps(row).encode())
        print_row(name, size, form, row)


def print_row(name: str, size: str, form: str, row: dict[str, Any]) -> None:
    print(f"{name:20} {size:18} {form:14} {describe(row)}", flush=True)


def measured(name: str, form: str, size: str) -> dict[str, Any]:
    from architectures import ExportFailedError, export, samples

    architecture = everything()[name]
    start = time.perf_counter()
    try:
        path = export(architecture, form, size)
        expected = samples(architecture, size)
    except ExportFailedError as error:
        return {"failed": str(error)}
    except Exception as error:  # noqa: BLE001 - one entry that cannot be built must not end the run
        return {"broken": f"{type(error).__name__}: {error}"}
    seconds = round(time.perf_counter() - start, 1)
    nodes, differences = run(path, expected)
    return {"nodes": nodes, "seconds": seconds, "differences": differences}


def run(path: Path, expected: list[Any]) -> tuple[int, list[float | str]]:
    import numpy as np
    import onnx
    import onnxruntime

    differences: list[float | str] = []
    onnxruntime.set_default_logger_severity(4)
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001
        return len(onnx.load(path).graph.node), [f"{type(error).__name__}: {error}"]
    taken = {value.name for value in session.get_inputs()}
    for sample in expected:
        try:
            found = session.run(list(sample.outputs), {k: v for k, v in sample.inputs.items() if k in taken})
        except Exception as error:  # noqa: BLE001
            differences.append(f"{type(error).__name__}: {error}")
            continue
        differences.append(
            max(
                float(np.abs(a.astype(np.float64) - b).max() / max(float(b.std()), 1e-30))
                for a, b in zip(found, sample.outputs.values(), strict=True)
            )
        )
    return len(onnx.load(path).graph.node), differences


def describe(row: dict[str, Any]) -> str:
    for key in ("failed", "broken"):
        if key in row:
            return f"{key}: {' '.join(row[key].split())[:200]}"
    shown = [part[:120] if isinstance(part, str) else f"{part:.1e}" for part in row["differences"]]
    return f"{row['nodes']:5} nodes {row['seconds']:6.1f} s  {'  '.join(shown)}"


if __name__ == "__main__":
    main()
