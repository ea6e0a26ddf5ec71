"""The search itself: propose, evaluate, record, until the trials or the space are used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.search.acquisition import CHEAPEST, FIRST, FRONT, log_merits, reached_points
from toggle_edge.search.belief import believe, design_of
from toggle_edge.search.executors import Evaluate, Executor, InProcess
from toggle_edge.search.knapsack import saved_costs
from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.pool import candidate_pool, incumbents, refined, trust_radius
from toggle_edge.search.sensitivity import Sensitivities, expected_harm
from toggle_edge.search.space import Levels, Space
from toggle_edge.search.surrogate import isolated
from toggle_edge.search.trial import Ledger, Observation, Trial

GOALS = (CHEAPEST, FRONT)
LEARNING_TRIALS = 2
"""So many trials for each dimension, half of them serve all modes at once."""


@dataclass(frozen=True)
class Study:
    """One search. `modes` maps each mode to its AvgPP target in percent; `initial` is tried first, in order.

    One search serves all modes: every second proposal is for all of them together, the others for one in turn, and so
    are the goals. Trials are proposed in batches of `batch`: what a trial is depends on the trials before its batch and
    on those of the batch before it, as configs only; so it does not depend on who evaluates, or how many at once.
    `margins` are robustnesses that a mode must reach to be aimed at, 0 by default. Raises SearchError on arguments with
    which no trial could be proposed.
    """

    space: Space
    ledger: Ledger
    seed: int
    max_trials: int
    modes: Mapping[str, float]
    initial: Sequence[tuple[str, Config]]
    sensitivities: Sensitivities | None = None
    batch: int = 1
    margins: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0 or self.max_trials < 1 or self.batch < 1:
            raise SearchError(
                f"study: expected seed >= 0, max_trials >= 1, batch >= 1; got {self.seed}, {self.max_trials}, "
                f"{self.batch}"
            )
        if not self.modes or not self.initial:
            raise SearchError("study: expected at least one mode and one initial config")
        for mode, target in self.modes.items():
            if not 0.0 <= target <= 100.0:
                raise SearchError(
                    f"study: mode {mode!r}: expected an AvgPP target of 0 to 100 percent, got {target}"
                )
        digests = [config.digest for _, config in self.initial]
        if len(set(digests)) != len(digests):
            raise SearchError("study: expected distinct initial configs, got the same one twice")

    @cached_property
    def _saved(self) -> NDArray[np.float64]:
        return saved_costs(self.space)

    @cached_property
    def _harms(self) -> dict[str, NDArray[np.float64]]:
        return expected_harm(self.space, self.sensitivities)

    def finished(self, history: Sequence[Trial]) -> bool:
        """Whether nothing is left to propose."""
        return len(history) >= min(self.max_trials, self.space.size)

    def batch_start(self, index: int) -> int:
        """The index of the first trial of the batch of trial `index`."""
        return index // self.batch * self.batch

    def propose(self, history: Sequence[Trial]) -> tuple[str, Config]:
        """Origin and config of trial `len(history)`: a pure function of the seed, that index and the history.

        Nothing is carried from one call to the next and no global state stays changed, so a search that was
        killed and resumed proposes what it would have proposed. Raises SearchError when nothing is left.
        """
        start = self.batch_start(len(history))
        return self._propose(history[:start], [trial.config for trial in history[start:]])

    def _propose(self, known: Sequence[Trial], pending: Sequence[Config]) -> tuple[str, Config]:
        index = len(known) + len(pending)
        if index >= min(self.max_trials, self.space.size):
            raise SearchError(f"study: nothing left to propose after {index} trials")
        if index < len(self.initial):
            return self.initial[index]
        streams = np.random.SeedSequence([self.seed, index]).spawn(2)
        generator = np.random.default_rng(streams[0])
        known = [_with_margins(trial, self.margins) for trial in known]
        with isolated(int(streams[1].generate_state(1)[0])):
            return self._guided(known, pending, generator)

    def _guided(
        self, known: Sequence[Trial], pending: Sequence[Config], generator: np.random.Generator
    ) -> tuple[str, Config]:
        space, index = self.space, len(known) + len(pending)
        tried = [space.levels(config) for config in (*(trial.config for trial in known), *pending)]
        around = [
            (incumbents(space, known, mode), trust_radius(known, mode, len(space.sizes)))
            for mode in self.modes
        ]
        try:
            belief = believe(
                space,
                known,
                self._harms,
                {} if self.sensitivities is None else self.sensitivities.untouched,
                targets=self.modes,
                margins=self.margins,
            )
        except SearchError:
            # Nothing can be learnt from these trials. It could not after every resume either, so the search goes on
            # with what was expected beforehand.
            prior = [np.exp(self._harms[""])]
            pool = candidate_pool(space, tried, around, prior, self._saved, generator)
            return "switch", space.decode(pool[int(generator.integers(len(pool)))])
        goal, targets = self._aim(known, index)
        # Of what the batch already asks for, only fronts can tell: it may yet turn out too cheap to be feasible.
        reached = reached_points(space, known, pending if goal == FRONT else (), belief, self.modes)
        dearest = space.proxy_flops(space.decode(space.safest))
        box = (dearest - float(np.nanmax(self._saved, axis=1).sum()), dearest)

        def merits(pool: Sequence[Levels]) -> NDArray[np.float64]:
            costs = np.array([space.proxy_flops(space.decode(levels)) for levels in pool])
            forecast = belief.forecast(design_of(space, pool))
            return log_merits(forecast, costs, reached, goal=goal, targets=targets, box=box)

        harms = [np.maximum.reduce([h.numpy() for h in belief.harms(mode).values()]) for mode in self.modes]
        if AVGPP in belief.laws:
            harms.append(torch.exp(belief.laws[AVGPP].harm).numpy())
        pool = candidate_pool(space, tried, around, harms, self._saved, generator)
        best = refined(space, tried, pool, merits, generator)
        return " ".join([goal, *(targets if len(targets) < len(self.modes) else ())]), space.decode(best)

    def _aim(self, known: Sequence[Trial], index: int) -> tuple[str, Mapping[str, float]]:
        """What the trial is for, and whom.

        At first all modes' fronts and one mode take turns, and so do the modes. Later only modes do: what all gain at
        once is soon found, and what is left lies at the ends of single fronts.
        """
        learning = index < LEARNING_TRIALS * len(self.space.dimensions)
        turn = index // 2 if learning else index
        mode = tuple(self.modes)[turn % len(self.modes)]
        alone = {mode: self.modes[mode]}
        if not any(trial.observation.feasible[mode] for trial in known):
            return FIRST, alone
        if learning and index % 2 == 0:
            return FRONT, self.modes
        return GOALS[turn // len(self.modes) % len(GOALS)], alone

    def run(
        self,
        evaluate: Evaluate,
        on_trial: Callable[[Trial], None] | None = None,
        *,
        on_batch: Callable[[Sequence[Trial]], None] | None = None,
        executor: Executor | None = None,
    ) -> tuple[Trial, ...]:
        """Continue where the ledger ends; return all trials, old and new. `on_trial` hears of the new ones.

        `on_batch` hears before each batch of the trials before it: what an evaluation is to depend on besides its
        config must follow from these alone, or a resumed search would differ. Raises SearchError if the ledger holds
        another search's trials, or an evaluation omits a mode.
        """
        history = list(self.ledger.trials())
        self._check(history)
        while not self.finished(history):
            start = self.batch_start(len(history))
            known, end = history[:start], min(start + self.batch, self.max_trials, self.space.size)
            proposed = [(trial.origin, trial.config) for trial in history[start:]]
            while start + len(proposed) < end:
                proposed.append(self._propose(known, [config for _, config in proposed]))
            if on_batch is not None:
                on_batch(known)
            fresh = proposed[len(history) - start :]
            results = (executor or InProcess()).map(evaluate, [config for _, config in fresh])
            for (origin, config), (observation, payload) in zip(fresh, results, strict=True):
                _require_modes(observation, self.modes)
                trial = Trial(len(history), config, origin, observation, payload)
                self.ledger.record(trial)
                history.append(trial)
                if on_trial is not None:
                    on_trial(trial)
        return tuple(history)

    def _check(self, history: Sequence[Trial]) -> None:
        for index, trial in enumerate(history):
            if trial.index != index:
                raise SearchError(f"ledger: expected trial {index}, got {trial.index}; trials are missing")
            self.space.levels(trial.config)
            _require_modes(trial.observation, self.modes)
        for trial, (origin, config) in zip(history, self.initial, strict=False):
            if trial.config.digest != config.digest:
                raise SearchError(
                    f"ledger: trial {trial.index} is {trial.config.summary()} ({trial.origin}), but this "
                    f"study starts with {config.summary()} ({origin}); resume with the same arguments, or "
                    "start a new study"
                )


def _with_margins(trial: Trial, margins: Mapping[str, float]) -> Trial:
    """The trial as a search with margins sees it: one that passed by less is no better than one that failed."""
    observation = trial.observation
    feasible = {
        mode: holds and (observation.robustness[mode] or 0.0) >= margins.get(mode, 0.0)
        for mode, holds in observation.feasible.items()
    }
    return replace(trial, observation=replace(observation, feasible=feasible))


def _require_modes(observation: Observation, modes: Mapping[str, float]) -> None:
    missing = sorted(set(modes) - set(observation.robustness))
    if missing:
        raise SearchError(f"study: expected every observation to judge mode {missing[0]!r}; it does not")
