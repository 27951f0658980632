"""Writes a folder that a mobile application can ship: `.ort` models, operator configuration, manifest.

`portable.ort` needs no custom operators: `.ort` files hold no function bodies, so the converter inlines them.
`kernels.ort` keeps the calls of `opgraft.kernels` and runs where a kernel library of the device is registered.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir
from opgraft.backends.mobile.convert import OPERATORS_CONFIG
from opgraft.backends.onnxruntime.executor import Executor, SessionHandle
from opgraft.ir.capture import capture
from opgraft.ir.errors import ContractError, ExecutionError, OutputError, UsageError
from opgraft.ir.program import Program
from opgraft.ir.verify import Outcome, Verification, Verifier

MANIFEST = "manifest.json"
TIME_LIMIT_S = 600


@dataclass(frozen=True)
class MobileBundle:
    """A written bundle; `manifest` is the content of its `manifest.json`."""

    folder: Path
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class _Variant:
    """A model of the bundle, and the library that holds its custom operators on this machine."""

    name: str
    model: Path
    library: Path | None = None


def export_mobile(
    model_path: Path,
    out_dir: Path,
    *,
    kernels_model: Path | None = None,
    kernels_library: Path | None = None,
    force: bool = False,
    seed: int = 0,
) -> MobileBundle:
    """Converts `model_path`, compares each converted model with it on seeded inputs, and writes the bundle.

    `kernels_model` is the same model with calls of `opgraft.kernels` and `kernels_library` the library they
    were built into for this machine; the library itself is not part of the bundle.

    Raises: OutputError for a folder that is not empty without `force`, InputError for an invalid model,
    ExecutionError when the converter fails, ContractError when a converted model computes something else.
    """
    if (kernels_model is None) != (kernels_library is None):
        raise UsageError("a model with kernels and its kernel library go together: give both or none")
    out_dir = out_dir.absolute()
    _check_destination(out_dir, force)
    program = capture(model_path)
    variants = [_Variant("portable", model_path)]
    if kernels_model is not None:
        variants.append(_Variant("kernels", kernels_model, kernels_library))
    try:
        # A sibling, so that publishing is a rename within one file system.
        scratch = Path(tempfile.mkdtemp(dir=out_dir.parent, prefix=f".{out_dir.name}-"))
    except OSError as error:
        raise OutputError(f"cannot write beside it: {error}", where=str(out_dir)) from error
    try:
        _convert(scratch, variants, where=str(model_path))
        manifest = _manifest(scratch, program, model_path, variants, seed)
        text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
        (scratch / MANIFEST).write_text(text + "\n", encoding="utf-8")
        scratch.chmod(0o755)
        _publish(scratch, out_dir)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write the bundle: {error}", where=str(out_dir)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return MobileBundle(out_dir, manifest)


def _check_destination(out_dir: Path, force: bool) -> None:
    where = str(out_dir)
    if not out_dir.parent.is_dir():
        raise OutputError("the folder above it does not exist", where=where, remedy="create it first")
    if out_dir.is_symlink() or (out_dir.exists() and not out_dir.is_dir()):
        raise OutputError("exists and is not a folder", where=where, remedy="choose another name")
    if not out_dir.exists() or not any(out_dir.iterdir()):
        return
    if not force:
        raise OutputError("the folder exists and is not empty", where=where, remedy="use --force to replace it")
    if not (out_dir / MANIFEST).is_file():
        # Force replaces a bundle, it does not delete somebody's files.
        raise OutputError("the folder is not a bundle", where=where, remedy="empty it or choose another name")


def _publish(scratch: Path, out_dir: Path) -> None:
    if not out_dir.exists():
        os.rename(scratch, out_dir)
        return
    old = Path(tempfile.mkdtemp(dir=out_dir.parent, prefix=f".{out_dir.name}-old-"))
    # A folder cannot replace one that is not empty in one step: the old bundle steps aside and comes back if
    # the new one cannot take its place.
    os.rename(out_dir, old)
    try:
        os.rename(scratch, out_dir)
    except OSError:
        os.rename(old, out_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _convert(folder: Path, variants: Iterable[_Variant], where: str) -> None:
    jobs = [(v.name, str(v.model.absolute()), str(v.library.absolute()) if v.library else None) for v in variants]
    finished = _run_module("opgraft.backends.mobile.convert", [str(folder), json.dumps(jobs)])
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"exit code {finished.returncode}"
        raise ExecutionError(f"the runtime's converter failed: {reason}", where=where)


def _run_module(module: str, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    # Not inherited: the level would change what the bundle holds without being seen in it.
    environment = {k: v for k, v in os.environ.items() if k != "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"}
    try:
        return subprocess.run(
            [sys.executable, "-P", "-m", module, *arguments],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise ExecutionError(f"{module} took more than {TIME_LIMIT_S} s") from error


def _manifest(folder: Path, program: Program, model_path: Path, variants: list[_Variant], seed: int) -> dict[str, Any]:
    from opgraft import __version__

    with Executor() as executor:
        versions = executor.versions()
        models = {
            f"{variant.name}.ort": _verify(folder, program, model_path, variant, executor, seed) for variant in variants
        }
    config = (folder / OPERATORS_CONFIG).read_text(encoding="utf-8")
    return {
        "created_by": f"opgraft {__version__}",
        "onnxruntime": versions["onnxruntime"],
        "opset": dict(program.model.opset_imports),
        "inputs": [_describe(value) for value in program.graph.inputs if not value.is_initializer()],
        "outputs": [_describe(value) for value in program.graph.outputs],
        "operators": read_operators(config),
        "files": {path.name: _fingerprint(path) for path in sorted(folder.iterdir())},
        "models": models,
        "mobile_usability": _usability(model_path),
    }


class _WithLibrary:
    """An executor that loads every model with a custom-operator library."""

    def __init__(self, executor: Executor, library: Path) -> None:
        self._executor = executor
        self._libraries = [library]
        self.run = executor.run
        self.release = executor.release

    def load(self, model: Path | str | bytes, *, optimized: bool = False) -> SessionHandle:
        return self._executor.load(model, optimized=optimized, libraries=self._libraries)


def _verify(
    folder: Path, program: Program, model_path: Path, variant: _Variant, executor: Executor, seed: int
) -> dict[str, Any]:
    runner = _WithLibrary(executor, variant.library) if variant.library else executor
    found: Verification = Verifier(program, model_path, runner, seed=seed).verify(
        folder / f"{variant.name}.ort", "numeric"
    )
    if found.outcome is Outcome.REFUTED:
        raise ContractError(f"the converted model computes something else: {found.reason}", where=f"{variant.name}.ort")
    return {
        "verification": found.outcome.value,
        "reason": found.reason,
        "cases": list(found.cases),
        "max_abs_error": found.max_abs_error,
        "tolerance": found.tolerance,
    }


def _describe(value: onnx_ir.Value) -> dict[str, Any]:
    dims = None
    if value.shape is not None:
        dims = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
    return {"name": value.name, "dtype": str(value.dtype).lower() if value.dtype else None, "dims": dims}


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size_bytes": path.stat().st_size}


def read_operators(config: str) -> dict[str, list[str]]:
    """`domain;opset;Op{types},Op` lines of the operator configuration as {"domain;opset": [operators]}."""
    found: dict[str, list[str]] = {}
    for line in config.splitlines():
        if line.startswith("#") or line.count(";") < 2:
            continue
        domain, opset, entries = line.split(";", 2)
        depth, name, names = 0, "", []
        for character in entries + ",":
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0 and character == ",":
                names.append(name)
                name = ""
            elif depth == 0 and character != "}":
                name += character
        found[f"{domain};{opset}"] = names
    return found


def _usability(model_path: Path) -> str:
    """What the runtime's checker says of NNAPI and CoreML, or why it says nothing."""
    module = "onnxruntime.tools.check_onnx_model_mobile_usability"
    finished = None
    with suppress(ExecutionError):
        finished = _run_module(module, [str(model_path.absolute())])
    if finished is None or finished.returncode != 0:
        return "not available: the runtime's checker failed on this model"
    lines = [line.removeprefix("INFO:").strip() for line in finished.stderr.splitlines()]
    # The first line names the file's place on this machine.
    return "\n".join(line for line in lines if line and str(model_path.absolute()) not in line)
