"""Tensors whose bytes lie in a file (the model's own or one beside it), checked before anything reads them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import onnx_ir
from opgraft.ir.errors import InputError
from opgraft.ir.small_tensor import SmallTensor

_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True)
class FileIdentity:
    """What tells whether a file is still the one that was checked."""

    device: int
    inode: int
    n_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, path: str | Path) -> FileIdentity:
        found = os.stat(path)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class FileTensor(onnx_ir.ExternalTensor):
    """A tensor in a file whose place and size were checked at capture; the file must not change afterwards.

    The base class refuses a file that has several hard links or that a link leads to. A file that passed
    `check_external_data` may have both (package caches and deduplicated disks make them), and so may the model's
    own file.
    """

    __slots__ = ("_identity", "is_inline")

    def __init__(
        self, source: onnx_ir.ExternalTensor, folder: Path, location: str, identity: FileIdentity, *, is_inline: bool
    ) -> None:
        super().__init__(
            location,
            source.offset,
            source.length,
            source.dtype,
            shape=source.shape,
            name=source.name or "",
            doc_string=source.doc_string,
            metadata_props=source.metadata_props,
            base_dir=folder,
        )
        self._identity = identity
        self.is_inline = is_inline
        """Whether the bytes are `raw_data` in the model's own file."""

    def check_unchanged(self) -> None:
        """Raises InputError when the file is not the one that was checked at capture."""
        self._check_path_containment()

    def _check_path_containment(self) -> None:
        # Called by the base class before each opening of the file.
        try:
            identity = FileIdentity.of(self.path)
        except OSError as error:
            self._refuse(error.strerror or str(error))
        if identity != self._identity:
            self._refuse("it changed since the model was read")

    def _refuse(self, reason: str) -> NoReturn:
        raise InputError(f"tensor {self.name!r}: {reason}", where=self.path, remedy="run again on a file at rest")

    def numpy(self) -> np.ndarray:
        try:
            return super().numpy()
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            self._refuse(str(error))

    def tobytes(self) -> bytes:
        try:
            return super().tobytes()
        except (OSError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            self._refuse(str(error))

    def tofile(self, file: BinaryIO) -> None:
        before = file.tell()
        super().tofile(file)
        if file.tell() - before != self.nbytes:
            self._refuse("its data file was cut short while it was read")


def all_tensors(model: onnx_ir.Model) -> Iterator[tuple[str, onnx_ir.TensorProtocol]]:
    """Every tensor a model holds with the name of its place: initializers and tensor attributes, in all scopes."""
    for place, tensor, _ in tensor_slots(model):
        yield place, tensor


Replace = Callable[[onnx_ir.TensorProtocol], None]


def external_tensors(model: onnx_ir.Model) -> Iterator[tuple[onnx_ir.ExternalTensor, Replace]]:
    """The tensors that lie in files, each with a function that puts another tensor in its place."""
    for _, tensor, replace in tensor_slots(model, with_small=False):
        if isinstance(tensor, onnx_ir.ExternalTensor):
            yield tensor, replace


def tensor_slots(
    model: onnx_ir.Model, *, with_small: bool = True
) -> Iterator[tuple[str, onnx_ir.TensorProtocol, Replace]]:
    """`all_tensors` with a function that puts another tensor in the same place; `with_small`: also `SmallTensor`s."""
    for root in [model.graph, *(function.graph for function in model.functions.values())]:
        pending = [root]
        while pending:
            graph = pending.pop()
            for name, value in graph.initializers.items():
                tensor = value.const_value
                if tensor is not None and (with_small or type(tensor) is not SmallTensor):
                    yield name, tensor, _replace_constant(value)
            for node in graph:
                if not node.attributes:
                    continue
                for attribute in list(node.attributes.values()):
                    if attribute.is_ref():
                        continue
                    kind = attribute.type
                    if kind == onnx_ir.AttributeType.TENSOR:
                        yield node.name or node.op_type, attribute.as_tensor(), _replace_attribute(node, attribute)
                    elif kind == onnx_ir.AttributeType.TENSORS:
                        for i, tensor in enumerate(attribute.as_tensors()):
                            yield node.name or node.op_type, tensor, _replace_attribute(node, attribute, i)
                    elif kind == onnx_ir.AttributeType.GRAPH:
                        pending.append(attribute.as_graph())
                    elif kind == onnx_ir.AttributeType.GRAPHS:
                        pending.extend(attribute.as_graphs())


def _replace_constant(value: onnx_ir.Value) -> Replace:
    def replace(tensor: onnx_ir.TensorProtocol) -> None:
        value.const_value = tensor

    return replace


def _replace_attribute(node: onnx_ir.Node, attribute: onnx_ir.Attr, index: int | None = None) -> Replace:
    def replace(tensor: onnx_ir.TensorProtocol) -> None:
        name, doc_string = attribute.name, attribute.doc_string
        if index is None:
            node.attributes[name] = onnx_ir.AttrTensor(name, tensor, doc_string)
        else:
            tensors = list(node.attributes[name].as_tensors())
            tensors[index] = tensor
            node.attributes[name] = onnx_ir.AttrTensors(name, tensors, doc_string)

    return replace


def bind_files(model: onnx_ir.Model, base_dir: Path, own_path: Path | None, own_location: str) -> None:
    """Tie every tensor in a file to that file, after checking it.

    `own_location` is what `wire.split` wrote for the model's own file `own_path`. Refused are external data that are
    missing, short, negative, overlapping or outside `base_dir` (links resolved first).
    Raises InputError naming the tensor, the file and the bytes at fault.
    """
    files = _Files(base_dir)
    if own_path is not None:
        files.add_own(own_location, own_path.resolve())
    for place, tensor, replace in list(tensor_slots(model)):
        if isinstance(tensor, onnx_ir.ExternalTensor):
            replace(files.bind(tensor, place))
    files.check_overlaps()


@dataclass
class _DataFile:
    folder: Path
    location: str
    identity: FileIdentity
    is_own: bool
    spans: dict[tuple[int, int], str]
    """Bytes (offset, length) -> the first tensor that lies there."""


class _Files:
    """The data files of one model, each looked at once."""

    def __init__(self, base_dir: Path) -> None:
        self.base_dir = base_dir
        self.root = base_dir.resolve()
        self.known: dict[str, _DataFile] = {}

    def add_own(self, location: str, path: Path) -> None:
        self.known[location] = _DataFile(path.parent, path.name, FileIdentity.of(path), True, {})

    def bind(self, tensor: onnx_ir.ExternalTensor, place: str) -> FileTensor:
        location = str(tensor.location)
        file = self.known.get(location)
        if file is None:
            file = self.known[location] = self._open(location, place)
        offset = tensor.offset or 0
        where = f"tensor {place!r} in {file.location!r}"
        if offset + tensor.nbytes > file.identity.n_bytes:
            raise InputError(
                f"bytes {offset} to {offset + tensor.nbytes} lie beyond the file's {file.identity.n_bytes}",
                where=where,
                remedy=_short_file_remedy(file.folder / file.location),
            )
        file.spans.setdefault((offset, tensor.nbytes), place)
        return FileTensor(tensor, file.folder, file.location, file.identity, is_inline=file.is_own)

    def _open(self, location: str, place: str) -> _DataFile:
        where = f"tensor {place!r}"
        if not location or "\0" in location:
            raise InputError("external data without a file name", where=where, remedy="save the model again")
        path = self.base_dir / location
        try:
            # RuntimeError: a link that leads to itself.
            real = path.resolve()
            inside = not Path(location).is_absolute() and real.is_relative_to(self.root)
            found = real.stat() if inside else None
        except FileNotFoundError:
            raise InputError(
                f"external data file {location!r} is missing", where=where, remedy="put it beside the model"
            ) from None
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"external data file {location!r} cannot be read: {reason}", where=where) from None
        if found is None:
            raise InputError(
                f"external data {location!r} is outside the model's folder",
                where=where,
                remedy="put the file beside the model",
            )
        if not stat.S_ISREG(found.st_mode):
            raise InputError(
                f"external data {location!r} is no regular file", where=where, remedy="put the data beside the model"
            )
        if not os.access(path, os.R_OK):
            raise InputError(f"no permission to read the external data {location!r}", where=where)
        identity = FileIdentity(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        return _DataFile(self.base_dir, location, identity, False, {})

    def check_overlaps(self) -> None:
        by_file: dict[FileIdentity, dict[tuple[int, int], str]] = {}
        names: dict[FileIdentity, str] = {}
        for file in self.known.values():
            by_file.setdefault(file.identity, {}).update(file.spans)
            names[file.identity] = file.location
        for identity, spans in by_file.items():
            _check_overlaps(spans, names[identity])


def _short_file_remedy(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(len(_LFS_MAGIC)) == _LFS_MAGIC:
            return "it is a Git LFS pointer, not the data; run `git lfs pull`"
    return "the data file is truncated or belongs to another model"


def _check_overlaps(spans: dict[tuple[int, int], str], file_name: str) -> None:
    """Two tensors may share the very same bytes (tied weights), but not half of them."""
    last_end, last_name = 0, ""
    for (begin, length), name in sorted(spans.items()):
        if length and begin < last_end:
            raise InputError(
                f"tensors {last_name!r} and {name!r} overlap at byte {begin}",
                where=repr(file_name),
                remedy="the offsets are damaged; save the model again",
            )
        if begin + length > last_end:
            last_end, last_name = begin + length, name
