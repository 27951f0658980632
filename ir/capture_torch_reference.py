"""Running a torch module as the reference of its own capture, in its own precision and in float64."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from opgraft.ir.errors import InputError, MissingExtraError, UsageError

if TYPE_CHECKING:
    import torch

Reference = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class CallLayout:
    """How named arrays map to the arguments of a module, and its results to named arrays."""

    leaves: Sequence[Any]
    """The flattened (args, kwargs) of the example."""
    spec: Any
    """Their torch pytree spec."""
    input_leaves: Mapping[str, int]
    """Graph input name -> index into `leaves`."""
    output_leaves: Mapping[str, int]
    """Graph output name -> index into the flattened result."""

    def arguments(self, inputs: Mapping[str, np.ndarray], *, double: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        from torch.utils import _pytree

        missing = [name for name in self.input_leaves if name not in inputs]
        unknown = [name for name in inputs if name not in self.input_leaves]
        if missing or unknown:
            raise UsageError(
                f"inputs missing: {missing}, unknown: {unknown}",
                where="torch reference",
                remedy=f"the inputs are: {', '.join(self.input_leaves)}",
            )
        leaves = [_widened(leaf, double) for leaf in self.leaves]
        for name, index in self.input_leaves.items():
            leaves[index] = _widened(to_torch(inputs[name], like=self.leaves[index]), double)
        args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs


def require_torch() -> None:
    """Raise MissingExtraError with the install line where torch or its ONNX exporter is missing."""
    for package in ("torch", "onnxscript"):
        try:
            __import__(package)
        except ImportError as error:
            remedy = "pip install 'opgraft[torch]'"
            raise MissingExtraError(f"{package} is not installed", remedy=remedy) from error


def copy_module(module: torch.nn.Module, *, double: bool = False) -> torch.nn.Module:
    """A copy that shares the parameters and owns the rest; with `double`, every float tensor in float64.

    Buffers are copied since forward() may change them; training flags can be set without touching the user's.
    """
    import torch

    memo: dict[int, Any] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            widened = _widened(parameter.detach(), double)
            memo[id(parameter)] = torch.nn.Parameter(widened, requires_grad=False) if double else parameter
        # Not only buffers: deepcopy refuses plain attributes that carry a gradient history (old weight_norm).
        plain = [value for value in vars(owner).values() if isinstance(value, torch.Tensor)]
        for tensor in [*owner.buffers(recurse=False), *plain]:
            memo.setdefault(id(tensor), _widened(tensor.detach().clone(), double))
    try:
        with quiet_torch():
            return copy.deepcopy(module, memo)
    except Exception as error:
        raise InputError(
            f"the module cannot be copied ({type(error).__name__}: {error}); capture works on a copy only",
            where=type(module).__name__,
            remedy="pass torch.export.export(module, args) instead of the module",
        ) from error


def make_reference(
    module: torch.nn.Module, layout: CallLayout, *, double: bool = False, restore_buffers: bool = False
) -> Reference:
    """`module` (never changed) as a function of named arrays; float64 copies are made at the first call.

    With `restore_buffers`, every call starts from the buffers as captured, as the graph does.
    """
    made: list[torch.nn.Module] = []

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        import torch
        from torch.utils import _pytree

        if not made or restore_buffers:
            made[:] = [copy_module(module, double=double) if double or restore_buffers else module]
        args, kwargs = layout.arguments(inputs, double=double)
        with torch.no_grad():
            result = _run_in_float64(made[0], args, kwargs) if double else made[0](*args, **kwargs)
        results = _pytree.tree_leaves(result)
        return {name: to_numpy(results[index]) for name, index in layout.output_leaves.items()}

    return run


def to_numpy(value: Any) -> np.ndarray:
    """Tensor or Python number -> array; complex as a last dim of 2, as in the exported graph."""
    import ml_dtypes
    import torch

    if not isinstance(value, torch.Tensor):
        return np.asarray(value)
    tensor = value.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    small_float = getattr(ml_dtypes, str(tensor.dtype).removeprefix("torch."), None)
    if small_float is not None:
        bits = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
        viewed: np.ndarray = tensor.contiguous().view(bits).numpy().view(small_float)
        return viewed
    array: np.ndarray = tensor.numpy()
    return array


def to_torch(array: np.ndarray, *, like: Any) -> Any:
    """The reverse of `to_numpy`, for the kind and the device of the example leaf; never shares memory."""
    import torch

    if not isinstance(like, torch.Tensor):
        return np.asarray(array).item()
    array = np.array(array, order="C")
    small_float = getattr(torch, array.dtype.name, None) if array.dtype.kind == "V" else None
    if small_float is not None:
        bits = {1: np.uint8, 2: np.int16}[array.itemsize]
        tensor = torch.from_numpy(array.view(bits)).view(small_float)
    else:
        tensor = torch.from_numpy(array)
    return (torch.view_as_complex(tensor) if like.is_complex() else tensor).to(like.device)


def _widened(value: Any, double: bool) -> Any:
    import torch

    if not double or not isinstance(value, torch.Tensor):
        return value
    if value.is_complex():
        return value.to(torch.complex128)
    return value.to(torch.float64) if value.is_floating_point() else value


def _run_in_float64(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call `module` with every cast to a smaller float, the default dtype and float constants in float64.

    Without this a norm that computes `x.to(torch.float32)` would round in the middle of the float64 run.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    widened = {
        torch.float16: torch.float64,
        torch.bfloat16: torch.float64,
        torch.float32: torch.float64,
        torch.complex64: torch.complex128,
    }
    aten = torch.ops.aten

    class Float64Mode(TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is aten.lift_fresh.default:  # torch.tensor([...], dtype=torch.float32)
                return _widened(func(*args, **(kwargs or {})), True)
            if func is aten.view.dtype:  # reinterprets bits, not a cast
                return func(*args, **(kwargs or {}))
            if func is aten._assert_tensor_metadata.default:  # the exporter's record of the original dtypes
                return None
            new_args = [_swap(argument) for argument in args]
            return func(*new_args, **{key: _swap(value) for key, value in (kwargs or {}).items()})

    def _swap(argument: Any) -> Any:
        return widened.get(argument, argument) if isinstance(argument, torch.dtype) else argument

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with Float64Mode():
            return module(*args, **kwargs)
    finally:
        torch.set_default_dtype(default)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Silence the exporters' notices on torch itself (missing torchvision, deprecated internals)."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.fx")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", message="The tensor attribute")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
