"""A refuted rewrite as files: the model before it, the model after it, and inputs on which they differ."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from opgraft.cli.given_inputs import write_inputs
from opgraft.ir.errors import OutputError
from opgraft.ir.external import all_tensors
from opgraft.ir.program import Program
from opgraft.ir.save import model_bytes

if TYPE_CHECKING:
    from opgraft.cli.driver import Driver
    from opgraft.cli.find_guilty import Failure

# A reproducer is for a bug report.
_MAX_WEIGHT_BYTES = 64 << 20


def write_reproducer(driver: Driver, failure: Failure) -> dict[str, str]:
    """Write `<output>.refuted/<pass>/{before.onnx,after.onnx,inputs.npz}` and return the files by their kind.

    Nothing is written in a dry run or without an output, nor for programs with many weights. A reproducer that cannot
    be written is left out: it must not cost the result.
    """
    folder = driver.reproducer_folder
    if folder is None or failure.before is None or failure.after is None:
        return {}
    if max(_weight_bytes(failure.before), _weight_bytes(failure.after)) > _MAX_WEIGHT_BYTES:
        return {}
    try:
        place = _new_folder(folder / failure.pass_name)
        files = {"before": place / "before.onnx", "after": place / "after.onnx"}
        files["before"].write_bytes(model_bytes(failure.before))
        files["after"].write_bytes(model_bytes(failure.after))
        if failure.case is not None and all(isinstance(a, np.ndarray) for a in failure.case.arrays.values()):
            files["inputs"] = place / "inputs.npz"
            write_inputs(files["inputs"], failure.case.arrays)
    except (OSError, OutputError, ValueError) as error:
        driver.report.notes.append(f"no reproducer of {failure.pass_name} could be written: {error}")
        return {}
    return {kind: str(path) for kind, path in files.items()}


def _weight_bytes(program: Program) -> int:
    return sum(t.nbytes for _, t in all_tensors(program.model))


def _new_folder(wanted: Path) -> Path:
    """A folder of that name, numbered when an earlier run left one."""
    for number in itertools.count(1):
        place = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        return place
    raise OutputError("no free name", where=str(wanted))
