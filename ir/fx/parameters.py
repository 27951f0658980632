"""Initializers and constants of a program as parameters and buffers of the emitted module."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import onnx_ir
import torch
from opgraft.ir.fx.values import REAL_FLOATS, TORCH_TYPES, DataType, array_of

_NOT_NUMPY = (
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
"""Types whose arrays are of the ml_dtypes package."""
_EXPORTED_CONSTANT = re.compile(r"val_\d+")
_RESERVED = frozenset(dir(torch.nn.Module())) | {"forward"}


class Parameters:
    """Registers tensors under `root`; floating-point ones of `float_type` when that is given.

    Numbers are not copied where the type stays: the parameters share the memory of the program's weights, which for
    weights in a file is a read-only map.
    """

    def __init__(self, root: torch.nn.Module, float_type: DataType | None) -> None:
        self._root = root
        self._float_type = float_type
        self._taken: set[str] = set()
        self._folders: set[str] = set()
        self._numbers: dict[str, int] = {}

    def add(self, tensor: onnx_ir.TensorProtocol, name: str, *, is_literal: bool = False) -> str:
        """Register a weight; returns its path in the module, which is `name` where that can be one.

        Literals and what torch's exporter names as it names its constants are no part of the state dict.
        """
        made = self.torch_tensor(tensor)
        if is_literal or _EXPORTED_CONSTANT.fullmatch(name):
            path = self._free_path(name.replace(".", "_"))
            self._root.register_buffer(path, made, persistent=False)
            return path
        path = self._free_path(name)
        owner, leaf = self._owner(path)
        if made.is_floating_point() or made.is_complex():
            owner.register_parameter(leaf, torch.nn.Parameter(made, requires_grad=False))
        else:
            owner.register_buffer(leaf, made)
        return path

    def add_constant(self, made: torch.Tensor) -> str:
        """Register numbers that the emission brings in; they are no part of the state dict."""
        path = self._free_path("constant")
        self._root.register_buffer(path, made, persistent=False)
        return path

    def torch_tensor(self, tensor: onnx_ir.TensorProtocol) -> torch.Tensor:
        made = _shared(array_of(tensor), TORCH_TYPES[tensor.dtype])
        if self._float_type is not None and tensor.dtype in REAL_FLOATS:
            return made.to(TORCH_TYPES[self._float_type])
        return made

    def _free_path(self, name: str) -> str:
        parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in name.split(".")]
        if not all(parts) or any(".".join(parts[:n]) in self._taken for n in range(1, len(parts))):
            # Empty words, or a module where a tensor already is: the path becomes one word.
            parts = ["_".join(parts)]
        parts = [f"{part}_" if part in _RESERVED or not part else part for part in parts]
        wanted = ".".join(parts)
        path = wanted
        while path in self._taken or path in self._folders:
            number = self._numbers[wanted] = self._numbers.get(wanted, 0) + 1
            path = f"{wanted}_{number}"
        self._taken.add(path)
        self._folders.update(".".join(parts[:n]) for n in range(1, len(parts)))
        return path

    def _owner(self, path: str) -> tuple[torch.nn.Module, str]:
        owner = self._root
        *folders, leaf = path.split(".")
        for part in folders:
            if part not in owner._modules:
                owner.add_module(part, torch.nn.Module())
            owner = owner.get_submodule(part)
        return owner, leaf


def _shared(array: np.ndarray[Any, Any], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the array's memory where it is laid out as torch can read it."""
    if not array.flags.c_contiguous or not array.dtype.isnative:
        array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    with warnings.catch_warnings():
        # Weights in a file are mapped read-only. Nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        if dtype in _NOT_NUMPY:
            bits = {1: np.uint8, 2: np.int16}[array.itemsize]
            return torch.from_numpy(array.view(bits)).view(dtype)
        return torch.from_numpy(array)
