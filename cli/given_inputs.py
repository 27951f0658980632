"""Inputs from a user: `.npz` files, checked against the model before anything runs."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.inputs import InputCase, required_inputs
from opgraft.ir.program import Program

# A set of inputs is held twice, here and in the child that runs the model; a small file can unpack to any size.
_MAX_BYTES = 8 << 30


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; pickled objects are not read. Raises InputError."""
    where = str(path)
    try:
        with zipfile.ZipFile(path) as archive:
            n_bytes = sum(entry.file_size for entry in archive.infolist())
        if n_bytes > _MAX_BYTES:
            raise InputError(f"unpacks to {n_bytes / (1 << 30):.1f} GiB", where=where, remedy="give fewer samples")
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data.files}
    except FileNotFoundError:
        raise InputError("no such file", where=where) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        remedy = "write it with numpy.savez(FILE, input_name=array, ...)"
        if "allow_pickle" in str(error):
            raise InputError("holds Python objects, which are not read", where=where, remedy=remedy) from None
        raise InputError(f"not an .npz file of arrays: {error}", where=where, remedy=remedy) from None


def check_inputs(program: Program, arrays: Mapping[str, np.ndarray], name: str) -> InputCase:
    """`arrays` as a set of inputs of `program`. Raises InputError naming the input that does not fit."""
    wanted = {v.name or "": v for v in required_inputs(program)}
    optional = {v.name or "" for v in program.graph.inputs}
    expected = f"the model's inputs: {', '.join(wanted) or 'none'}"
    unknown = sorted(set(arrays) - set(wanted) - optional)
    if unknown:
        raise InputError(f"no input is named {unknown[0]!r}", where=name, remedy=expected)
    missing = [n for n in wanted if n not in arrays]
    if missing:
        raise InputError(f"input {missing[0]!r} is missing", where=name, remedy=expected)
    values = {v.name or "": v for v in program.graph.inputs}
    checked = {key: _check_array(values[key], np.asarray(array), name) for key, array in arrays.items()}
    _check_named_dims({key: values[key] for key in checked}, checked, name)
    finite = all(np.isfinite(a).all() for a in checked.values() if a.dtype.kind in "fc")
    return InputCase(f"given {name}", checked, is_ordinary=bool(finite))


def _check_array(value: onnx_ir.Value, array: np.ndarray, name: str) -> np.ndarray:
    where = f"{name}, input {value.name!r}"
    if value.dtype == onnx_ir.DataType.STRING:
        if array.dtype.kind not in "USO":
            raise InputError(f"has type {array.dtype}, the model wants strings", where=where)
        array = array.astype(object)
    elif value.dtype is not None:
        array = _as_type(array, value.dtype, where)
    if value.shape is not None:
        wanted = list(value.shape)
        fits = array.ndim == len(wanted) and all(
            not isinstance(d, int) or d == n for d, n in zip(wanted, array.shape, strict=True)
        )
        if not fits:
            raise InputError(f"has shape {list(array.shape)}, the model wants {value.shape}", where=where)
    return array


def _as_type(array: np.ndarray, dtype: onnx_ir.DataType, where: str) -> np.ndarray:
    wanted = dtype.numpy()
    if array.dtype == wanted:
        return array
    # numpy knows no bfloat16 or float8: `savez` writes them as bytes without a type.
    if array.dtype.kind == "V" and wanted.kind == "V" and array.dtype.itemsize == wanted.itemsize:
        return array.view(wanted)
    raise InputError(f"has type {array.dtype}, the model wants {wanted}", where=where, remedy=f"save it as {wanted}")


def _check_named_dims(values: Mapping[str, onnx_ir.Value], arrays: Mapping[str, np.ndarray], name: str) -> None:
    sizes: dict[str, tuple[int, str]] = {}
    for key, value in values.items():
        for dim, size in zip(value.shape or (), arrays[key].shape, strict=False):
            if isinstance(dim, int) or not dim.value:
                continue
            first = sizes.setdefault(dim.value, (size, key))
            if first[0] != size:
                raise InputError(
                    f"dim {dim.value!r} is {first[0]} in input {first[1]!r} and {size} in {key!r}", where=name
                )


def write_inputs(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write what `read_inputs` reads; strings as fixed-width text, so that nothing is pickled."""
    plain = {k: a.astype(np.str_) if a.dtype == object else a for k, a in arrays.items()}
    with path.open("wb") as file:
        np.savez(file, **plain)  # type: ignore[arg-type]
