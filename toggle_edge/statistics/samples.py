"""What every method asks of its arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Samples = Sequence[float] | NDArray[np.float64]


def checked_confidence(confidence: float) -> float:
    """The same number. Raises ValueError unless it lies between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number between 0 and 1, got {confidence!r}")
    return confidence


def checked_quantile(quantile: float) -> float:
    """The same number. Raises ValueError unless it lies between 0 and 1."""
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile: expected a number between 0 and 1, got {quantile!r}")
    return quantile


def finite(samples: Samples) -> NDArray[np.float64]:
    """As float64. Raises ValueError when a sample is not finite."""
    values = np.asarray(samples, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("samples: expected finite numbers, got a NaN or an infinity")
    return values


def finite_clusters(clusters: Sequence[Samples]) -> list[NDArray[np.float64]]:
    """Each as float64. Raises ValueError when one is empty or a value is not finite."""
    values = [finite(cluster) for cluster in clusters]
    if any(len(cluster) == 0 for cluster in values):
        raise ValueError("clusters: expected at least one value in each, got an empty one")
    return values
