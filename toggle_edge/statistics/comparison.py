"""Which of two is better, from pairs that were measured side by side; and which of many such claims to believe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from toggle_edge.statistics.bounds import least_samples
from toggle_edge.statistics.samples import Samples, checked_confidence, finite

REGRESSED, IMPROVED, NO_DIFFERENCE, INCONCLUSIVE = "regressed", "improved", "no difference", "inconclusive"

MIN_PAIRS = least_samples(0.5)
"""With fewer pairs even a candidate that is slower in all of them may be so by chance."""


@dataclass(frozen=True)
class Comparison:
    """A candidate beside its baseline. `ratio` is candidate over baseline of a quantity that should be small.

    `ci95` is None for too few pairs. `verdict` is one of `REGRESSED`, `IMPROVED` (the whole interval lies beyond
    `min_effect`), `NO_DIFFERENCE` (it lies within) and `INCONCLUSIVE`, which has a `reason`: a lack of evidence is
    never a pass.
    """

    verdict: str
    ratio: float
    ci95: tuple[float, float] | None
    p_value: float
    pairs: int
    min_effect: float
    reason: str | None = None


def compare_pairs(
    baseline: Samples, candidate: Samples, *, min_effect: float = 0.03, confidence: float = 0.95
) -> Comparison:
    """Compare positive quantities that should be small, one of each per pair measured side by side.

    The ratio is Hodges and Lehmann's estimate (1963) on the logarithms, its interval the inversion of Wilcoxon's
    signed-rank test, exact for any symmetric noise, and symmetric it is when each pair's order was drawn at random.
    `min_effect` 0.03 asks for at least 3 %. Raises ValueError for unequal lengths, no pair, or numbers not above 0.
    """
    before, after = finite(baseline), finite(candidate)
    if before.shape != after.shape or before.ndim != 1 or not len(before):
        raise ValueError(f"pairs: expected as many of each, at least 1, got {before.shape} and {after.shape}")
    if min(before.min(), after.min()) <= 0.0:
        raise ValueError("pairs: expected numbers above 0")
    if not 0.0 <= min_effect < math.inf:
        raise ValueError(f"min_effect: expected 0 or more, got {min_effect!r}")
    shifts = np.log(after) - np.log(before)
    pairs = len(shifts)
    walsh = _walsh_averages(shifts)
    ratio = math.exp(float(np.median(walsh)))
    rank = _signed_rank_quantile(pairs, (1.0 - checked_confidence(confidence)) / 2.0)
    if rank == 0:
        reason = f"needs at least {MIN_PAIRS} pairs, has {pairs}"
        return Comparison(INCONCLUSIVE, ratio, None, 1.0, pairs, min_effect, reason)
    low, high = math.exp(walsh[rank - 1]), math.exp(walsh[-rank])
    verdict = _verdict(low, high, 1.0 + min_effect)
    found = Comparison(verdict, ratio, (low, high), _p_value(shifts), pairs, min_effect)
    if verdict != INCONCLUSIVE:
        return found
    needed = pairs_needed(found)
    more = "" if needed is None else f"; about {needed - pairs} more pairs would decide"
    span = f"[{100 * (low - 1):+.1f} %, {100 * (high - 1):+.1f} %]"
    return dataclasses.replace(
        found, reason=f"{span} is partly within and partly beyond {100 * min_effect:g} %{more}"
    )


def pairs_needed(comparison: Comparison) -> int | None:
    """How many pairs in all would decide, if the estimate stays what it is; None where nothing can be said.

    An interval narrows with the root of the number of pairs.
    """
    if comparison.ci95 is None:
        return MIN_PAIRS
    low, high = np.log(comparison.ci95)
    border = math.log1p(comparison.min_effect)
    distance = abs(abs(math.log(comparison.ratio)) - border)
    if distance < 1e-3 * border or border == 0.0:
        return None
    half = float(high - low) / 2.0
    return max(comparison.pairs + 1, math.ceil(comparison.pairs * (half / distance) ** 2))


def settled(comparisons: Mapping[str, Comparison], alpha: float = 0.05) -> dict[str, Comparison]:
    """Many comparisons at once: what does not survive Benjamini and Hochberg's step-up (1995) is inconclusive.

    Of the regressions and improvements that remain at most the share `alpha` is expected to be false. `p_value` becomes
    the adjusted one.
    """
    names = list(comparisons)
    if not names:
        return {}
    adjusted = stats.false_discovery_control([comparisons[name].p_value for name in names], method="bh")
    found = {}
    for name, p_value in zip(names, adjusted.tolist(), strict=True):
        each = dataclasses.replace(comparisons[name], p_value=p_value)
        if each.verdict in (REGRESSED, IMPROVED) and not p_value <= alpha:
            reason = (
                f"among {len(names)} comparisons a p-value this large ({p_value:.3f}) is expected by chance"
            )
            each = dataclasses.replace(each, verdict=INCONCLUSIVE, reason=reason)
        found[name] = each
    return found


def _verdict(low: float, high: float, border: float) -> str:
    if low > border:
        return REGRESSED
    if high < 1.0 / border:
        return IMPROVED
    if low >= 1.0 / border and high <= border:
        return NO_DIFFERENCE
    return INCONCLUSIVE


def _walsh_averages(shifts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of all pairs of values, each with itself too, ascending."""
    first, second = np.triu_indices(len(shifts))
    return np.sort((shifts[first] + shifts[second]) / 2.0)


def _signed_rank_quantile(pairs: int, tail: float) -> int:
    """How many of the least rank sums have together at most the probability `tail` when there is no difference."""
    chances = np.ones(1)
    for rank in range(1, pairs + 1):
        without, with_it = np.pad(chances, (0, rank)), np.pad(chances, (rank, 0))
        chances = (without + with_it) / 2.0
    return int((np.cumsum(chances) <= tail).sum())


def _p_value(shifts: NDArray[np.float64]) -> float:
    if not shifts.any():
        return 1.0
    sizes = np.abs(shifts)
    exact = bool(sizes.all()) and len(np.unique(sizes)) == len(sizes)
    return float(stats.wilcoxon(shifts, method="exact" if exact else "asymptotic").pvalue)
