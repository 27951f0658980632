"""What a run can be asked for; the command line's options have the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from opgraft.ir.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from opgraft.cli.decisions import Decisions
    from opgraft.passes._pipeline import Instrument, Pipeline

DEFAULT_PIPELINE = "optimize"
Verify = Literal["off", "final", "each"]


@dataclass
class Options:
    """How to run."""

    passes: str | Pipeline = DEFAULT_PIPELINE
    """Pipeline text or an object."""
    opset: int | None = None
    """Convert the result to this version of the standard operators."""
    target: str = "cpu"
    verify: Verify = "final"
    measure: bool = True
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads to measure with; one thread decides."""
    force: bool = False
    """Overwrite what exists, never the input."""
    dry_run: bool = False
    allow_unverified: bool = False
    """Keep rewrites that nothing could verify."""
    decisions: Decisions | None = None
    """Replay these instead of measuring."""
    use_cache: bool = True
    """Use and fill the user's cache folder."""
    explain: bool = False
    """Keep the reasons of near misses."""
    instruments: list[Instrument] = field(default_factory=list)
    """See the first run of the pipeline; the runs of a bisection are not shown to them."""
    stop_after: str | None = None
    """Leave out the stages after this one."""
    inputs: Sequence[Mapping[str, np.ndarray]] = ()
    """Sets of inputs to verify and measure with, besides those that are made up."""
    seed: int = 0
    memory_limit_bytes: int | None = None
    time_limit_s: float = 300.0
    """For one load or run in the runtime."""

    def __post_init__(self) -> None:
        if self.verify not in ("off", "final", "each"):
            raise UsageError(f"verify={self.verify!r}", remedy="one of off, final, each")
        if self.time_limit_s <= 0 or (self.memory_limit_bytes is not None and self.memory_limit_bytes <= 0):
            raise UsageError("a limit of time or memory is not positive", remedy="leave it out for the default")

    @classmethod
    def of(cls, **values: Any) -> Options:
        """Raises UsageError for a name that is no option."""
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"no option is named {name!r}", remedy=f"known: {', '.join(known)}")
        return cls(**values)

    @property
    def is_rewrite_only(self) -> bool:
        """Nothing is run, so that the captured program itself may be rewritten."""
        return self.verify == "off" and not self.measure and self.decisions is None
