"""Write gigabytes past the page cache: aligned buffers, used again and again, written while the next one fills.

Filling the page cache costs a first touch of every page, which on virtual machines is several times slower than the
disk. Where the file system knows direct I/O (O_DIRECT), a file is written without; elsewhere as any other file.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

_BUFFER_BYTES = 8 << 20
_N_BUFFERS = 4
_N_WRITERS = 2
# Direct I/O wants memory, offsets and lengths that are multiples of the disk's block; a page is one on every disk.
_BLOCK_BYTES = 4096
# Smaller files are written before the threads have started.
MIN_BULK_BYTES = 32 << 20


class BulkFile:
    """A file written from front to back; `write`, `tell` and forward `seek` as of a binary file.

    Takes over `file`, an empty one opened for writing. Raises OSError as a file does, at the latest in `close`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._descriptor = file.fileno()
        self._direct = _use_direct_io(self._descriptor, True)
        self._free = [mmap.mmap(-1, _BUFFER_BYTES) for _ in range(_N_BUFFERS)]
        self._buffer = self._free.pop()
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._start = 0
        """Offset in the file of the current buffer."""
        self._pool = ThreadPoolExecutor(_N_WRITERS)
        self._pending: list[tuple[Future[None], mmap.mmap]] = []

    def __enter__(self) -> BulkFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with contextlib.suppress(OSError):
            self._drain(0)
        self._pool.shutdown()
        self._file.close()

    def tell(self) -> int:
        return self._start + self._filled

    def seek(self, offset: int) -> int:
        """Forward only; the gap is zeros."""
        gap = offset - self.tell()
        if gap < 0:
            raise ValueError("a bulk file is written from front to back")
        while gap:
            room = min(gap, _BUFFER_BYTES - self._filled)
            self._view[self._filled : self._filled + room] = bytes(room)
            self._advance(room)
            gap -= room
        return offset

    def write(self, data: bytes | bytearray | memoryview) -> int:
        source = memoryview(data).cast("B")
        at = 0
        while at < len(source):
            room = min(len(source) - at, _BUFFER_BYTES - self._filled)
            self._view[self._filled : self._filled + room] = source[at : at + room]
            self._advance(room)
            at += room
        return len(source)

    def copy_from(self, path: str | Path, offset: int, n_bytes: int) -> None:
        """Append bytes of another file; EOFError when it ends early."""
        with contextlib.ExitStack() as stack:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            while n_bytes:
                room = min(n_bytes, _BUFFER_BYTES - self._filled)
                n_read = os.preadv(descriptor, [self._view[self._filled : self._filled + room]], offset)
                if not n_read:
                    raise EOFError(f"{path} ends at byte {offset}")
                self._advance(n_read)
                offset += n_read
                n_bytes -= n_read

    def close(self) -> None:
        try:
            size = self.tell()
            if self._filled:
                self._view[self._filled : self._padded(self._filled)] = bytes(self._padded(self._filled) - self._filled)
                self._submit()
            self._drain(0)
            os.ftruncate(self._descriptor, size)
        finally:
            self._pool.shutdown()
            self._file.close()

    def _padded(self, n_bytes: int) -> int:
        return -(-n_bytes // _BLOCK_BYTES) * _BLOCK_BYTES

    def _advance(self, n_bytes: int) -> None:
        self._filled += n_bytes
        if self._filled == _BUFFER_BYTES:
            self._submit()

    def _submit(self) -> None:
        """Hand the current buffer to a writer and go on with a free one."""
        buffer, n_bytes, start = self._buffer, self._padded(self._filled), self._start
        self._pending.append((self._pool.submit(self._write_out, buffer, n_bytes, start), buffer))
        self._start += self._filled
        self._filled = 0
        if not self._free:
            self._drain(_N_BUFFERS - 1)
        self._buffer = self._free.pop()
        self._view = memoryview(self._buffer)

    def _drain(self, n_left: int) -> None:
        while len(self._pending) > n_left:
            future, buffer = self._pending.pop(0)
            future.result()
            self._free.append(buffer)

    def _write_out(self, buffer: mmap.mmap, n_bytes: int, start: int) -> None:
        view = memoryview(buffer)
        done = 0
        while done < n_bytes:
            # Asked before the write: while it is refused, the other writer may have switched already.
            was_direct = self._direct
            try:
                done += os.pwritev(self._descriptor, [view[done:n_bytes]], start + done)
            except OSError:
                # Some file systems accept the flag and refuse the write: go on as any other file.
                if not was_direct:
                    raise
                self._direct = _use_direct_io(self._descriptor, False)


def _use_direct_io(descriptor: int, wanted: bool) -> bool:
    """Switch direct I/O on or off; returns whether it is on."""
    try:
        import fcntl

        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        flags = flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
    except (ImportError, AttributeError, OSError):
        return False
    return wanted
