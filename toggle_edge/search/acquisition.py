"""How much each candidate of a pool promises. The one place where BoTorch's signs are flipped.

We minimise cost, maximise AvgPP and call robustness `>= 0` satisfied; BoTorch maximises every objective and
calls a constraint `<= 0` satisfied.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.models import SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.model import ModelList
from botorch.sampling.index_sampler import IndexSampler
from botorch.sampling.list_sampler import ListSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from linear_operator.utils.warnings import NumericalWarning
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.config import Config
from toggle_edge.search.space import Space
from toggle_edge.search.surrogate import fill_missing, fit_outcomes, isolated
from toggle_edge.search.trial import Trial

FRONT, CHEAPEST = "front", "cheapest"
MC_SAMPLES = 64
COST, AVGPP, ROBUSTNESS = 0, 1, 2


def merits(
    space: Space,
    trials: Sequence[Trial],
    pool: Sequence[Config],
    *,
    mode: str,
    avgpp_target: float,
    goal: str,
    seed: int,
) -> NDArray[np.float64]:
    """The merit of every config in `pool` for one mode, higher is better; only the order has a meaning.

    Goal FRONT: the log of the expected hypervolume by which a candidate would extend the mode's feasible
    front in (cost, AvgPP), weighted with the chance of robustness `>= 0` (Daulton et al. 2020, arXiv
    2006.05078; Ament et al. 2023, arXiv 2310.20708). Goal CHEAPEST: the log of the cost saved against the
    cheapest feasible trial, times the chance of feasibility; hypervolume alone spends trials on the middle of
    the front, while a mode selects its cheap end. Without a feasible trial, for both: minus the expected
    violation of robustness 0 and of the AvgPP target.
    """
    outcomes = [trial.observation for trial in trials]
    design = space.encode([trial.config for trial in trials])
    avgpp = fill_missing([outcome.avgpp for outcome in outcomes], avgpp_target)
    robustness = fill_missing([outcome.robustness[mode] for outcome in outcomes], 0.0)
    feasible = np.array([outcome.feasible[mode] for outcome in outcomes])
    with isolated(seed), warnings.catch_warnings():
        # Where an outcome is known almost exactly, rounding makes its posterior variance negative; GPyTorch
        # lifts it to 1e-10 and warns. Nothing is lost for a ranking.
        warnings.simplefilter("ignore", NumericalWarning)
        # AvgPP in units of the room between target and perfection keeps both objectives near [0, 1].
        room = max(100.0 - avgpp_target, 1.0)
        excess = (avgpp - avgpp_target) / room
        model = fit_outcomes(design, np.stack([excess, robustness], axis=-1))
        X = torch.from_numpy(space.encode(pool)).unsqueeze(-2)
        with torch.no_grad():
            if not feasible.any():
                merit = -_expected_violation(model, X)
            else:
                costs = np.array([outcome.proxy_flops for outcome in outcomes])
                reached = np.stack([cost_gain(space, costs), excess], axis=-1)[feasible]
                if goal == FRONT:
                    merit = _acquisition(space, model, reached, seed)(X)
                else:
                    gain = cost_gain(space, np.array([space.proxy_flops(config) for config in pool]))
                    saved = torch.from_numpy(gain - reached[:, COST].max())
                    # The clamp keeps the log finite: what saves nothing ranks last, by its chance alone.
                    merit = saved.clamp_min(1e-300).log() + _log_feasibility(model, X)
    result: NDArray[np.float64] = merit.numpy()
    return result


def cost_gain(space: Space, proxy_flops: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cost with BoTorch's sign: 0 for the dearest uniform config, 1 for the cheapest, higher is better."""
    uniform = [space.proxy_flops(config) for config in space.uniforms()]
    dearest, cheapest = max(uniform), min(uniform)
    return (dearest - proxy_flops) / ((dearest - cheapest) or 1.0)


def _acquisition(
    space: Space, outcomes: SingleTaskGP, reached: NDArray[np.float64], seed: int
) -> qLogExpectedHypervolumeImprovement:
    def cost(X: Tensor) -> Tensor:
        rows = X.reshape(-1, X.shape[-1]).numpy()
        known = np.array([space.proxy_flops(space.nearest(row)) for row in rows])
        return torch.from_numpy(cost_gain(space, known)).reshape(*X.shape[:-1], 1)

    # The reference point is (the dearest uniform config, the mode's AvgPP target): a config that is dearer or
    # misses the target can never be selected, so it must not gain anything.
    reference = torch.zeros(2, dtype=torch.double)
    model = ModelList(GenericDeterministicModel(cost), outcomes)
    shape = torch.Size([MC_SAMPLES])
    return qLogExpectedHypervolumeImprovement(
        model=model,
        ref_point=reference,
        partitioning=NondominatedPartitioning(ref_point=reference, Y=torch.from_numpy(reached)),
        sampler=ListSampler(IndexSampler(shape, seed=seed), SobolQMCNormalSampler(shape, seed=seed)),
        objective=IdentityMCMultiOutputObjective(outcomes=[COST, AVGPP]),
        constraints=[violation],
        eta=1e-3,
    )


def violation(samples: Tensor) -> Tensor:
    """Robustness with BoTorch's sign: `<= 0` is satisfied. Drops the last axis, the outcomes."""
    return -samples[..., ROBUSTNESS]


def _log_feasibility(model: SingleTaskGP, X: Tensor) -> Tensor:
    mean, deviation = _moments(model, X)
    log_probability: Tensor = torch.special.log_ndtr(mean / deviation).sum(dim=-1)
    return log_probability


def _expected_violation(model: SingleTaskGP, X: Tensor) -> Tensor:
    # E max(0, -y) of a normal y. Unlike the probability of feasibility it does not prefer a badly violated
    # region to a nearly satisfied one merely because less is known there.
    mean, deviation = _moments(model, X)
    z = mean / deviation
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    violation: Tensor = (deviation * density - mean * torch.special.ndtr(-z)).sum(dim=-1)
    return violation


def _moments(model: SingleTaskGP, X: Tensor) -> tuple[Tensor, Tensor]:
    posterior = model.posterior(X)
    return posterior.mean.squeeze(-2), posterior.variance.sqrt().squeeze(-2)
