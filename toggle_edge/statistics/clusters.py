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
from scipy.special import bdtrik, fdtri, ndtr, ndtri, owens_t, stdtrit

from toggle_edge.statistics.bounds import least_samples
from toggle_edge.statistics.samples import Samples, checked_confidence, checked_quantile, finite_clusters

MIN_CLUSTERS = 8
"""Fewer say too little about the spread between clusters: where one in three processes is slower by a tenth, the 95 %
interval of a median is right in 84 of 100 with 6 restarts, in 93 with 8."""

MIN_TAIL_CLUSTERS = 24
"""As many for a quantile outside of the middle half, which rare clusters may decide: a kind that comes once in seven is
there in 97.5 of 100 runs. Where restarts differ, the few runs of 8 or 10 that look alike were right about p95 in
58 to 86 of 100."""

_CENTRAL = (0.25, 0.75)

BOOTSTRAP_SEED = 20_260
"""Seed of every bootstrap, so that a record judged again gives the same interval."""


@dataclass(frozen=True)
class Limits:
    """The ends of an interval; or None, and the reason says what it would take."""

    ends: tuple[float, float] | None
    reason: str | None = None


def cluster_quantile_interval(
    clusters: Sequence[Samples], quantile: float, confidence: float = 0.95
) -> Limits:
    """Interval of a quantile of the pooled population, of whatever distribution, from clusters of any sizes.

    The order-statistic interval (David and Nagaraja, Order Statistics, 7.1), with the number of samples replaced by the
    number of independent ones that they are worth, as Korn and Graubard (1998) do for shares: the test of each value as
    the quantile is inverted, not the interval of a share read off at both ends (Woodruff 1952). In a tail the two lean
    to opposite sides, and the second ends too early where it matters. How much clusters differ is seen in the share of
    each that lies below the quantile *of the others*. The degrees of freedom of that variance are Satterthwaite's
    (1946), from its fourth moment; in a tail, where few clusters may hold all that is rare, of those that do.

    Whether there is an interval is not decided by that variance: where few clusters decide a tail, it is small in
    just those runs that missed the slow ones. It is decided by how much clusters may differ anywhere, see
    `_cautious_worth`. Where the variance says less than `least_samples`, an end is the largest (or least) value.

    Missing for fewer than `MIN_CLUSTERS` clusters, in a tail for fewer than `MIN_TAIL_CLUSTERS`, and where the samples
    may be worth fewer than `least_samples`. Raises ValueError when a cluster is empty or a value is not finite.
    """
    values = finite_clusters(clusters)
    tail = (1.0 - checked_confidence(confidence)) / 2.0
    least = least_samples(checked_quantile(quantile), confidence)
    pooled = np.concatenate(values) if values else np.empty(0)
    count, total = len(values), len(pooled)
    if total < least:
        return Limits(None, f"needs n >= {least}, has {total}")
    fewest = MIN_CLUSTERS if _CENTRAL[0] <= quantile <= _CENTRAL[1] else MIN_TAIL_CLUSTERS
    if count < fewest:
        return Limits(None, f"needs at least {fewest} restarts, has {count}")
    sizes = np.array([len(cluster) for cluster in values])
    cautious = _cautious_worth(pooled, sizes, quantile, tail)
    if max(quantile, 1.0 - quantile) ** cautious > tail:
        return Limits(
            None,
            f"needs n >= {least} independent values; restarts may differ so much that these {total} of {count} "
            f"restarts are worth {cautious:.0f}",
        )
    below = np.array(
        [_below(cluster, _without(values, index), quantile) for index, cluster in enumerate(values)]
    )
    excess = (below - quantile * sizes) * count / total
    variance = float(excess @ excess) * (count - 1) / count**3
    if _CENTRAL[0] <= quantile <= _CENTRAL[1]:
        freedom = _satterthwaite(excess)
    else:
        freedom = _effective(sizes - below if quantile > 0.5 else below) - 1.0
    independent = quantile * (1.0 - quantile) / variance if variance > 0.0 else math.inf
    worth = min(float(total), independent / _widening(freedom, tail))
    under = _binomial_quantile(tail, worth, quantile) / worth
    over = _binomial_quantile(tail, worth, 1.0 - quantile) / worth
    ordered = np.sort(pooled)
    last = math.ceil((1.0 - over) * total) - 1
    return Limits((float(ordered[math.floor(under * total)]), float(ordered[min(last, total - 1)])))


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


def _satterthwaite(excess: NDArray[np.float64]) -> float:
    """The chi-square whose relative variance is that of a mean of such squares; what normal ones have at most."""
    count, fourth = len(excess), float(np.square(excess) @ np.square(excess))
    beyond = count * fourth - float(excess @ excess) ** 2
    most = count - 1.0
    return min(most, 2.0 * count * float(excess @ excess) ** 2 / beyond) if beyond > 0.0 else most


def _effective(counts: NDArray[np.float64]) -> float:
    """Among how many the counts are spread: all of them if they are equal, 1 if one has everything."""
    squares = float(np.square(counts).sum())
    return float(counts.sum()) ** 2 / squares if squares > 0.0 else 1.0


def _cautious_worth(
    pooled: NDArray[np.float64], sizes: NDArray[np.int64], quantile: float, tail: float
) -> float:
    """How many independent samples clusters are worth at least, as far as all their values together tell.

    The correlation within clusters is that of normal scores, its upper limit at 1 - `tail` from the F distribution
    of a one-way analysis of variance (Shrout and Fleiss 1979). Where values are a monotone function of Gaussian
    ones, the correlation between "lies below the quantile" follows from it (Dempster and Lerner 1950) in closed
    form (Owen 1956), and Kish's design effect from that. Scores use every value and treat both tails alike, so a
    run that was lucky in one tail gains little here.
    """
    total, count = len(pooled), len(sizes)
    alike = 0.0
    if total > count:
        scores, starts = _normal_scores(pooled), np.cumsum(sizes) - sizes
        means = np.add.reduceat(scores, starts) / sizes
        between = float(sizes @ np.square(means - scores.mean())) / (count - 1)
        within = float(np.square(scores - np.repeat(means, sizes)).sum()) / (total - count)
        size = (total - float(sizes @ sizes) / total) / (count - 1)
        most = between / float(fdtri(count - 1, total - count, tail))
        # Nothing between the clusters is no correlation, even where there is nothing within them.
        alike = max(0.0, (most - within) / (most + (size - 1.0) * within)) if most > 0.0 else 0.0
    slope = math.sqrt((1.0 - alike) / (1.0 + alike))
    apart = float(owens_t(float(ndtri(quantile)), slope))
    share = 1.0 - 2.0 * apart / (quantile * (1.0 - quantile))
    effect = 1.0 + (float(sizes @ sizes) / total - 1.0) * max(0.0, share)
    return total / effect / _widening(count - 1.0, tail)


def _normal_scores(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a normal distribution has at each value's rank; equal values share the middle of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2.0
    return np.asarray(ndtri(middle / len(values)))[places]


def _widening(freedom: float, tail: float) -> float:
    """By what a variance that is not known, but estimated with so many degrees of freedom, lowers the worth."""
    return (float(stdtrit(max(freedom, 1.0), tail)) / float(ndtri(tail))) ** 2


def _binomial_quantile(tail: float, samples: float, share: float) -> float:
    """The count, of fractions too, that is not passed with probability `tail`; 0 where even none is likelier."""
    return float(bdtrik(tail, samples, share)) if (1.0 - share) ** samples < tail else 0.0
