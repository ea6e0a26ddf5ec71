"""Exact bounds for independent samples: of a share, and of a quantile."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import bdtr, bdtrc, betaincinv

from toggle_edge.statistics.samples import Samples, checked_confidence, checked_quantile, finite


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
    alpha = (1.0 - checked_confidence(confidence)) / statements
    if satisfied == 0:
        return 0.0
    return float(betaincinv(satisfied, probes - satisfied + 1, alpha))


def least_samples(quantile: float, confidence: float = 0.95) -> int:
    """How many independent samples an interval of a quantile takes: 6 for a median at 95 %, 72 for p95, 368 for p99.

    With fewer, even the largest (or least) sample lies on the wrong side of the quantile too often.
    """
    tail = (1.0 - checked_confidence(confidence)) / 2.0
    rare = max(checked_quantile(quantile), 1.0 - quantile)
    return math.ceil(math.log(tail) / math.log(rare))


def order_statistic_interval(
    samples: Samples, quantile: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Distribution-free interval for a quantile of independent samples: two of the samples themselves.

    The ranks come from the binomial distribution with equal tails (David and Nagaraja, Order Statistics,
    7.1), so the coverage is at least `confidence`. None below `least_samples`. Raises ValueError when a sample is
    not finite.
    """
    ordered = np.sort(finite(samples))
    n = len(ordered)
    tail = (1.0 - checked_confidence(confidence)) / 2.0
    if n < least_samples(quantile, confidence):
        return None
    ranks = np.arange(n)
    # A rank serves as an end when the binomial count of samples below the quantile rarely passes it.
    lower = int((bdtr(ranks, n, quantile) <= tail).sum())
    upper = int((bdtrc(ranks, n, quantile) > tail).sum()) + 1
    return float(ordered[lower - 1]), float(ordered[upper - 1])
