"""What is believed about one outcome: additive harm as the mean, its errors learnt, the rest a Gaussian process.

Every choice `c` of a dimension `u` does some harm, and harms add up, since quantisation errors of different layers are
nearly independent. How far an outcome falls short of the untouched model's then follows a power law of the sum:

    log shortfall = a + b * T + residual,    T = log(sum over u of exp(prior[u, c] + delta[u] + delta[u, c]))

`prior` comes from the sensitivities; `a`, `b` and `delta` have normal priors, the residual is a small Matern process.
The law is linearised at its most likely parameters (Gauss-Newton), so the posterior is a Gaussian process's: a Bayesian
linear model on one-hot choices, which holds its own at thousands of dimensions (arXiv 2512.00170). In logarithms, a
trial that failed by a hair says where the boundary is, and one that failed badly hardly does. An observation may be a
bound: the shortfall is at least so much.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from botorch.utils.sampling import manual_seed
from gpytorch.kernels import MaternKernel
from torch import Tensor

from toggle_edge.errors import SearchError

UNIT_DEVIATION, CHOICE_DEVIATION = 0.4, 0.9
"""Prior deviation of log harm: of a whole dimension, and of one choice in it."""

POWER = 0.6
"""Prior mean of `b`: a logit moves with the error, so with the root of its power; a divergence with its square."""

OFFSET_DEVIATION, POWER_DEVIATION = 1.5, 0.25
RESIDUAL_DEVIATION, RESIDUAL_LENGTH = 0.05, 0.5

NOISES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""Deviations of the roughness that no smooth law explains; the likeliest one is taken."""

STEPS = 6
"""Gauss-Newton steps; the parameters hardly move after four."""

UNINFORMATIVE = 2.0
"""Deviation added to a bound that lies far below what is expected anyway: it then says nothing."""


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """One torch thread, no gradients and a seeded global generator inside; all restored after.

    One thread because the matrices are tiny (more threads only wait for each other) and because sums then
    have one order, so that proposals repeat bit for bit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with manual_seed(seed), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Design:
    """Points at which a law is fitted or asked: levels (n x D) and their encoding in [0, 1] (n x D)."""

    levels: Tensor
    encoded: Tensor


@dataclass(frozen=True)
class _Parameters:
    offset: float
    power: float
    unit: Tensor
    choice: Tensor


@dataclass(frozen=True)
class Law:
    """The posterior of one outcome's law.

    `harm` is the likeliest log harm by dimension and choice (D x C). `expected` are mean and deviation of the log
    shortfall of each observation (n) as the others let expect it, `surprise` by how much it was more.
    """

    harm: Tensor
    noise: float
    expected: tuple[Tensor, Tensor]
    surprise: Tensor
    _prior: Tensor
    _centre: float
    _parameters: _Parameters
    _design: Design
    _factor: Tensor
    _weights: Tensor

    def predict(self, design: Design) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the log shortfall that an evaluation would find, at n points."""
        theirs, ours = self._features(design), self._features(self._design)
        residual = _matern(design.encoded, self._design.encoded)
        cross = theirs @ ours.T + residual
        mean = self._mean(design) + residual @ self._weights
        solved = torch.linalg.solve_triangular(self._factor, cross.T, upper=False)
        own = theirs.square().sum(-1) + RESIDUAL_DEVIATION**2
        variance = (own - solved.square().sum(0)).clamp_min(1e-8) + self.noise**2
        return mean, variance.sqrt()

    def optimism(self, bar: float) -> float:
        """By how much observations that the others let expect near `bar` were typically above what was expected.

        A search evaluates what it believes to be just good enough, so errors of the belief that flatter are chosen, and
        the belief is too hopeful just where it is used. Shrunk towards 0 by one observation without surprise.
        """
        mean, deviation = self.expected
        near = torch.exp(-0.5 * ((mean - bar) / deviation) ** 2)
        return max(float((near * self.surprise).sum() / (near.sum() + 1.0)), 0.0)

    def total_at(self, log_shortfall: float) -> float:
        """The log of the summed harm at which the likeliest law has this log shortfall."""
        return self._centre + (log_shortfall - self._parameters.offset) / self._parameters.power

    def _mean(self, design: Design) -> Tensor:
        total, _ = _total(self._prior, self._parameters, design.levels)
        return self._parameters.offset + self._parameters.power * (total - self._centre)

    def _features(self, design: Design) -> Tensor:
        return _features(self._prior, self._parameters, self._centre, design.levels)


def fit_law(prior: Tensor, design: Design, shortfalls: Tensor, bounded: Tensor) -> Law:
    """Fit to n log shortfalls; where `bounded`, the true one is at least that.

    `prior` is the expected log harm, D x C; choices that a dimension does not have are ignored. Raises SearchError if
    the numbers admit no fit.
    """
    if len(shortfalls) == 0 or not torch.isfinite(shortfalls).all() or not torch.isfinite(prior).all():
        raise SearchError("surrogate: expected one or more finite observations and finite priors")
    exact = shortfalls[~bounded] if (~bounded).any() else shortfalls
    size = prior.shape
    first = _Parameters(float(exact.mean()), POWER, torch.zeros(size[0]).double(), torch.zeros(size).double())
    centre = float(_total(prior, first, design.levels)[0].mean())
    residual = _matern(design.encoded, design.encoded)
    noise, found = 0.2, first
    for step in range(STEPS):
        features = _features(prior, found, centre, design.levels)
        mean = found.offset + found.power * (_total(prior, found, design.levels)[0] - centre)
        targets, extra = _imputed(shortfalls, bounded, mean, noise)
        moved = targets - mean + features @ _vector(found, first)
        kernel = features @ features.T + residual
        if step == STEPS // 2:
            noise = _likeliest_noise(kernel, extra, moved)
        factor = _cholesky(kernel + torch.diag(noise**2 + extra))
        weights = torch.cholesky_solve(moved.unsqueeze(-1), factor).squeeze(-1)
        if step < STEPS - 1:
            found = _parameters(features.T @ weights, first)
    harm = prior + found.unit.unsqueeze(-1) + found.choice
    # What a Gaussian process would predict of each observation without it (Rasmussen and Williams 2006, eq. 5.12).
    precision = torch.cholesky_inverse(factor).diagonal()
    surprise = weights / precision
    expected = (targets - surprise, precision.rsqrt())
    return Law(harm, noise, expected, surprise, prior, centre, found, design, factor, weights)


def _total(prior: Tensor, parameters: _Parameters, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the summed harm of n points, and each dimension's share of the sum (n x D)."""
    harm = prior + parameters.unit.unsqueeze(-1) + parameters.choice
    own = harm.gather(1, levels.T).T
    return own.logsumexp(-1), own.softmax(-1)


def _features(prior: Tensor, parameters: _Parameters, centre: float, levels: Tensor) -> Tensor:
    """Derivatives of the log shortfall by all parameters, each times its prior deviation."""
    total, share = _total(prior, parameters, levels)
    pull = parameters.power * share
    choice = torch.zeros(len(levels), *prior.shape, dtype=pull.dtype)
    choice.scatter_(2, levels.unsqueeze(-1), CHOICE_DEVIATION * pull.unsqueeze(-1))
    offset = torch.full_like(total, OFFSET_DEVIATION).unsqueeze(-1)
    power = POWER_DEVIATION * (total - centre).unsqueeze(-1)
    return torch.cat([offset, power, UNIT_DEVIATION * pull, choice.flatten(1)], dim=1)


def _vector(found: _Parameters, first: _Parameters) -> Tensor:
    """Parameters as multiples of their prior deviations from their prior means."""
    head = torch.tensor(
        [(found.offset - first.offset) / OFFSET_DEVIATION, (found.power - first.power) / POWER_DEVIATION],
        dtype=found.unit.dtype,
    )
    return torch.cat([head, found.unit / UNIT_DEVIATION, found.choice.flatten() / CHOICE_DEVIATION])


def _parameters(vector: Tensor, first: _Parameters) -> _Parameters:
    size = len(first.unit)
    return _Parameters(
        first.offset + OFFSET_DEVIATION * float(vector[0]),
        # A law that does not grow with harm would turn the search upside down.
        max(first.power + POWER_DEVIATION * float(vector[1]), 0.2),
        UNIT_DEVIATION * vector[2 : 2 + size],
        CHOICE_DEVIATION * vector[2 + size :].reshape(first.choice.shape),
    )


def _imputed(shortfalls: Tensor, bounded: Tensor, mean: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """What to fit at this step, and the variance added to each: expectation maximisation of bounds."""
    spread = math.hypot(noise, 0.3)
    z = (shortfalls - mean) / spread
    # The inverse Mills ratio; for a bound far above the mean it tends to z.
    ratio = torch.exp(-0.5 * z**2 - 0.5 * math.log(2 * math.pi) - torch.special.log_ndtr(-z))
    bites = torch.special.ndtr(z)
    targets = torch.where(bounded, mean + spread * ratio, shortfalls)
    return targets, torch.where(bounded, UNINFORMATIVE**2 * (1.0 - bites), torch.zeros_like(bites))


def _likeliest_noise(kernel: Tensor, extra: Tensor, values: Tensor) -> float:
    def evidence(noise: float) -> float:
        factor = _cholesky(kernel + torch.diag(noise**2 + extra))
        solved = torch.linalg.solve_triangular(factor, values.unsqueeze(-1), upper=False)
        return float(-0.5 * solved.square().sum() - factor.diagonal().log().sum())

    return max(NOISES, key=evidence)


def _matern(first: Tensor, second: Tensor) -> Tensor:
    # Distances grow with the root of the dimension, and so must the length (arXiv 2402.02229).
    kernel = MaternKernel(nu=2.5).double()
    kernel.lengthscale = RESIDUAL_LENGTH * math.sqrt(first.shape[-1])
    found: Tensor = RESIDUAL_DEVIATION**2 * kernel(first, second).to_dense()
    return found


def _cholesky(matrix: Tensor) -> Tensor:
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info):
        raise SearchError(f"surrogate: the {len(matrix)} observations admit no fit: their kernel is singular")
    return torch.as_tensor(factor)
