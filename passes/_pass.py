"""What a pass is: a declared contract, needs and order, and options, which are the fields of a frozen dataclass."""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Protocol

import numpy as np
import onnx_ir
from opgraft.ir.kernel_table import KernelTable
from opgraft.ir.program import Program


class Contract(enum.Enum):
    """What a rewrite preserves; there is no default tolerance."""

    EXACT = "exact"
    """The same bits as the reference executor."""
    NUMERIC = "numeric"
    """The same mathematics, rounded otherwise: within four times the original's own float32 error."""
    LOSSY = "lossy"
    """Within a budget that the user gave."""


class NoMatch:
    """Why a pass did not apply, and where; the text is made only when somebody reads it."""

    __slots__ = ("_details", "_reason", "_where")

    def __init__(self, reason: str, where: object = None, *details: object) -> None:
        self._reason = reason
        self._where = where
        self._details = details

    @property
    def reason(self) -> str:
        return self._reason.format(*self._details) if self._details else self._reason

    @property
    def where(self) -> str:
        place = self._where
        if isinstance(place, onnx_ir.Node):
            output = next((o.name for o in place.outputs if o.name), "")
            return f"{place.op_type} {place.name or output!r}"
        if isinstance(place, onnx_ir.Value):
            return f"value {place.name!r}"
        return "" if place is None else str(place)

    def __str__(self) -> str:
        return f"{self.reason} (at {self.where})" if self.where else self.reason

    def __repr__(self) -> str:
        return f"NoMatch({str(self)!r})"


@dataclass(frozen=True)
class Rewrite:
    """One applied rewrite: its number in the run, the pass and the node it was anchored at."""

    number: int
    pass_name: str
    site: str
    contract: Contract


class ConstantEvaluator(Protocol):
    """Runs a graph of constants on the reference executor: ONNX Runtime, optimizations off, one thread."""

    def __call__(self, model: bytes) -> dict[str, np.ndarray]: ...


class Recorder(Protocol):
    """Sees each rewrite before and after it happens, for local evidence."""

    def before(self, root: onnx_ir.Node, new_nodes: Sequence[onnx_ir.Node], replacements: Sequence[Any]) -> Any: ...

    def after(self, token: Any, rewrite: Rewrite) -> None: ...


@dataclass
class PassContext:
    """What a run offers to its passes, and what it learns from them. Passes neither print nor read the environment."""

    program: Program
    evaluate: ConstantEvaluator | None = None
    disabled: frozenset[str] = frozenset()
    """Names of passes that verification took back."""
    max_rewrites: int | None = None
    """Stop rewriting after so many (bisection)."""
    newest_opset: int = 0
    """The newest default-domain opset that the target's runtime runs; 0 when unknown."""
    kernels: Callable[[], KernelTable | None] | None = None
    """Asks for the kernels of the target's runtime; None when they are unknown."""
    rewrites: list[Rewrite] = field(default_factory=list)
    near_misses: dict[str, list[NoMatch]] = field(default_factory=dict)
    recorder: Recorder | None = None
    keep_near_misses: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    """Analyses shared between passes, by name."""

    @property
    def n_changes(self) -> int:
        """Grows with every change of the graph: equal numbers mean an equal graph."""
        return len(self.rewrites)

    def allows(self, pass_name: str) -> bool:
        """Whether one more rewrite of this pass may be done."""
        if pass_name in self.disabled:
            return False
        return self.max_rewrites is None or len(self.rewrites) < self.max_rewrites

    def applied(self, pass_: Pass, site: str, contract: Contract | None = None) -> Rewrite:
        """Count one more rewrite; `contract` where it keeps more than its pass promises."""
        rewrite = Rewrite(len(self.rewrites), pass_.name, site, contract or pass_.contract)
        self.rewrites.append(rewrite)
        return rewrite

    def missed(self, pass_name: str, miss: NoMatch) -> None:
        if self.keep_near_misses:
            self.near_misses.setdefault(pass_name, []).append(miss)


@cache
def kebab_case(name: str) -> str:
    """`FoldConstants` -> `fold-constants`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _option_text(value: object) -> str:
    if isinstance(value, tuple):
        return ":".join(_option_text(v) for v in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a whole program.

    The first docstring line of a subclass is its equation, `before -> after`. Its fields are its options on the
    command line. `run` returns how many rewrites it did, and leaves the program as it was when that is 0.
    """

    contract: ClassVar[Contract]
    after: ClassVar[tuple[str, ...]] = ()
    """Names of passes that must not come later in a pipeline than this one."""
    needs: ClassVar[tuple[str, ...]] = ()
    """What the run must offer: `evaluate`, `opset>=N`."""

    @property
    def name(self) -> str:
        return kebab_case(type(self).__name__)

    @property
    def text(self) -> str:
        """Name and options as in pipeline text; options at their default are left out."""
        options = [
            f"{f.name.replace('_', '-')}={_option_text(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{', '.join(options)}}}" if options else self.name

    @property
    def equation(self) -> str:
        return (type(self).__doc__ or "").strip().splitlines()[0]

    @abstractmethod
    def run(self, program: Program, context: PassContext) -> int: ...


Replacement = Sequence[onnx_ir.Value]
