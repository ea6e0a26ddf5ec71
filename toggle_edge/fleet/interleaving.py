"""Two things measured in turns, so that what the machine does meanwhile happens to both; then compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from toggle_runtime.records import LatencySample

from toggle_edge.fleet.latency import kept
from toggle_edge.statistics import INCONCLUSIVE, Comparison, compare_pairs

Job = Callable[[], LatencySample]
"""Measures in a process of its own."""

LOOKS = (20, 40, 80, 160, 320, 640)
"""Numbers of pairs after which to look whether it is decided. 20 tell 5 % from 3 % on a quiet machine; a busy one takes
more, and how busy it is nobody knows before."""


def decided(
    baseline: Job, candidate: Job, *, looks: Sequence[int] = LOOKS, min_effect: float = 0.03, seed: int = 0
) -> Comparison:
    """Measure pairs until their median token times decide between better, worse and no difference, or `looks` end.

    Who looks several times is misled more often, so each look gets its part of the error (Bonferroni): the interval is
    right in 95 of 100 whichever look was the last. Raises ValueError for looks that do not ascend, and
    where a process has no timed token.
    """
    if not looks or list(looks) != sorted(set(looks)) or looks[0] < 1:
        raise ValueError(f"looks: expected ascending numbers of pairs, got {list(looks)}")
    random = np.random.default_rng(seed)
    before: list[float] = []
    after: list[float] = []
    for pairs in looks:
        while len(before) < pairs:
            first, second = _pair(baseline, candidate, random)
            before.append(median_token(first))
            after.append(median_token(second))
        found = compare_pairs(before, after, min_effect=min_effect, confidence=1.0 - 0.05 / len(looks))
        if found.verdict != INCONCLUSIVE:
            break
    return found


def interleaved(
    baseline: Job, candidate: Job, *, pairs: int, seed: int = 0
) -> tuple[list[LatencySample], list[LatencySample]]:
    """Run each job `pairs` times, side by side, in an order drawn anew for every pair (with `seed`).

    The drawn order is what makes the comparison exact: whoever comes second is as often one as the other.
    """
    random = np.random.default_rng(seed)
    found = [_pair(baseline, candidate, random) for _ in range(pairs)]
    return [before for before, _ in found], [after for _, after in found]


def _pair(baseline: Job, candidate: Job, random: np.random.Generator) -> tuple[LatencySample, LatencySample]:
    if random.random() < 0.5:
        before = baseline()
        return before, candidate()
    after = candidate()
    return baseline(), after


def median_token(sample: LatencySample) -> float:
    """Of all tokens after the first that are no warm-ups, nanoseconds. Raises ValueError where there is none."""
    tokens = [t for generation in kept(sample) for t in generation.token_ns]
    if not tokens:
        raise ValueError("pairs: expected timed tokens in every process, got one without")
    return float(np.median(tokens))
