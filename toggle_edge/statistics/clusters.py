"""Intervals from samples that come in clusters: tokens of one process resemble each other more than those of two.

A cluster is what was really drawn anew, here a restart of the worker. What lies within one (generations, tokens, a
drift) may depend on itself in any way. Which method is used where was decided by counting how often each is right
(`benchmarks/intervals.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri, stdtrit

from toggle_edge.statistics.bounds import least_samples
from toggle_edge.statistics.samples import Samples, checked_confidence, checked_quantile, finite_clusters

MIN_CLUSTERS = 8
"""Fewer say too little about the spread between clusters: where one in three processes is slower by a tenth, the 95 %
interval of a median is right in 84 of 100 with 6 restarts, in 93 with 8."""

BOOTSTRAP_SEED = 20_260
"""Seed of every bootstrap, so that a record judged again gives the same interval."""

_CENTRAL = (0.25, 0.75)


@dataclass(frozen=True)
class Limits:
    """The ends of an interval; or None, and the reason says what it would take."""

    ends: tuple[float, float] | None
    reason: str | None = None


def cluster_quantile_interval(
    clusters: Sequence[Samples], quantile: float, confidence: float = 0.95
) -> Limits:
    """Interval of a quantile of the pooled population, of whatever distribution, from clusters of any sizes.

    The order-statistic interval, with the number of samples replaced by the number of independent ones that they are
    worth: Woodruff's inversion (1952) with the binomial limits of Korn and Graubard (1998) for samples of clusters. How
    much clusters differ is seen in the share of each that lies below the quantile *of the others*. In a tail, where a
    few clusters may hold all that is rare, the degrees of freedom are of the clusters that effectively contribute.

    Missing for fewer than `MIN_CLUSTERS` clusters, and where the samples are worth fewer than `least_samples`. Raises
    ValueError when a cluster is empty or a value is not finite.
    """
    values = finite_clusters(clusters)
    tail = (1.0 - checked_confidence(confidence)) / 2.0
    least = least_samples(checked_quantile(quantile), confidence)
    pooled = np.concatenate(values) if values else np.empty(0)
    count, total = len(values), len(pooled)
    if total < least:
        return Limits(None, f"needs n >= {least}, has {total}")
    if count < MIN_CLUSTERS:
        return Limits(None, f"needs at least {MIN_CLUSTERS} restarts, has {count}")
    sizes = np.array([len(cluster) for cluster in values])
    below = np.array(
        [_below(cluster, _without(values, index), quantile) for index, cluster in enumerate(values)]
    )
    excess = (below - quantile * sizes) * count / total
    variance = float(excess @ excess) * (count - 1) / count**3
    freedom = count - 1.0
    if not _CENTRAL[0] <= quantile <= _CENTRAL[1]:
        rare = sizes - below if quantile > 0.5 else below
        freedom = _effective(rare) - 1.0
    independent = quantile * (1.0 - quantile) / variance if variance > 0.0 else math.inf
    # Fewer by what not knowing the variance costs.
    widening = (float(stdtrit(max(freedom, 1.0), tail)) / float(ndtri(tail))) ** 2
    worth = min(float(total), independent / widening)
    if max(quantile, 1.0 - quantile) ** worth > tail:
        return Limits(
            None,
            f"needs n >= {least} independent values; restarts differ so much that these {total} of {count} restarts "
            f"are worth {worth:.0f}",
        )
    low = float(betaincinv(worth * quantile, worth * (1.0 - quantile) + 1.0, tail))
    high = float(betaincinv(worth * quantile + 1.0, worth * (1.0 - quantile), 1.0 - tail))
    ordered = np.sort(pooled)
    return Limits(
        (
            float(ordered[math.floor(low * total)]),
            float(ordered[min(total, math.ceil(high * total)) - 1]),
        )
    )


def cluster_bootstrap_interval(
    clusters: Sequence[Samples],
    statistic: Callable[[NDArray[np.float64]], float],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = BOOTSTRAP_SEED,
) -> tuple[float, float] | None:
    """Bootstrap interval of a smooth `statistic`, such as a throughput, over values that belong together in clusters.

    Whole clusters are drawn with replacement, and nothing within them (Davison and Hinkley, Bootstrap Methods, 3.8).
    The percentiles are those of Student's t, since with few clusters the bootstrap's own spread is too small
    (Hesterberg 2015, expanded percentiles). The same seed gives the same interval. None for fewer than `MIN_CLUSTERS`
    clusters. Raises ValueError when a cluster is empty or a value is not finite.
    """
    values = finite_clusters(clusters)
    tail = (1.0 - checked_confidence(confidence)) / 2.0
    count = len(values)
    if count < MIN_CLUSTERS:
        return None
    draws = np.random.default_rng(seed).integers(0, count, size=(resamples, count))
    found = [statistic(np.concatenate([values[index] for index in draw])) for draw in draws]
    expanded = float(ndtr(math.sqrt(count / (count - 1)) * float(stdtrit(count - 1, tail))))
    low, high = np.quantile(found, [expanded, 1.0 - expanded])
    return float(low), float(high)


def _without(values: Sequence[NDArray[np.float64]], index: int) -> NDArray[np.float64]:
    return np.concatenate([cluster for other, cluster in enumerate(values) if other != index])


def _below(cluster: NDArray[np.float64], others: NDArray[np.float64], quantile: float) -> float:
    """How many of a cluster lie below the quantile of the others; of equals the share that the quantile has there, so
    that a coarse clock, whose times are often the same, does not look like a difference between clusters."""
    wanted = quantile * len(others)
    rank = math.ceil(wanted) - 1
    border = np.partition(others, rank)[rank]
    share = (wanted - np.count_nonzero(others < border)) / np.count_nonzero(others == border)
    return float(np.count_nonzero(cluster < border) + share * np.count_nonzero(cluster == border))


def _effective(counts: NDArray[np.float64]) -> float:
    """Among how many the counts are spread: all of them if they are equal, 1 if one has everything."""
    squares = float(np.square(counts).sum())
    return float(counts.sum()) ** 2 / squares if squares > 0.0 else 1.0
