"""Intervals, bounds and comparisons: the one place for every claim that goes beyond the numbers at hand.

Reports and gates both call these. Where there are too few samples for a claim the answer is that it is missing and
how many it takes, never a narrower guess. `benchmarks/intervals.py` measures how often the intervals are right.
"""

from toggle_edge.statistics.bounds import clopper_pearson_lower, least_samples, order_statistic_interval
from toggle_edge.statistics.clusters import (
    BOOTSTRAP_SEED,
    MIN_CLUSTERS,
    MIN_TAIL_CLUSTERS,
    Limits,
    cluster_bootstrap_interval,
    cluster_quantile_interval,
)
from toggle_edge.statistics.comparison import (
    IMPROVED,
    INCONCLUSIVE,
    MIN_PAIRS,
    NO_DIFFERENCE,
    REGRESSED,
    Comparison,
    compare_pairs,
    pairs_needed,
    settled,
)

__all__ = [
    "BOOTSTRAP_SEED",
    "IMPROVED",
    "INCONCLUSIVE",
    "MIN_CLUSTERS",
    "MIN_PAIRS",
    "MIN_TAIL_CLUSTERS",
    "NO_DIFFERENCE",
    "REGRESSED",
    "Comparison",
    "Limits",
    "clopper_pearson_lower",
    "cluster_bootstrap_interval",
    "cluster_quantile_interval",
    "compare_pairs",
    "least_samples",
    "order_statistic_interval",
    "pairs_needed",
    "settled",
]
