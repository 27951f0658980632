"""Errors a user can act on: what went wrong, where, and what to do; each class has a documented exit code."""

from __future__ import annotations

# Longer than any sentence of ours with a path in it.
_MAX_PART_CHARS = 600


class OpgraftError(Exception):
    """An error with a place and a remedy, printed on one line without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        self.what = what
        self.where = where
        self.remedy = remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        what, where, remedy = _one_line(self.what), _one_line(self.where), _one_line(self.remedy)
        text = f"{where}: {what}" if where else what
        return f"{text} ({remedy})" if remedy else text


def _one_line(text: str) -> str:
    """Names come from files: line breaks and terminal codes are escaped, the middle of endless ones is left out."""
    if len(text) > _MAX_PART_CHARS:
        text = f"{text[: _MAX_PART_CHARS // 2]} ... {text[-_MAX_PART_CHARS // 4 :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class UsageError(OpgraftError, ValueError):
    """An option, pass or target name that does not exist, or options that contradict each other."""

    exit_code = 2


class InputError(OpgraftError, ValueError):
    """A model or data file that is missing, truncated, invalid or hostile."""

    exit_code = 3


class OutputError(OpgraftError, OSError):
    """The result cannot be written: it exists, is the input, or the disk is full."""

    exit_code = 4


class MissingExtraError(OpgraftError, ImportError):
    """An optional package is not installed; the remedy is its install line."""

    exit_code = 5


class ExecutionError(OpgraftError, RuntimeError):
    """The runtime rejected the model, crashed, ran out of memory or out of time."""

    exit_code = 6
    is_fatal = False
    """Whether the process that ran the model did not survive it."""


class ContractError(OpgraftError):
    """A pass broke its own declaration: its contract, its order, or what it needs."""

    exit_code = 1
