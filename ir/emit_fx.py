"""A program as a `torch.fx.GraphModule`: from the ONNX IR alone, before or after passes changed it.

It is what a torch user gets back, and a second opinion on what a graph computes that shares nothing with ONNX Runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from opgraft.ir.errors import MissingExtraError, UsageError
from opgraft.ir.program import Program

if TYPE_CHECKING:
    import torch

_DTYPES = (None, "float32", "float64")


def emit_fx(program: Program, *, dtype: Literal["float32", "float64"] | None = None) -> torch.fx.GraphModule:
    """The main graph of `program` as torch operators.

    The module takes the graph's inputs in their order, or by name (characters that Python does not allow in names
    become underscores), and returns the outputs in their order; a single one is a plain tensor. With `dtype`,
    everything of a standard floating-point type is of that one instead: weights, constants, casts and inputs, which
    may be given in their own type.

    Weights keep their names in the state dict as far as these can be paths, and share the program's memory where their
    type stays. For weights in a file that is a read-only map: deep-copy the module before changing them in place.

    Shapes are computed from the inputs' sizes with Python numbers, so that the module takes every size that the graph
    takes, and can be exported and compiled again.

    Raises:
        InputError: an operator that has no rule, or cannot be emitted in the form in which the graph uses it.
        UsageError: another `dtype`.
        MissingExtraError: torch is not installed.
    """
    if dtype not in _DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown", remedy="float32, float64 or None")
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch is not installed", remedy="pip install 'opgraft[torch]'") from error
    from opgraft.ir.fx.emission import Emission

    with torch.no_grad():
        return Emission(program, dtype).module()
