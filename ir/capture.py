"""`capture`: any source the product takes, as a Program."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opgraft.ir.errors import UsageError
from opgraft.ir.program import Program

_TORCH_SUFFIXES = (".pt", ".pth", ".pt2", ".bin", ".safetensors")


def capture(
    source: Any,
    example_args: Any = (),
    example_kwargs: Mapping[str, Any] | None = None,
    **torch_options: Any,
) -> Program:
    """Bring `source` into the IR.

    `source` is a path to an `.onnx` file, the bytes of one, a `ModelProto`, a `torch.nn.Module`, an
    `fx.GraphModule` or an `ExportedProgram`; the last three with example inputs and the options of
    `capture_torch` (`dynamic_shapes`, `opset`, `input_names`, `output_names`).

    Raises InputError when the source is invalid, UsageError when it is of another kind.
    """
    if isinstance(source, Program):
        return source
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.suffix.lower() in _TORCH_SUFFIXES:
            from opgraft.ir.capture_torch import load_torch_file

            load_torch_file(path)
        return _capture_onnx(path)
    if isinstance(source, bytes) or type(source).__name__ == "ModelProto":
        return _capture_onnx(source)
    module_names = {base.__module__.split(".")[0] for base in type(source).__mro__}
    if "torch" in module_names:
        return _capture_torch(source, example_args, example_kwargs, torch_options)
    raise UsageError(
        f"cannot capture a {type(source).__name__}", remedy="give an .onnx path, a ModelProto or a torch module"
    )


def _capture_onnx(source: Any) -> Program:
    from opgraft.ir.capture_onnx import capture_onnx

    return capture_onnx(source)


def _capture_torch(source: Any, args: Any, kwargs: Mapping[str, Any] | None, options: dict[str, Any]) -> Program:
    from opgraft.ir.capture_torch import capture_torch

    found = capture_torch(source, args, kwargs, **options)
    return Program(
        found.model,
        notes=list(found.warnings),
        reference=found.reference,
        reference_float64=found.reference_float64,
        example_inputs=found.example_inputs,
    )
