"""One-node models of the capability probe."""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from onnx import helper
from opgraft.backends.onnxruntime.capability_cases import Case
from opgraft.backends.onnxruntime.protocol import Array

# Old enough for every runtime that is asked, new enough for every element type that it is asked about.
_IR_VERSION = 10


def cast_inputs(case: Case, dtype: str) -> dict[str, Array]:
    """The inputs that are present; floating-point ones in `dtype`, or float32 if that is an integer type."""
    floating = np.dtype("float32" if dtype.startswith("int") else getattr(ml_dtypes, dtype, dtype))
    return {
        name: value.astype(floating) if value.dtype.kind == "f" else value
        for name, value in case.inputs.items()
        if value is not None
    }


def build_model(case: Case, inputs: Mapping[str, Array], opset: int) -> bytes:
    """Graph inputs for all inputs of the case, outputs y0, y1, ... of undeclared type and shape."""
    outputs = [f"y{index}" for index in range(case.n_outputs)]
    node = helper.make_node(
        case.operator,
        [name if value is not None else "" for name, value in case.inputs.items()],
        outputs,
        domain=case.domain,
        **case.attributes,
    )
    graph = helper.make_graph(
        [node],
        "probe",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    imports = [helper.make_opsetid("", opset)]
    if case.domain:
        imports.append(helper.make_opsetid(case.domain, 1))
    model: bytes = helper.make_model(graph, opset_imports=imports, ir_version=_IR_VERSION).SerializeToString()
    return model
