"""Which passes a graph goes through: the default pipeline, mostly, and those that run on demand in front or behind."""

from __future__ import annotations

import numpy as np
from opgraft.passes.opset.schemas import NEWEST_OPSET

from fuzz.generate import OLDEST_OPSET, Graph

_DEFAULT = "optimize"


def choose(graph: Graph) -> tuple[str, ...]:
    """The pipelines for this graph, from its seed."""
    rng = np.random.default_rng([graph.seed, 1])
    if graph.focus:
        version = int(rng.integers(OLDEST_OPSET, NEWEST_OPSET + 1))
        # To the newest without a version.
        converts = graph.focus == "upgrade-opset" and rng.random() < 0.9
        own = f"upgrade-opset{{version={version}}}" if converts else graph.focus
        # Numeric rewrites elsewhere cannot be verified beside random numbers.
        is_random = any(op.startswith("Random") for op in graph.operators)
        return (own,) if is_random or rng.random() < 0.6 else (own, _DEFAULT)
    kind = rng.random()
    if graph.model.functions and kind < 0.6:
        return ("inline-functions", _DEFAULT)
    if kind < 0.62:
        return (_DEFAULT,)
    if kind < 0.7:
        return ("canonicalize-linear", _DEFAULT)
    if kind < 0.78:
        return ("canonicalize-linear, lower-linear", _DEFAULT)
    if kind < 0.86:
        return (_DEFAULT, "lower-linear")
    version = int(rng.integers(OLDEST_OPSET, NEWEST_OPSET + 1))
    text = f"upgrade-opset{{version={version}}}"
    return (text,) if kind < 0.93 else (text, _DEFAULT)
