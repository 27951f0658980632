"""What emitted modules are held against in float64: torch itself, and the reference evaluator of the onnx package.

An exporter writes the numbers of a module's code (a scale of 1/sqrt(d), the factors of an approximation) as float32, in
a graph of float64 too, and attributes have no other type. The graph is then another function than the module, by some
1e-8. Hence two more references: torch with the numbers in its operators rounded in the same way, and another executor
of the very graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir
import torch
from opgraft.ir.capture_torch_reference import _run_in_float64
from opgraft.ir.float64 import to_float64
from opgraft.ir.program import Program
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

Feed = Mapping[str, torch.Tensor]


def widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def relative_error(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """The largest difference as a fraction of the largest number of that output; infinite where one differs in kind."""
    if len(wanted) != len(found):
        return math.inf
    worst = 0.0
    for want, got in zip(wanted, found, strict=True):
        if want.shape != got.shape or want.dtype != got.dtype:
            return math.inf
        if not want.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(want, got) else math.inf)
        elif want.numel():
            error = float((want - got).abs().max() / want.abs().max())
            worst = max(worst, math.inf if math.isnan(error) else error)
    return worst


def run_torch(module: torch.nn.Module, feed: Feed) -> list[torch.Tensor]:
    """`module`, whose weights are float64, with every cast to float32 in it replaced too."""
    with torch.no_grad():
        leaves, _ = torch.utils._pytree.tree_flatten(_run_in_float64(module, (), feed))
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def run_torch_rounded(module: torch.nn.Module, feed: Feed) -> list[torch.Tensor]:
    """The same with the numbers in its operators rounded to float32, as the exporter writes them."""
    with _ScaledBefore(), _RoundedNumbers():
        return run_torch(module, feed)


def _rounded(number: float) -> float:
    with np.errstate(over="ignore"):
        rounded = float(np.float32(number))
    return rounded if math.isfinite(rounded) else number  # a lowest float64 as mask


class _RoundedNumbers(TorchDispatchMode):  # type: ignore[misc]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = torch.utils._pytree.tree_map_only(float, _rounded, (tuple(args), dict(kwargs or {})))
        return func(*args, **kwargs)


class _ScaledBefore(TorchFunctionMode):  # type: ignore[misc]
    """Attention with its scale, which it may work out itself, as an operator of its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, *others = args if args else (kwargs.pop("query"),)
        scale = kwargs.pop("scale", None)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return func(query * scale, *others, **kwargs, scale=1.0)


class Evaluator:
    """The reference evaluator of the onnx package on a graph in which every float32 is float64."""

    def __init__(self, program: Program) -> None:
        from onnx.reference import ReferenceEvaluator
        from onnx.reference.op_run import OpRun
        from onnx.reference.ops.op_attention import Attention_23

        class Erf(OpRun):  # type: ignore[misc]
            """Its own returns float32 whatever it is given."""

            def _run(self, x: Any) -> tuple[Any]:
                return (np.vectorize(math.erf, otypes=[x.dtype])(x),)

        class Gelu(OpRun):  # type: ignore[misc]
            """It has none, and expands the operator into one with Erf."""

            def _run(self, x: Any, approximate: str = "none") -> tuple[Any]:
                if approximate == "tanh":
                    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
                return (0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2))),)

        class HardSwish(OpRun):  # type: ignore[misc]
            """It has none either, and expands the operator into one with 1/6 as an attribute, in float32."""

            def _run(self, x: Any) -> tuple[Any]:
                return (x * np.clip(x / 6 + 0.5, 0, 1),)

        class GatherElements(OpRun):  # type: ignore[misc]
            """Its own takes no fewer indices than elements along the other dims, nor long dims."""

            def _run(self, x: Any, indices: Any, axis: int = 0) -> tuple[Any]:
                cut = [slice(n) for n in indices.shape]
                cut[axis] = slice(None)
                return (np.take_along_axis(x[tuple(cut)], indices, axis),)

        class Attention(Attention_23):  # type: ignore[misc]
            """Its own takes the square root of the scale in float32."""

            def _run(self, *inputs: Any, scale: Any = None, **attributes: Any) -> Any:
                return super()._run(*inputs, scale=None if scale is None else float(scale), **attributes)

        proto = onnx_ir.to_proto(to_float64(program.model))
        for node in proto.graph.node:
            for attribute in node.attribute:
                # It refuses any other value of it, and computes in the type of the input all the same.
                if attribute.name == "stash_type" and node.op_type in ("LayerNormalization", "RMSNormalization"):
                    attribute.i = 1
        self._session = ReferenceEvaluator(proto, new_ops=[Erf, Gelu, HardSwish, GatherElements, Attention])

    def __call__(self, feed: Feed) -> list[torch.Tensor]:
        found = self._session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        return [torch.from_numpy(np.array(array)) for array in found]


@contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters print about themselves."""
    import logging
    import warnings

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
