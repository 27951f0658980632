"""Where output goes: checked before work begins, written beside its place, moved there in one step."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import BinaryIO

from opgraft.ir.errors import OutputError
from opgraft.ir.external import external_tensors
from opgraft.ir.program import Program


def check_output(output: Path, source: Path | None, *, force: bool) -> None:
    """Refuse an output that is the input (through links too), exists without `force`, is no file, or has no folder.

    What the captured input reads besides its own file is refused by `check_sources`. Raises OutputError.
    """
    where = str(output)
    try:
        _check_place(output, where)
        if source is not None and (_is_same(output, source) or output.resolve() == source.resolve()):
            raise OutputError("the output is the input", where=where, remedy="choose another name with -o")
        data = data_path(output)
        for path in (output, data):
            if not os.path.lexists(path):
                continue
            if not path.is_symlink() and not stat.S_ISREG(path.lstat().st_mode):
                kind = "a folder" if path.is_dir() else "no regular file"
                raise OutputError(f"the output is {kind}", where=str(path), remedy="name another file")
            if path.is_symlink() and path.exists() and not path.is_file():
                raise OutputError("the output links to what is no file", where=str(path), remedy="name another file")
            if not force:
                raise OutputError("the output exists", where=str(path), remedy="--force overwrites it")
            if source is not None and _is_same(path, source):
                raise OutputError("the output is the input", where=str(path), remedy="choose another name with -o")
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, OutputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"no file can be written there: {reason}", where=where) from None


def _check_place(output: Path, where: str) -> None:
    if not output.parent.is_dir():
        raise OutputError("the output's folder does not exist", where=where, remedy="create it first")
    if output.is_dir():
        raise OutputError("the output is a folder", where=where, remedy="name a file in it")
    if not os.access(output.parent, os.W_OK | os.X_OK):
        raise OutputError("no permission to write into the folder", where=where, remedy="choose another with -o")


def _is_same(first: Path, second: Path) -> bool:
    return first.exists() and second.exists() and os.path.samefile(first, second)


def check_sources(program: Program, output: Path) -> None:
    """Refuse an output whose model or data file is one that `program` reads. Raises OutputError."""
    targets = [p for p in (output, data_path(output)) if p.exists()]
    if not targets:
        return
    for source in {tensor.path for tensor, _ in external_tensors(program.model)}:
        for target in targets:
            if _is_same(Path(source), target):
                raise OutputError(
                    "the output would overwrite the input's weights",
                    where=str(target),
                    remedy="choose another name with -o",
                )


def data_path(output: Path) -> Path:
    """Where the external data of `output` go."""
    return output.with_name(output.name + ".data")


def write_error(error: OSError, path: Path) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("cannot be written: the disk is full", where=str(path), remedy="make room or use -o")
    return OutputError(f"cannot be written: {error.strerror or error}", where=str(path))


def publish(model: Path, data: Path | None, output: Path) -> None:
    """Move a finished model and its data file into place as a pair: both, or neither.

    All are on one file system. The data go first, and come back out when the model cannot follow; only a crash of the
    machine between two renames leaves new data beside the old model. Raises OSError.
    """
    if data is None:
        os.replace(model, output)
        return
    place = data_path(output)
    # Until the model is in place, the old data keep a second name.
    kept = data.with_name(data.name + ".old")
    has_old = os.path.lexists(place)
    if has_old:
        os.replace(place, kept)
    try:
        os.replace(data, place)
        os.replace(model, output)
    except BaseException:
        if has_old:
            os.replace(kept, place)
        else:
            place.unlink(missing_ok=True)
        raise
    if has_old:
        kept.unlink(missing_ok=True)


def open_temporary(path: Path, temporaries: list[Path]) -> BinaryIO:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporaries.append(Path(name))
    # mkstemp makes private files; an output should have the permissions of any other file the user makes.
    umask = os.umask(0)
    os.umask(umask)
    os.fchmod(handle, 0o666 & ~umask)
    return os.fdopen(handle, "wb")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically. Raises OutputError."""
    temporaries: list[Path] = []
    try:
        with open_temporary(path, temporaries) as file:
            file.write(text.encode())
        os.replace(temporaries[0], path)
    except OSError as error:
        raise write_error(error, path) from None
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)
