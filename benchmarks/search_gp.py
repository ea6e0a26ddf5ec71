"""The paper's search, as a rival: constrained Bayesian optimisation with one Gaussian process per outcome.

What the product had before it learned to read robustness: Matérn processes over all levels, candidates from mutations
of the front and from the whole space, qLogEHVI or the cheapest likely feasible one in turns, modes in turns.

We minimise cost, maximise AvgPP and call robustness `>= 0` satisfied; BoTorch maximises every objective and
calls a constraint `<= 0` satisfied.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogExpectedHypervolumeImprovement
from botorch.acquisition.multi_objective.objective import IdentityMCMultiOutputObjective
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.model import ModelList
from botorch.sampling.index_sampler import IndexSampler
from botorch.sampling.list_sampler import ListSampler
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.utils.multi_objective.box_decompositions import NondominatedPartitioning
from gpytorch.mlls import ExactMarginalLogLikelihood
from linear_operator.utils.warnings import NumericalWarning
from numpy.typing import NDArray
from torch import Tensor

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.pareto import non_dominated
from toggle_edge.search.space import Levels, Space
from toggle_edge.search.surrogate import isolated
from toggle_edge.search.trial import Trial

FRONT, CHEAPEST = "front", "cheapest"
POOL_SIZE, RANDOM_SHARE, PARENTS = 512, 0.25, 8
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
    design = space.encode([space.levels(trial.config) for trial in trials])
    avgpp = fill_missing([outcome.avgpp for outcome in outcomes], avgpp_target)
    robustness = fill_missing([outcome.robustness[mode] for outcome in outcomes], 0.0)
    feasible = np.array([outcome.feasible[mode] for outcome in outcomes])
    with isolated(seed), torch.enable_grad(), warnings.catch_warnings():
        # Where an outcome is known almost exactly, rounding makes its posterior variance negative; GPyTorch
        # lifts it to 1e-10 and warns. Nothing is lost for a ranking.
        warnings.simplefilter("ignore", NumericalWarning)
        # AvgPP in units of the room between target and perfection keeps both objectives near [0, 1].
        room = max(100.0 - avgpp_target, 1.0)
        excess = (avgpp - avgpp_target) / room
        model = fit_outcomes(design, np.stack([excess, robustness], axis=-1))
        X = torch.from_numpy(space.encode([space.levels(config) for config in pool])).unsqueeze(-2)
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
        known = np.array([space.proxy_flops(nearest(space, row)) for row in rows])
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


def nearest(space: Space, vector: NDArray[np.float64]) -> Config:
    """The config whose encoding lies closest."""
    places = [np.array(each.coordinates) for each in space.dimensions]
    return space.decode([int(np.abs(p - value).argmin()) for p, value in zip(places, vector, strict=True)])


MAX_FIT_ITERATIONS = 60
"""Cap on the hyperparameter fit: with the default, one fit may take minutes on a small host."""

MISS = 0.1
"""Least distance, in the outcome's unit, by which a missing value is taken to miss its bar."""


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


def candidate_pool(
    space: Space, parents: Sequence[Config], tried: Sequence[Config], generator: np.random.Generator
) -> tuple[Config, ...]:
    """Distinct configs outside `tried`: mutations of `parents` and random ones."""
    seen = {space.levels(config) for config in tried}
    pool: dict[Levels, Config] = {}
    mutations = round((1 - RANDOM_SHARE) * POOL_SIZE) if parents else 0
    for draw in range(POOL_SIZE):
        config = (
            mutate(space, parents[draw % len(parents)], generator)
            if draw < mutations
            else space.random(generator)
        )
        if space.levels(config) not in seen:
            pool[space.levels(config)] = config
    return tuple(pool.values())


def mutate(space: Space, parent: Config, generator: np.random.Generator) -> Config:
    """Move some units one level: all down (cheaper), all up (safer), or each either way (a trade)."""
    levels = np.array(space.levels(parent))
    most = max(1, len(levels) // 2)
    count = min(most, int(np.exp(generator.uniform(0.0, np.log(most + 1)))))
    chosen = generator.choice(len(levels), count, replace=False)
    steps = (np.full(count, -1), np.full(count, 1), generator.choice((-1, 1), count))[generator.integers(3)]
    levels[chosen] = np.clip(levels[chosen] + steps, 0, np.array(space.sizes)[chosen] - 1)
    return space.decode([int(level) for level in levels])


def parents(history: Sequence[Trial], mode: str) -> tuple[Config, ...]:
    """What to mutate for a mode: its feasible front in (cost, AvgPP), else the least violated trials."""
    feasible = [trial for trial in history if trial.observation.feasible[mode]]
    if feasible:
        points = [(t.observation.proxy_flops, -(t.observation.avgpp or 0.0)) for t in feasible]
        kept = non_dominated(np.array(points))
        return tuple(trial.config for trial, on_front in zip(feasible, kept, strict=True) if on_front)
    known = sorted(history, key=lambda trial: -(trial.observation.robustness[mode] or 0.0))
    return tuple(trial.config for trial in known[:PARENTS])


def propose(space: Space, history: Sequence[Trial], modes: Mapping[str, float], seed: int) -> Config:
    """The next config after `history`; modes take turns, and so do the goals."""
    index = len(history)
    mode = tuple(modes)[index % len(modes)]
    streams = np.random.SeedSequence([seed, index]).spawn(2)
    pool = candidate_pool(
        space, parents(history, mode), [t.config for t in history], np.random.default_rng(streams[0])
    )
    merit = merits(
        space,
        history,
        pool,
        mode=mode,
        avgpp_target=modes[mode],
        goal=(CHEAPEST, FRONT)[index // len(modes) % 2],
        seed=int(streams[1].generate_state(1)[0]),
    )
    return pool[int(np.argmax(merit))]
