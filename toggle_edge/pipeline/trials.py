"""A model's search: its space, its sensitivities, its trials, and how it stands while it runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from toggle_edge.cache import baselines_folder
from toggle_edge.config import Config
from toggle_edge.evaluate import Evaluator
from toggle_edge.falsification import reading_order
from toggle_edge.pipeline.observing import observed, violations
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.pipeline.spaces import space_of
from toggle_edge.pipeline.standing import standing_of
from toggle_edge.pipeline.workers import WorkerEvaluate, recipe_of, require_room
from toggle_edge.report.progress import Reporter
from toggle_edge.search.executors import LocalProcesses
from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import Sensitivities, expected_harm, measure
from toggle_edge.search.space import Space
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Ledger, Observation, Trial
from toggle_edge.store import Store, StoredStudy

SENSITIVITY_PROBES = 8
"""Probes on which one unit at a time is lowered: enough to tell delicate units from others, a seventh of a trial."""


def sensitivities_of(prepared: Prepared, space: Space, report: Reporter) -> Sensitivities:
    """What one choice alone does to every mode, on a few of the search probes."""
    probes = prepared.probes.search[:SENSITIVITY_PROBES]
    evaluator = Evaluator(
        prepared.model,
        prepared.bank,
        probes,
        prepared.specification,
        folder=baselines_folder(),
        target=prepared.target,
    )
    return measure(
        space,
        lambda config: observed(prepared.specification, evaluator.evaluate(config))[0],
        prepared.baseline,
        lambda done, of: report("sensitivity", done, of, "one unit lowered at a time"),
    )


def stored_sensitivities(
    prepared: Prepared, store: Store, study: StoredStudy, report: Reporter
) -> Sensitivities:
    """The study's sensitivities, measured once and recorded before the first trial depends on them."""
    if study.sensitivity is not None:
        return Sensitivities.from_flat(study.sensitivity)
    found = sensitivities_of(prepared, space_of(prepared), report)
    store.record_sensitivity(study.id, found.to_flat())
    return found


def search(
    prepared: Prepared,
    ledger: Ledger,
    *,
    sensitivities: Sensitivities,
    seed: int,
    max_trials: int,
    report: Reporter,
    batch: int = 1,
    workers: int = 1,
) -> tuple[Trial, ...]:
    """Find configs that keep the contract at the least proxy cost. Goes on where the ledger ends.

    A search that goes on must be given the sensitivities and the batch that it began with; how many `workers` evaluate
    does not matter to it. Raises ConfigError where so many do not fit into memory, SearchError when one is killed.
    """
    space = space_of(prepared)
    study = Study(
        space,
        ledger,
        seed=seed,
        max_trials=max_trials,
        modes={name: mode.avgpp for name, mode in prepared.specification.items()},
        initial=initial_design(space, expected_harm(space, sensitivities)[AVGPP]),
        sensitivities=sensitivities,
        batch=batch,
    )
    known, seconds, begun = list(ledger.trials()), list[float](), time.monotonic()
    order: list[int] = []
    whole = prepared.cost(prepared.baseline).proxy_flops

    def tell() -> None:
        standing = standing_of(
            prepared.specification, known, max_trials, seconds=seconds, baseline_flops=whole
        )
        report("search", len(known), max_trials, standing.note, standing)

    def on_batch(before: Sequence[Trial]) -> None:
        order[:] = reading_order(violations(before, len(prepared.probes.search)))

    def evaluate(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return observed(prepared.specification, prepared.evaluator.evaluate(config, order))

    def on_trial(trial: Trial) -> None:
        nonlocal begun
        known.append(trial)
        seconds.append(time.monotonic() - begun)
        begun = time.monotonic()
        tell()

    tell()
    if workers == 1:
        return study.run(evaluate, on_trial, on_batch=on_batch)
    require_room(prepared, workers)
    with LocalProcesses(workers) as executor:
        # The list is this one: what a worker is sent has the order of its batch.
        remote = WorkerEvaluate(recipe_of(prepared, workers), order)
        return study.run(remote, on_trial, on_batch=on_batch, executor=executor)
