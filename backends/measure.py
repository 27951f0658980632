"""Statistics of a latency comparison: the median of paired ratios with a bootstrap interval.

Pairs measured one right after the other share the machine's state (clock frequency, other load), so their
ratio is far steadier than either time; the median ignores the samples that an interrupt fell into.

With few pairs the bootstrap of a median covers less than it says (92 % instead of 95 % for 15 pairs), so the
interval also spans the two order statistics that hold the median that often under any distribution.

Sources: B. Efron, R. J. Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13 (percentile
interval); H. A. David, H. N. Nagaraja, "Order Statistics" (2003), section 7.1 (interval for a quantile).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# With fewer, not even the smallest and largest ratio hold the median with 95 %: 1 - 2 / 2**5 is 93.75 %.
MIN_PAIRS = 6
_RESAMPLES = 4000


@dataclass(frozen=True)
class PairedRatio:
    """Candidate over baseline: the median ratio and the interval that holds it with `confidence`."""

    ratio: float
    low: float
    high: float
    n_pairs: int
    confidence: float = 0.95

    @property
    def is_slower(self) -> bool:
        """The interval lies wholly on the slow side."""
        return self.low > 1.0

    @property
    def is_faster(self) -> bool:
        """The interval lies wholly on the fast side."""
        return self.high < 1.0

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


def paired_ratio(
    baseline: Sequence[float],
    candidate: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = _RESAMPLES,
    seed: int = 0,
) -> PairedRatio:
    """Sample i of both sides was taken in round i. The same samples and seed give the same interval.

    Raises ValueError for fewer than MIN_PAIRS pairs, sides of unequal length, or times that are not positive.
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"{len(baseline)} baseline samples, {len(candidate)} candidate samples")
    if len(baseline) < MIN_PAIRS:
        raise ValueError(f"{len(baseline)} pairs; an interval needs {MIN_PAIRS} or more")
    times = np.array([baseline, candidate], np.float64)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise ValueError("a latency is zero, negative or not finite")
    ratios = times[1] / times[0]
    n_pairs = ratios.size
    picks = np.random.default_rng(seed).integers(0, n_pairs, (resamples, n_pairs))
    medians = np.median(ratios[picks], axis=1)
    tail = (1.0 - confidence) / 2.0
    rank = _median_rank(n_pairs, tail)
    ordered = np.sort(ratios)
    low = min(np.quantile(medians, tail, method="lower"), ordered[rank])
    high = max(np.quantile(medians, 1.0 - tail, method="higher"), ordered[-1 - rank])
    return PairedRatio(float(np.median(ratios)), float(low), float(high), n_pairs, confidence)


def _median_rank(n_pairs: int, tail: float) -> int:
    """The largest rank (from 0) whose order statistic exceeds the median with probability <= `tail`."""
    below = 0.0
    for rank in range(n_pairs):
        # At most `rank` of n samples fall below the median: a binomial tail with p = 1/2.
        below += math.comb(n_pairs, rank) / 2**n_pairs
        if below > tail:
            return max(0, rank - 1)
    return 0
