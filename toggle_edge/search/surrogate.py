"""Gaussian-process models of what is only known after an evaluation: AvgPP and robustness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.utils.sampling import manual_seed
from gpytorch.mlls import ExactMarginalLogLikelihood
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.errors import SearchError

MAX_FIT_ITERATIONS = 60
"""Cap on the hyperparameter fit: with the default, one fit may take minutes on a small host."""

MISS = 0.1
"""Least distance, in the outcome's unit, by which a missing value is taken to miss its bar."""


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """One torch thread and a seeded global generator inside; both restored after.

    One thread because the matrices are tiny (more threads only wait for each other) and because sums then
    have one order, so that proposals repeat bit for bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with manual_seed(seed):
            yield
    finally:
        torch.set_num_threads(threads)


def fill_missing(values: Sequence[float | None], bar: float) -> NDArray[np.float64]:
    """Replace None by a finite pessimistic value.

    An outcome that could not be judged is not evidence of nothing: it failed. It counts as worse than every
    observed value and than the `bar` that it had to reach, by the observed range (at least `MISS`). Infinity
    would be the honest bound but no Gaussian process can be fitted to it.
    """
    known = [value for value in values if value is not None]
    worst, spread = min([*known, bar]), max(known, default=0.0) - min(known, default=0.0)
    pessimistic = worst - max(spread, MISS)
    return np.array([pessimistic if value is None else value for value in values])


def fit_outcomes(design: NDArray[np.float64], outcomes: NDArray[np.float64]) -> SingleTaskGP:
    """Independent standardised GPs, one per outcome, with priors scaled to the dimension (arXiv 2402.02229).

    `design` is n x d in [0, 1], `outcomes` n x m finite numbers; the posterior is in their units. One model
    rather than m: its posterior samples come from one quasi-random sequence, so that they are independent
    between outcomes. Call inside `isolated`. Raises SearchError if the fit fails for numerical reasons.
    """
    X = torch.from_numpy(np.ascontiguousarray(design, dtype=np.float64))
    Y = torch.from_numpy(np.ascontiguousarray(outcomes, dtype=np.float64))
    model = SingleTaskGP(X, _varied(Y))
    try:
        fit_gpytorch_mll(
            ExactMarginalLogLikelihood(model.likelihood, model),
            optimizer_kwargs={"options": {"maxiter": MAX_FIT_ITERATIONS}},
        )
    except ModelFittingError as exc:
        raise SearchError(f"surrogate: {len(X)} observations of {X.shape[-1]} layers: {exc}") from exc
    return model


def _varied(Y: Tensor) -> Tensor:
    # Equal outcomes have no standard deviation to divide by, and BoTorch then warns that the data are not
    # standardised. A spread far below any real difference keeps the model flat and the data well formed.
    if len(Y) < 2:
        return Y
    ripple = 1e-6 * torch.linspace(-1.0, 1.0, len(Y), dtype=Y.dtype).unsqueeze(-1)
    return torch.where(Y.std(dim=0) > 1e-9, Y, Y + ripple)
