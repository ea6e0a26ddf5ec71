"""The search itself: propose, evaluate, record, until the trials or the space are used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.search.acquisition import CHEAPEST, FRONT, log_merits
from toggle_edge.search.belief import believe, design_of
from toggle_edge.search.executors import Evaluate, Executor, InProcess
from toggle_edge.search.knapsack import saved_costs
from toggle_edge.search.pool import candidate_pool, incumbents, trust_radius
from toggle_edge.search.sensitivity import Sensitivities, expected_harm
from toggle_edge.search.space import Space
from toggle_edge.search.surrogate import isolated
from toggle_edge.search.trial import Ledger, Observation, Trial

GOALS = (CHEAPEST, FRONT)


@dataclass(frozen=True)
class Study:
    """One search. `modes` maps each mode to its AvgPP target in percent; `initial` is tried first, in order.

    Modes take turns in guiding proposals, and so do the goals, so that one search serves all modes. Trials are proposed
    in batches of `batch`: what a trial is depends on the trials before its batch and on those of the batch before it,
    as configs only; so it does not depend on who evaluates, or how many at once. `margins` are robustnesses that a mode
    must reach to be aimed at, 0 by default. Raises SearchError on arguments with which no trial could be proposed.
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
        mode = tuple(self.modes)[index % len(self.modes)]
        goal = GOALS[index // len(self.modes) % len(GOALS)]
        streams = np.random.SeedSequence([self.seed, index]).spawn(2)
        generator = np.random.default_rng(streams[0])
        with isolated(int(streams[1].generate_state(1)[0])):
            return self._guided(known, pending, mode, goal, generator)

    def _guided(
        self,
        known: Sequence[Trial],
        pending: Sequence[Config],
        mode: str,
        goal: str,
        generator: np.random.Generator,
    ) -> tuple[str, Config]:
        space, target, margin = self.space, self.modes[mode], self.margins.get(mode, 0.0)
        known = [_with_margin(trial, mode, margin) for trial in known] if margin else known
        tried = [space.levels(config) for config in (*(trial.config for trial in known), *pending)]
        parents, radius = incumbents(space, known, mode), trust_radius(known, mode, len(space.sizes))
        try:
            belief = believe(
                space,
                known,
                self._harms,
                {} if self.sensitivities is None else self.sensitivities.untouched,
                mode=mode,
                target=target,
                margin=margin,
            )
        except SearchError:
            # Nothing can be learnt from these trials. It could not after every resume either, so the search goes on
            # with what was expected beforehand.
            prior = [np.exp(self._harms[""])]
            pool = candidate_pool(space, tried, parents, prior, self._saved, radius, generator)
            return f"switch {mode}", space.decode(pool[int(generator.integers(len(pool)))])
        harms = [harm.numpy() for harm in belief.harms.values()]
        pool = candidate_pool(
            space, tried, parents, [*harms, np.maximum.reduce(harms)], self._saved, radius, generator
        )
        reached: list[tuple[float, float]] = [
            (trial.observation.proxy_flops, trial.observation.avgpp or 0.0)
            for trial in known
            if trial.observation.feasible[mode]
        ]
        if pending and reached and goal == FRONT:
            # What the batch already asks for is taken as answered as expected, or it would ask for it again.
            rows = design_of(space, [space.levels(config) for config in pending])
            expected: list[float] = belief.avgpp(rows).mean(dim=1).tolist()
            reached += [
                (space.proxy_flops(c), a) for c, a in zip(pending, expected, strict=True) if a > target
            ]
        costs = np.array([space.proxy_flops(space.decode(levels)) for levels in pool])
        dearest = space.proxy_flops(space.decode(space.safest))
        box = (dearest - float(np.nanmax(self._saved, axis=1).sum()), dearest)
        merits = log_merits(belief, design_of(space, pool), costs, reached, goal=goal, target=target, box=box)
        return f"{goal} {mode}", space.decode(pool[int(np.argmax(merits))])

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


def _with_margin(trial: Trial, mode: str, margin: float) -> Trial:
    """The trial as a search with a margin sees it: one that passed by less is no better than one that failed."""
    robustness, feasible = trial.observation.robustness[mode], trial.observation.feasible
    if not feasible[mode] or (robustness is not None and robustness >= margin):
        return trial
    return replace(trial, observation=replace(trial.observation, feasible={**feasible, mode: False}))


def _require_modes(observation: Observation, modes: Mapping[str, float]) -> None:
    missing = sorted(set(modes) - set(observation.robustness))
    if missing:
        raise SearchError(f"study: expected every observation to judge mode {missing[0]!r}; it does not")
