"""The search itself: propose, evaluate, record, until the trials or the space are used up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from toggle_edge.config import Config
from toggle_edge.errors import SearchError
from toggle_edge.pareto import non_dominated
from toggle_edge.search.acquisition import CHEAPEST, FRONT, merits
from toggle_edge.search.pool import candidate_pool
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Ledger, Observation, Trial

Evaluate = Callable[[Config], tuple[Observation, Mapping[str, object]]]
PARENTS = 8
"""Without a feasible trial, how many of the least violated ones are mutated."""


@dataclass(frozen=True)
class Study:
    """One search. `modes` maps each mode to its AvgPP target in percent; `initial` is tried first, in order.

    Modes take turns in guiding proposals, and so do the goals, so that one search serves all modes.
    Raises SearchError on arguments with which no trial could be proposed.
    """

    space: Space
    ledger: Ledger
    seed: int
    max_trials: int
    modes: Mapping[str, float]
    initial: Sequence[tuple[str, Config]]

    def __post_init__(self) -> None:
        if self.seed < 0 or self.max_trials < 1:
            raise SearchError(
                f"study: expected seed >= 0, max_trials >= 1; got {self.seed}, {self.max_trials}"
            )
        if not self.modes or not self.initial:
            raise SearchError("study: expected at least one mode and one initial config")
        digests = [config.digest for _, config in self.initial]
        if len(set(digests)) != len(digests):
            raise SearchError("study: expected distinct initial configs, got the same one twice")

    def finished(self, history: Sequence[Trial]) -> bool:
        """Whether nothing is left to propose."""
        return len(history) >= min(self.max_trials, self.space.size)

    def propose(self, history: Sequence[Trial]) -> tuple[str, Config]:
        """Origin and config of trial `len(history)`: a pure function of the seed, that index and the history.

        Nothing is carried from one call to the next and no global state stays changed, so a search that was
        killed and resumed proposes what it would have proposed. Raises SearchError when nothing is left.
        """
        index = len(history)
        if self.finished(history):
            raise SearchError(f"study: nothing left to propose after {index} trials")
        if index < len(self.initial):
            return self.initial[index]
        mode = tuple(self.modes)[index % len(self.modes)]
        streams = np.random.SeedSequence([self.seed, index]).spawn(2)
        tried = [trial.config for trial in history]
        pool = candidate_pool(self.space, parents(history, mode), tried, np.random.default_rng(streams[0]))
        try:
            merit = merits(
                self.space,
                history,
                pool,
                mode=mode,
                avgpp_target=self.modes[mode],
                goal=(CHEAPEST, FRONT)[index // len(self.modes) % 2],
                seed=int(streams[1].generate_state(1)[0]),
            )
        except SearchError:
            # The surrogate could not be fitted. It would fail again after every resume, so the search goes on without.
            return f"pool {mode}", pool[int(np.random.default_rng(streams[1]).integers(len(pool)))]
        return f"bo {mode}", pool[int(np.argmax(merit))]

    def run(self, evaluate: Evaluate, on_trial: Callable[[Trial], None] | None = None) -> tuple[Trial, ...]:
        """Continue where the ledger ends; return all trials, old and new. `on_trial` hears of the new ones.

        Raises SearchError if the ledger holds another search's trials, or an evaluation omits a mode.
        """
        history = list(self.ledger.trials())
        self._check(history)
        while not self.finished(history):
            origin, config = self.propose(history)
            observation, payload = evaluate(config)
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


def parents(history: Sequence[Trial], mode: str) -> tuple[Config, ...]:
    """What to mutate for a mode: its feasible front in (cost, AvgPP), else the least violated trials."""
    feasible = [trial for trial in history if trial.observation.feasible[mode]]
    if feasible:
        # A feasible observation always has an AvgPP; the type does not know.
        points = [(t.observation.proxy_flops, -(t.observation.avgpp or 0.0)) for t in feasible]
        return tuple(
            trial.config
            for trial, kept in zip(feasible, non_dominated(np.array(points)), strict=True)
            if kept
        )
    judged = [(trial.observation.robustness[mode], trial) for trial in history]
    known = sorted(
        ((value, trial) for value, trial in judged if value is not None), key=lambda pair: -pair[0]
    )
    return tuple(trial.config for _, trial in known[:PARENTS])


def _require_modes(observation: Observation, modes: Mapping[str, float]) -> None:
    missing = sorted(set(modes) - set(observation.robustness))
    if missing:
        raise SearchError(f"study: expected every observation to judge mode {missing[0]!r}; it does not")
