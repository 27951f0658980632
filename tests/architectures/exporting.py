"""Models of the list as `.onnx` files in several export forms, with sample inputs and torch's outputs, cached.

The folder is that of the environment variable OPGRAFT_MODELS, or `tests/.models`. A file's name holds the sizes, the
form and a hash of all that it depends on: the entry's source, the sharpening, and the versions of torch, transformers
and onnxscript. A failed export leaves a text file with the exporter's message in place of the model.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from architectures.architecture import Architecture, Built
from architectures.sharpening import sharpen, tensors_of

Arrays = dict[str, np.ndarray]
_SOURCES = ("sharpening.py", "scores.py")


_raw_programs: dict[tuple[Built, int], Any] = {}


class ExportFailedError(Exception):
    """The exporter's own message, the same again when the failure is found in the cache."""


@dataclass(frozen=True)
class Form:
    """How a module becomes a graph."""

    exporter: str
    """One of dynamo, torchscript and capture, which is `opgraft.ir.capture_torch`."""
    opset: int
    optimize: bool = True


FORMS: Mapping[str, Form] = {
    "dynamo-18-raw": Form("dynamo", 18, optimize=False),
    "dynamo-18": Form("dynamo", 18),
    "dynamo-23": Form("dynamo", 23),
    "dynamo-25-raw": Form("dynamo", 25, optimize=False),
    "dynamo-25": Form("dynamo", 25),
    "torchscript": Form("torchscript", 17),
    "capture": Form("capture", 18),
}
"""Opset 23 is the newest to which the exporter's own fusions are keyed, 25 the newest it writes."""


@dataclass(frozen=True)
class Sample:
    """Inputs at one binding of the dims, and what torch makes of them."""

    inputs: Arrays
    outputs: Arrays


def models_folder() -> Path:
    given = os.environ.get("OPGRAFT_MODELS")
    return Path(given) if given else Path(__file__).parent.parent / ".models"


@lru_cache(maxsize=2)
def sharpened(architecture: Architecture, sizes: str) -> Built:
    """The module whose exports and samples the cache holds."""
    return sharpen(architecture.build(sizes))


def export(architecture: Architecture, form: str, sizes: str) -> Path:
    """The model as a file, exported now or earlier.

    Raises:
        ExportFailedError: the exporter cannot write it in this form.
    """
    path = model_path(architecture, form, sizes)
    failure = path.with_suffix(".failed")
    if failure.exists():
        raise ExportFailedError(failure.read_text())
    if not path.exists():
        built = sharpened(architecture, sizes)
        try:
            content = _export(built, FORMS[form])
        except Exception as error:
            message = _reason(error)
            write_file(failure, message.encode())
            raise ExportFailedError(message) from error
        write_file(path, content)
    return path


def _reason(error: BaseException) -> str:
    """What the exporter says, the root of the matter first: its own message tells stages and general advice."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    parts = (root, error) if root is not error else (error,)
    text = "\n\n".join(f"{type(part).__name__}: {part}" for part in parts)
    return re.sub(r"\x1b\[\d*m", "", text)


def model_path(architecture: Architecture, form: str, sizes: str) -> Path:
    """Where `export` keeps the model; it need not exist."""
    return models_folder() / architecture.name / f"{sizes}.{form}.{_key(architecture, FORMS[form])}.onnx"


def samples(architecture: Architecture, sizes: str) -> list[Sample]:
    """Two samples: at the first and at the last value of every dim; of other seeds, so two also where all is static."""
    path = models_folder() / architecture.name / f"{sizes}.samples.{_key(architecture, None)}.npz"
    if not path.exists():
        built = sharpened(architecture, sizes)
        arrays: Arrays = {}
        for place, binding in enumerate(built.bindings()):
            inputs = built.inputs(seed=10 + place, **binding)
            with torch.no_grad():
                outputs = tensors_of(built.module(**inputs))
            arrays.update({f"{place}/in/{name}": tensor.numpy() for name, tensor in inputs.items()})
            names = output_names(len(outputs))
            arrays.update({f"{place}/out/{name}": tensor.numpy() for name, tensor in zip(names, outputs, strict=True)})
        _write_with(path, lambda file: np.savez(file, **arrays))
    with np.load(path, allow_pickle=False) as stored:
        found = [{"in": {}, "out": {}} for _ in range(2)]  # type: list[dict[str, Arrays]]
        for key in stored.files:
            place, side, name = key.split("/", 2)
            found[int(place)][side][name] = stored[key]
    return [Sample(part["in"], part["out"]) for part in found]


def output_names(n_outputs: int) -> list[str]:
    return ["result"] if n_outputs == 1 else [f"result_{place}" for place in range(n_outputs)]


def _export(built: Built, form: Form) -> bytes:
    inputs = built.inputs()
    with torch.no_grad():
        names = output_names(len(tensors_of(built.module(**inputs))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if form.exporter == "torchscript":
            return _torchscript(built, inputs, names, form)
        model = _captured(built, inputs, names, form) if form.exporter == "capture" else _dynamo(built, names, form)
    import onnx
    import onnx_ir

    _require_dynamic(model, built)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def _dynamo(built: Built, names: list[str], form: Form) -> Any:
    """Optimizing is the exporter's last step, so a graph just made in its raw form needs that step only."""
    program = _raw_programs.pop((built, form.opset), None) if form.optimize else None
    if program is None:
        inputs = built.inputs()
        program = torch.onnx.export(
            built.module,
            kwargs=dict(inputs),
            dynamo=True,
            opset_version=form.opset,
            optimize=form.optimize,
            dynamic_shapes=built.dynamic_shapes,
            input_names=list(inputs),
            output_names=names,
            verbose=False,
        )
    elif form.optimize:
        program.optimize()
    if not form.optimize:
        _raw_programs.clear()
        _raw_programs[built, form.opset] = program
    return program.model  # type: ignore[union-attr]


def _captured(built: Built, inputs: Mapping[str, torch.Tensor], names: list[str], form: Form) -> Any:
    from opgraft.ir.capture_torch import capture_torch

    return capture_torch(
        built.module,
        example_kwargs=dict(inputs),
        dynamic_shapes=built.dynamic_shapes,
        opset=form.opset,
        output_names=names,
    ).model


def _torchscript(built: Built, inputs: Mapping[str, torch.Tensor], names: list[str], form: Form) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        torch.onnx.export(
            built.module,
            (),
            str(path),
            kwargs=dict(inputs),
            dynamo=False,
            opset_version=form.opset,
            dynamic_axes={name: dict(axes) for name, axes in built.dynamic_shapes.items() if axes},
            input_names=list(inputs),
            output_names=names,
        )
        return path.read_bytes()


def _require_dynamic(model: Any, built: Built) -> None:
    """An exporter that meets a fixed size keeps to it in silence."""
    fixed = [
        f"{value.name}[{axis}]"
        for value in model.graph.inputs
        for axis in built.dynamic_shapes.get(value.name, {})
        if isinstance(value.shape[axis], int)
    ]
    if fixed:
        raise ValueError(f"the exporter made dynamic dims static: {', '.join(fixed)}")


@cache
def _versions() -> str:
    return " ".join(importlib.metadata.version(name) for name in ("torch", "transformers", "onnxscript"))


def _key(architecture: Architecture, form: Form | None) -> str:
    sources = "".join(Path(__file__).with_name(name).read_text() for name in _SOURCES)
    text = "\n".join((architecture.source_hash, repr(form), _versions(), sources))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_file(path: Path, content: bytes) -> None:
    _write_with(path, lambda file: file.write(content))


def _write_with(path: Path, write: Callable[[Any], Any]) -> None:
    """Into a file beside `path`, then moved there: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", delete=False) as file:
        try:
            write(file)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
