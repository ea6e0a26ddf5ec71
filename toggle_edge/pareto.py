"""Dominance, the Pareto front, hypervolume and rank correlation. Pure numpy; every cost is minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kendalltau


def non_dominated(costs: ArrayLike) -> NDArray[np.bool_]:
    """Which of n points lie on the front of m costs.

    A point dominates another if it is no worse in every cost and better in one, so duplicates keep each
    other. A point with a NaN is never on the front and dominates nothing. Raises ValueError unless `costs` is
    n x m.
    """
    points = _matrix(costs)
    kept = np.asarray(~np.isnan(points).any(axis=1))
    for index in np.flatnonzero(kept):
        better = (points <= points[index]).all(axis=1) & (points < points[index]).any(axis=1)
        # Comparisons with NaN are false, so an incomplete point never counts as better.
        kept[index] = not better.any()
    return kept


def hypervolume(costs: ArrayLike, reference: ArrayLike) -> float:
    """The volume between `reference` and the points that are better than it in every cost.

    Exact for any number of costs, by slicing along the last one (While et al. 2006): cheap for 2, exponential
    in the number of costs. Points with a NaN and points beyond the reference add nothing. Raises ValueError
    on shapes that do not fit, a reference that is not finite, or a cost of minus infinity.
    """
    points, bound = _matrix(costs), np.asarray(reference, dtype=np.float64)
    if bound.shape != (points.shape[1],) or not np.isfinite(bound).all():
        raise ValueError(f"reference: expected {points.shape[1]} finite numbers, got {reference!r}")
    if np.isneginf(points).any():
        raise ValueError("costs: expected numbers above minus infinity; the volume would be infinite")
    return _volume(points[(points < bound).all(axis=1)], bound)


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b of two series (ties corrected), in [-1, 1].

    None where it is undefined: fewer than two pairs, or one series all ties. Raises ValueError on series of
    different lengths or numbers that are not finite.
    """
    first, second = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(
            f"tau: expected two series of one length, got shapes {first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("tau: expected finite numbers; leave out what could not be measured")
    if len(np.unique(first)) < 2 or len(np.unique(second)) < 2:
        return None
    return float(kendalltau(first, second, variant="b").statistic)


def _volume(points: NDArray[np.float64], bound: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(bound[0] - points.min())
    points = points[np.argsort(points[:, -1], kind="stable")]
    edges = np.append(points[:, -1], bound[-1])
    return sum(
        float(edges[i + 1] - edges[i]) * _volume(points[: i + 1, :-1], bound[:-1])
        for i in range(len(points))
        if edges[i + 1] > edges[i]
    )


def _matrix(costs: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(costs, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] == 0:
        raise ValueError(f"costs: expected points x costs, got shape {points.shape}")
    return points
