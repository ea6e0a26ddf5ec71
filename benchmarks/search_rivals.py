"""The rivals of `search.py`, and the desk that counts what each of them spends.

All start with the uniform configs and go on until the tokens are spent. Methods that only ask whether a config is
feasible stop reading a refuted one early, as ours does; those that fit numbers to every trial read it whole.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import optuna
import search_gp
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import lil_array
from scipy.stats import qmc
from search_problem import Problem

from toggle_edge.config import Config
from toggle_edge.search.trial import Observation, Trial

SENSITIVITY_PROBES = 16


class SpentError(Exception):
    """No tokens are left."""


@dataclass(frozen=True)
class Entry:
    """A trial and the tokens that had been read when it was done."""

    tokens: int
    config: Config
    observation: Observation


@dataclass
class Desk:
    """Evaluates for one method and counts tokens: a config that comes again costs nothing."""

    problem: Problem
    budget: int
    tokens: int = 0
    entries: list[Entry] = field(default_factory=list)
    repeats: int = 0

    def __post_init__(self) -> None:
        self._known: dict[str, Observation] = {}
        self._violations = np.zeros(len(self.problem.tokens), dtype=np.int64)

    @property
    def history(self) -> list[Trial]:
        return [Trial(i, e.config, "", e.observation) for i, e in enumerate(self.entries)]

    def observe(self, config: Config, *, refute: bool = False) -> Observation:
        """Evaluate a config; with `refute` only until no mode can hold. Raises SpentError."""
        if config.digest in self._known:
            self.repeats += 1
            if self.repeats > 2000:
                raise SpentError
            return self._known[config.digest]
        if self.tokens >= self.budget:
            raise SpentError
        order = np.argsort(-self._violations, kind="stable").tolist()
        if refute:
            judged, read = self.problem.refuting(config, order)
        else:
            judged, read = self.problem.judged(config), order
        self._violations += self.problem.violations(config, read)
        self.tokens += int(self.problem.tokens[read].sum())
        self._known[config.digest] = judged.observation
        self.entries.append(Entry(self.tokens, config, judged.observation))
        return judged.observation

    def sample(self, config: Config, probes: Sequence[int]) -> Observation:
        """A config on some probes only: it counts tokens and is no trial. Raises SpentError."""
        if self.tokens >= self.budget:
            raise SpentError
        self.tokens += int(self.problem.tokens[list(probes)].sum())
        return self.problem.judged(config, probes=probes).observation


def start(desk: Desk, *, refute: bool = False) -> None:
    for config in reversed(list(desk.problem.space.uniforms())):
        desk.observe(config, refute=refute)


def uniform(desk: Desk, seed: int) -> None:
    """One format everywhere."""
    start(desk, refute=True)


def random(desk: Desk, seed: int) -> None:
    """Random configs whose mix of formats is random too."""
    start(desk, refute=True)
    generator = np.random.default_rng(seed)
    while True:
        desk.observe(desk.problem.space.random(generator), refute=True)


def sobol(desk: Desk, seed: int) -> None:
    """A scrambled Sobol sequence over all levels."""
    start(desk, refute=True)
    sizes = np.array(desk.problem.space.sizes)
    engine = qmc.Sobol(len(sizes), rng=seed)
    while True:
        row = engine.random(1)[0]
        desk.observe(desk.problem.space.decode((row * sizes).astype(int).tolist()), refute=True)


def tpe(desk: Desk, seed: int) -> None:
    """Optuna's multi-objective TPE with constraints. A study per mode, in turns; each is told all trials."""
    space, targets = desk.problem.space, desk.problem.targets
    limits = {f"d{i}": optuna.distributions.IntDistribution(0, n - 1) for i, n in enumerate(space.sizes)}
    samplers = {
        mode: optuna.samplers.TPESampler(seed=seed + i, multivariate=True) for i, mode in enumerate(targets)
    }
    studies = {
        mode: optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
        for mode, sampler in samplers.items()
    }

    def tell(config: Config, observation: Observation) -> None:
        params = {f"d{i}": level for i, level in enumerate(space.levels(config))}
        for mode, study in studies.items():
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=limits,
                    values=[observation.proxy_flops, observation.avgpp],
                    constraints=_violations(observation, mode, targets[mode]),
                )
            )

    for config in reversed(list(space.uniforms())):
        tell(config, desk.observe(config))
    for mode in itertools.cycle(targets):
        trial = studies[mode].ask(limits)
        config = space.decode([trial.params[f"d{i}"] for i in range(len(space.sizes))])
        observation = desk.observe(config)
        studies[mode].tell(trial, state=optuna.trial.TrialState.FAIL)
        tell(config, observation)


def _violations(observation: Observation, mode: str, target: float) -> dict[str, float]:
    robustness, avgpp = observation.robustness[mode], observation.avgpp
    missing = 1.0  # a violation that no judged config has
    return {
        "robustness": missing if robustness is None else -robustness,
        "avgpp": missing if avgpp is None else (target - avgpp) / 100.0,
    }


def nsga(desk: Desk, seed: int) -> None:
    """Optuna's NSGA-II on (cost, AvgPP), constrained by the weakest mode: its front passes through all of them."""
    space, targets = desk.problem.space, desk.problem.targets
    weakest = min(targets, key=lambda mode: targets[mode])

    study = optuna.create_study(
        directions=["minimize", "maximize"],
        sampler=optuna.samplers.NSGAIISampler(population_size=20, seed=seed),
    )
    for config in reversed(list(space.uniforms())):
        study.enqueue_trial({f"d{i}": level for i, level in enumerate(space.levels(config))})

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        config = space.decode([trial.suggest_int(f"d{i}", 0, n - 1) for i, n in enumerate(space.sizes)])
        observation = desk.observe(config)
        for key, violation in _violations(observation, weakest, targets[weakest]).items():
            trial.set_constraint(key, violation)
        return observation.proxy_flops, observation.avgpp or 0.0

    study.optimize(objective, n_trials=None)


def gp_bo(desk: Desk, seed: int) -> None:
    """The paper's constrained Bayesian optimisation."""
    start(desk)
    while True:
        desk.observe(search_gp.propose(desk.problem.space, desk.history, desk.problem.targets, seed))


def knapsack(desk: Desk, seed: int) -> None:
    """AvgPP lost by each format in one unit at a time, then the additive optimum along the cost axis."""
    start(desk, refute=True)
    space = desk.problem.space
    generator = np.random.default_rng(seed)
    probes = sorted(generator.choice(len(desk.problem.tokens), SENSITIVITY_PROBES, replace=False).tolist())
    untouched = desk.sample(space.decode(space.safest), probes).avgpp or 0.0
    losses, costs = [], []
    for i, size in enumerate(space.sizes):
        for level in range(size):
            config = space.decode([*space.safest[:i], level, *space.safest[i + 1 :]])
            costs.append(space.proxy_flops(config))
            lost = 0.0 if level == size - 1 else untouched - (desk.sample(config, probes).avgpp or 0.0)
            losses.append(lost)
    dearest = space.proxy_flops(space.decode(space.safest))
    saved = dearest - np.array(costs)
    most = sum(max(saved[s : s + n]) for s, n in _spans(space.sizes))
    # Golden-ratio order: any prefix of the sweep covers the axis evenly.
    for step in itertools.count(1):
        share = (seed * 0.17 + step * 0.6180339887) % 1.0
        chosen = additive_optimum(np.array(losses), saved, space.sizes, share * most)
        desk.observe(space.decode(chosen), refute=True)


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(np.cumsum([0, *sizes[:-1]]).tolist(), sizes, strict=True))


def additive_optimum(
    losses: NDArray[np.float64], saved: NDArray[np.float64], sizes: Sequence[int], least: float
) -> list[int]:
    """The levels with the least sum of losses that save at least so much: a multiple-choice knapsack."""
    rows = lil_array((len(sizes), len(losses)))
    for i, (begin, size) in enumerate(_spans(sizes)):
        rows[i, begin : begin + size] = 1.0
    solved = milp(
        np.maximum(losses, 0.0),
        integrality=np.ones(len(losses)),
        bounds=(0, 1),
        constraints=[
            LinearConstraint(rows.tocsr(), 1.0, 1.0),
            LinearConstraint(saved[np.newaxis], least, np.inf),
        ],
        options={"mip_rel_gap": 1e-4, "time_limit": 5.0},
    )
    return [int(np.argmax(solved.x[b : b + n])) for b, n in _spans(sizes)]


def level_switches(desk: Desk, seed: int) -> None:
    """EvoPress-like: from the cheapest feasible trial of a mode, offspring one step cheaper with some levels switched;
    racing on 8, then 20 probes, the survivor on all."""
    start(desk, refute=True)
    space, generator = desk.problem.space, np.random.default_rng(seed)
    sizes = np.array(space.sizes)
    for mode in itertools.cycle(desk.problem.targets):
        feasible = [entry for entry in desk.entries if entry.observation.feasible[mode]]
        parent = (
            min(feasible, key=lambda e: e.observation.proxy_flops).config
            if feasible
            else space.decode(space.safest)
        )
        levels, before = np.array(space.levels(parent)), space.proxy_flops(parent)
        offspring: dict[str, Config] = {}
        for _ in range(400):
            child = levels.copy()
            for step in (1, -1) * int(generator.integers(0, 3)) + (-1,):
                movable = np.flatnonzero((child + step >= 0) & (child + step < sizes))
                child[generator.choice(movable)] += step
            config = space.decode(child.tolist())
            if space.proxy_flops(config) < before and config.digest not in desk._known:
                offspring[config.digest] = config
            if len(offspring) == 12:
                break
        if not offspring:
            raise SpentError
        survivors = list(offspring.values())
        for probes, kept in ((8, 4), (20, 1)):
            drawn = generator.choice(len(desk.problem.tokens), probes, replace=False).tolist()
            scores = [desk.sample(config, drawn).robustness[mode] or 0.0 for config in survivors]
            survivors = [survivors[i] for i in np.argsort(scores)[::-1][:kept]]
        desk.observe(survivors[0], refute=True)


RIVALS: dict[str, Callable[[Desk, int], None]] = {
    "uniform": uniform,
    "random": random,
    "sobol": sobol,
    "tpe": tpe,
    "nsga-ii": nsga,
    "gp-bo": gp_bo,
    "knapsack": knapsack,
    "level-switches": level_switches,
}


def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="The balance properties of Sobol", category=UserWarning)
