"""A model's search: its space, its sensitivities, its trials, and how it stands while it runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

from toggle_edge.cache import baselines_folder
from toggle_edge.config import Config
from toggle_edge.evaluate import Evaluation, Evaluator
from toggle_edge.falsification import reading_order
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.pipeline.spaces import space_of
from toggle_edge.pipeline.standing import standing_of
from toggle_edge.report.progress import Reporter
from toggle_edge.search.outcomes import AVGPP
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import Sensitivities, expected_harm, measure
from toggle_edge.search.space import Space
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Ledger, Observation, Trial
from toggle_edge.store import Store, StoredStudy

VIOLATED_PROBES = "violated_probes"
"""The key of a trial's payload with the search probes, by number, that violate each mode."""

SENSITIVITY_PROBES = 12
"""Probes on which one unit at a time is lowered: enough to tell delicate units from others, a fifth of a trial each."""


def sensitivities_of(prepared: Prepared, space: Space, report: Reporter) -> Sensitivities:
    """What one choice alone does to every property, on a few of the search probes."""
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
        lambda config: _observed(prepared, evaluator.evaluate(config))[0],
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
) -> tuple[Trial, ...]:
    """Find configs that keep the contract at the least proxy cost. Goes on where the ledger ends.

    A search that goes on must be given the sensitivities that it began with.
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
        order[:] = reading_order(_violations(before, len(prepared.probes.search)))

    def evaluate(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return _observed(prepared, prepared.evaluator.evaluate(config, order))

    def on_trial(trial: Trial) -> None:
        nonlocal begun
        known.append(trial)
        seconds.append(time.monotonic() - begun)
        begun = time.monotonic()
        tell()

    tell()
    return study.run(evaluate, on_trial, on_batch=on_batch)


def _observed(prepared: Prepared, evaluation: Evaluation) -> tuple[Observation, Mapping[str, object]]:
    observation = Observation(
        proxy_flops=evaluation.cost.proxy_flops,
        avgpp=evaluation.avgpp,
        robustness={name: verdict.robustness for name, verdict in evaluation.modes.items()},
        feasible={name: evaluation.holds(name, prepared.specification) for name in evaluation.modes},
        properties=evaluation.bounds,
        refuted=evaluation.refuted,
    )
    verdicts = {name: dataclasses.asdict(verdict) for name, verdict in evaluation.modes.items()}
    return observation, {
        "modes": verdicts,
        "proxy_bytes": evaluation.cost.proxy_bytes,
        "probes_read": evaluation.read,
        VIOLATED_PROBES: {name: list(probes) for name, probes in evaluation.violated.items()},
    }


def _violations(trials: Sequence[Trial], probes: int) -> list[int]:
    """How often each probe violated a mode: all that a resumed search knows too."""
    counts = [0] * probes
    for trial in trials:
        found = trial.payload.get(VIOLATED_PROBES, {})
        assert isinstance(found, Mapping)  # noqa: S101  (narrows the type; we wrote it)
        for violated in found.values():
            for probe in violated:
                counts[probe] += 1
    return counts
