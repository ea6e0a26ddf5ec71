"""What the search learns from an evaluation, and which probes have refuted most so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from toggle_runtime.records import ModeSpecification

from toggle_edge.evaluate import Evaluation
from toggle_edge.search.trial import Observation, Trial

VIOLATED_PROBES = "violated_probes"
"""The key of a trial's payload with the search probes, by number, that violate each mode."""


def observed(
    specification: Mapping[str, ModeSpecification], evaluation: Evaluation
) -> tuple[Observation, Mapping[str, object]]:
    """An evaluation as the search sees it, and what the store keeps beside it."""
    observation = Observation(
        proxy_flops=evaluation.cost.proxy_flops,
        avgpp=evaluation.avgpp,
        robustness={name: verdict.robustness for name, verdict in evaluation.modes.items()},
        feasible={name: evaluation.holds(name, specification) for name in evaluation.modes},
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


def violations(trials: Sequence[Trial], probes: int) -> list[int]:
    """How often each probe violated a mode: all that a resumed search knows too."""
    counts = [0] * probes
    for trial in trials:
        found = trial.payload.get(VIOLATED_PROBES, {})
        assert isinstance(found, Mapping)  # noqa: S101  (narrows the type; we wrote it)
        for violated in found.values():
            for probe in violated:
                counts[probe] += 1
    return counts
