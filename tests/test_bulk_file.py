"""The bulk file writes the same bytes as a file, over all the edges of its buffers, and raises as a file does."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from opgraft.ir import bulk_file
from opgraft.ir.bulk_file import BulkFile


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_file, "_BUFFER_BYTES", 3 * 4096)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_same_bytes_as_a_file(tmp_path: Path, seed: int, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not direct:
        monkeypatch.setattr(bulk_file, "_use_direct_io", lambda descriptor, wanted: False)
    rng = np.random.default_rng(seed)
    source = tmp_path / "source"
    source.write_bytes(rng.bytes(100_000))
    expected = bytearray()
    with BulkFile((tmp_path / "out").open("wb")) as file:
        for _ in range(30):
            kind = rng.integers(3)
            if kind == 0:
                data = rng.bytes(int(rng.choice([0, 1, 4095, 4096, 4097, 12_288, 30_000])))
                assert file.write(data) == len(data)
                expected += data
            elif kind == 1:
                offset = int(rng.integers(0, 50_000))
                n_bytes = int(rng.choice([0, 1, 4096, 12_287, 50_000]))
                file.copy_from(source, offset, n_bytes)
                expected += source.read_bytes()[offset : offset + n_bytes]
            else:
                position = -(-len(expected) // 4096) * 4096
                file.seek(position)
                expected += bytes(position - len(expected))
            assert file.tell() == len(expected)
    assert (tmp_path / "out").read_bytes() == bytes(expected)


def test_a_source_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"abc")
    with pytest.raises(EOFError), BulkFile((tmp_path / "out").open("wb")) as file:
        file.copy_from(tmp_path / "source", 0, 10)


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwritev", full)
    with pytest.raises(OSError, match="No space"), BulkFile((tmp_path / "out").open("wb")) as file:
        file.write(bytes(100_000))


def test_two_writers_are_refused_direct_writes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second refusal comes after the first has switched direct writes off; it is no error of its own."""
    both = threading.Barrier(2)
    first_switched = threading.Event()
    arrivals = itertools.count()
    is_direct = True
    write = os.pwritev

    def refuse(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        if not is_direct:
            return write(descriptor, buffers, offset)
        arrival = next(arrivals)
        if arrival < 2:
            both.wait(10)
        if arrival == 1:
            assert first_switched.wait(10)
        raise OSError(22, "Invalid argument")

    def switch(descriptor: int, wanted: bool) -> bool:
        nonlocal is_direct
        is_direct = wanted
        return wanted

    class Watched(BulkFile):
        def __setattr__(self, name: str, value: object) -> None:
            super().__setattr__(name, value)
            if name == "_direct" and not value:
                first_switched.set()

    monkeypatch.setattr(os, "pwritev", refuse)
    monkeypatch.setattr(bulk_file, "_use_direct_io", switch)
    data = bytes(range(256)) * 400
    with Watched((tmp_path / "out").open("wb")) as file:
        file.write(data)
    assert first_switched.is_set()
    assert (tmp_path / "out").read_bytes() == data


def test_backwards_is_refused(tmp_path: Path) -> None:
    with BulkFile((tmp_path / "out").open("wb")) as file:
        file.write(b"abc")
        with pytest.raises(ValueError, match="front to back"):
            file.seek(1)
