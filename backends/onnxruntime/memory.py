"""How much memory a child process may take on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

# Control group versions 2 and 1: folder, limit, use.
_CGROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def available_memory_bytes() -> int | None:
    """What a new process can take on this machine and in its control group; None: unknown."""
    candidates = []
    with suppress(OSError, KeyError, ValueError):
        candidates.append(_read_table("/proc/meminfo")["MemAvailable"] * 1024)
    for folder, limit, used in _CGROUPS:
        # OSError: no such controller; ValueError: the limit reads "max".
        with suppress(OSError, ValueError):
            free = int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text())
            statistics = _read_table(f"{folder}/memory.stat")
            # Cached file pages count as used, but give way to whoever needs memory.
            candidates.append(free + statistics.get("inactive_file", 0) + statistics.get("active_file", 0))
    return max(0, min(candidates)) if candidates else None


def _read_table(path: str) -> dict[str, int]:
    """Lines of `name: value unit` or `name value`."""
    rows = (line.replace(":", " ").split() for line in Path(path).read_text(encoding="ascii").splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}
