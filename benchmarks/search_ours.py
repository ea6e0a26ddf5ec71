"""Our search at the desk of `search.py`: the product's own study, its evaluations counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from forgetful import Memory
from search_rivals import Desk

from toggle_edge.config import FP16, Config
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import expected_harm, measure
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Observation

SENSITIVITY_PROBES = 8
NO_MARGINS: Mapping[str, float] = {}


def ours(
    desk: Desk,
    seed: int,
    *,
    refute: bool = True,
    probes: int = SENSITIVITY_PROBES,
    margins: Mapping[str, float] = NO_MARGINS,
) -> None:
    """Sensitivities, then a study until the tokens are spent."""
    problem, space = desk.problem, desk.problem.space
    part = list(range(probes))
    sensitivities = measure(
        space, lambda config: desk.sample(config, part), Config.uniform(space.layers, FP16)
    )
    study = Study(
        space,
        Memory(),
        seed=seed,
        max_trials=10_000,
        modes=problem.targets,
        initial=initial_design(space, expected_harm(space, sensitivities)["avgpp"]),
        sensitivities=sensitivities,
        margins=margins,
    )

    def evaluate(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        return desk.observe(config, refute=refute), {}

    study.run(evaluate)


OURS: dict[str, Callable[[Desk, int], None]] = {"ours": ours}
