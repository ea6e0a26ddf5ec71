"""Intervals and bounds: one place for every claim that goes beyond the numbers at hand.

Where there are too few samples for a claim the answer is None, never a narrower guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, betaincinv

__all__ = ["clopper_pearson_lower", "cluster_bootstrap_interval", "order_statistic_interval"]

MIN_CLUSTERS = 3
"""Fewer clusters than this say next to nothing about the spread between clusters."""


def clopper_pearson_lower(
    satisfied: int, probes: int, confidence: float = 0.95, statements: int = 1
) -> float:
    """One-sided lower bound on the share of prompts that satisfy, after Clopper and Pearson (1934).

    Exact for independent probes from the population in question. Where this is one of several `statements`
    made together on the same probes, or picked among them, each gets its part of the error (Bonferroni). 59 of
    59 in one statement gives 0.950. No probes, or none satisfied, gives 0.0. Raises ValueError on impossible
    counts.
    """
    if not 0 <= satisfied <= probes:
        raise ValueError(f"satisfied: expected 0 to {probes} probes, got {satisfied}")
    if statements < 1:
        raise ValueError(f"statements: expected at least 1, got {statements}")
    alpha = (1.0 - _checked_confidence(confidence)) / statements
    if satisfied == 0:
        return 0.0
    return float(betaincinv(satisfied, probes - satisfied + 1, alpha))


def order_statistic_interval(
    samples: Sequence[float], quantile: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Distribution-free interval for a quantile of independent samples: two of the samples themselves.

    The ranks come from the binomial distribution with equal tails (David and Nagaraja, Order Statistics,
    7.1), so the coverage is at least `confidence`. None when there are too few samples for either end: a
    median takes 6 at 95 %, a 95th percentile 72. Raises ValueError when a sample is not finite.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile: expected a number between 0 and 1, got {quantile!r}")
    ordered = np.sort(_finite(samples))
    tail = (1.0 - _checked_confidence(confidence)) / 2.0
    n = len(ordered)
    if n == 0:
        return None
    ranks = np.arange(n)
    # A rank serves as an end when the binomial count of samples below the quantile rarely passes it.
    lower = int((bdtr(ranks, n, quantile) <= tail).sum())
    upper = int((bdtrc(ranks, n, quantile) > tail).sum()) + 1
    if lower < 1 or upper > n:
        return None
    return float(ordered[lower - 1]), float(ordered[upper - 1])


def cluster_bootstrap_interval(
    clusters: Sequence[Sequence[float]],
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of `statistic` over values that belong together in clusters.

    Whole clusters are drawn with replacement (Davison and Hinkley, Bootstrap Methods, 3.8), since values of
    one cluster, such as the tokens of one generation, are not independent. The same seed gives the same
    interval. None for fewer than three clusters. Raises ValueError when a cluster is empty or a value is not
    finite.
    """
    values = [_finite(cluster) for cluster in clusters]
    if any(len(cluster) == 0 for cluster in values):
        raise ValueError("clusters: expected at least one value in each, got an empty one")
    tail = (1.0 - _checked_confidence(confidence)) / 2.0
    if len(values) < MIN_CLUSTERS:
        return None
    draws = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    statistics = [statistic(np.concatenate([values[index] for index in draw])) for draw in draws]
    low, high = np.quantile(statistics, [tail, 1.0 - tail])
    return float(low), float(high)


def _checked_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    return confidence


def _finite(samples: Sequence[float]) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("samples: expected finite numbers, got a NaN or an infinity")
    return values
