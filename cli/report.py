"""What a run did, as data: `report.to_json()` for machines, `cli.summary` for people."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from opgraft.ir.program import Program


@dataclass
class PassReport:
    name: str
    contract: str
    n_rewrites: int
    seconds: float
    taken_back: str = ""
    """Why verification or measurement took this pass back."""
    n_regions_checked: int = 0


@dataclass
class LatencyReport:
    threads: int
    clock: str
    before_ms: float
    after_ms: float
    ratio: float
    low: float
    high: float
    self_ratio: float
    noisy: bool


@dataclass
class Report:
    """Everything that is said of one run; sizes in bytes."""

    source: str
    output: str = ""
    target: str = "cpu"
    pipeline: str = ""
    outcome: str = "unverified"
    outcome_reason: str = ""
    contract: str = "exact"
    evidence: dict[str, Any] = field(default_factory=dict)
    passes: list[PassReport] = field(default_factory=list)
    nodes_before: dict[str, int] = field(default_factory=dict)
    nodes_after: dict[str, int] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    latency: list[LatencyReport] = field(default_factory=list)
    footprint: dict[str, dict[str, float]] = field(default_factory=dict)
    """Load time and peak memory, "before" and "after"."""
    estimate: dict[str, Any] = field(default_factory=dict)
    """Roofline times for a target that is another machine: lower bounds, not measurements."""
    decision: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    refuted: list[dict[str, Any]] = field(default_factory=list)
    near_misses: dict[str, list[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON: numbers that JSON has no form for are given as text."""
        plain: dict[str, Any] = json_value(asdict(self))
        return plain


def json_value(value: Any) -> Any:
    """`value` with infinities and NaN as text; `json` would write them in a form that others do not read."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(item) for item in value]
    return value


def count_nodes(program: Program) -> dict[str, int]:
    """Nodes by operator in all scopes; operators of other domains carry their domain."""
    counts: Counter[tuple[str, str]] = Counter()
    for graph in program.scopes():
        counts.update([(node.domain, node.op_type) for node in graph])
    named = {op if domain in ("", "ai.onnx") else f"{domain}::{op}": n for (domain, op), n in counts.items()}
    return dict(sorted(named.items()))
