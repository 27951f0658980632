"""Give the output the input's data file whole, as a clone, when no weight changed and the file system can.

Not as a hard link: the onnx package refuses external data with a second name, and whoever writes to one of the two in
place would change both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from opgraft.ir.external import FileTensor

# Linux's request to share all blocks of another file, copied when one of the two is written (btrfs, xfs, bcachefs).
_FICLONE = 0x40049409
# A data file of which less is still used is written anew, without what nothing reads.
_MIN_USED = 0.95


def common_data_file(tensors: Sequence[Any]) -> Path | None:
    """The one external file that holds all these tensors and little else; None when there is none such."""
    if not tensors or not all(isinstance(t, FileTensor) and not t.is_inline for t in tensors):
        return None
    files = {str(t.path) for t in tensors}
    if len(files) != 1:
        return None
    path = Path(files.pop())
    used = sum(length for _, length in {(t.offset or 0, t.nbytes) for t in tensors})
    return path if used >= _MIN_USED * path.stat().st_size else None


def clone_data(source: Path, temporary: Path, tensors: Iterable[Any]) -> bool:
    """Make `temporary` (empty) hold what `source` does without copying; False when the file system cannot."""
    for tensor in tensors:
        tensor.check_unchanged()
    try:
        import fcntl

        with source.open("rb") as origin, temporary.open("wb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, origin.fileno())
    except (ImportError, OSError):
        return False
    return True
