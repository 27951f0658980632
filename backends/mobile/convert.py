"""Converts models to the runtime's mobile format with the runtime's own converter; runs as a child process.

    python -P -m opgraft.backends.mobile.convert OUT_FOLDER '[[NAME, MODEL, LIBRARY or null], ...]'

Writes NAME.ort for each model and one `required_operators_and_types.config` for them together.

Two conversions of one model may differ in bytes: the runtime writes weights in the order of hash tables that
depend on addresses. What they compute is the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

OPERATORS_CONFIG = "required_operators_and_types.config"


def convert(folder: Path, jobs: list[tuple[str, str, str | None]]) -> None:
    from onnxruntime.tools.convert_onnx_models_to_ort import OptimizationStyle, convert_onnx_models_to_ort
    from onnxruntime.tools.ort_format_model import create_config_from_models

    converted = []
    for name, model, library in jobs:
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            convert_onnx_models_to_ort(
                Path(model),
                Path(scratch),
                [OptimizationStyle.Fixed],
                custom_op_library_path=Path(library) if library else None,
                # Leaves out layouts that only the machine of the conversion can run.
                target_platform="arm",
            )
            (made,) = Path(scratch).glob("*.ort")
            converted.append(made.replace(folder / f"{name}.ort"))
    config = folder / OPERATORS_CONFIG
    create_config_from_models(converted, config, enable_type_reduction=True)
    # The converter notes where the models lay on this machine.
    config.write_text(config.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), json.loads(sys.argv[2]))
