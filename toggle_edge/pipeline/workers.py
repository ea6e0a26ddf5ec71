"""Trials evaluated by processes of their own: each loads the model once, from its folder, and shares what is on disk.

What goes to a worker is plain data. The model, the baseline's outputs and compressed layers it finds where this process
left them, so that it computes the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import ModeSpecification

from toggle_edge.cache import baselines_folder
from toggle_edge.config import Config
from toggle_edge.errors import ConfigError, ModelError
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.checkpoint import stored_weights
from toggle_edge.model.load import load_model
from toggle_edge.model.memory import available_bytes
from toggle_edge.model.placement import chosen_device, device_of, free_bytes, use_threads
from toggle_edge.pipeline.observing import observed
from toggle_edge.pipeline.preparing import Prepared, bank_of
from toggle_edge.probes import Probe
from toggle_edge.search.trial import Observation

TRIALS_PER_WORKER = 2
"""Of a batch unless the command says otherwise: refuted trials end early, and then there is another to go on with."""


@dataclass(frozen=True)
class Recipe:
    """What a process needs to judge configs as this one does. `workers` processes share the machine's cores."""

    model: Path
    model_digest: str
    streamed: bool
    probes: tuple[Probe, ...]
    specification: Mapping[str, ModeSpecification]
    quantiser: str
    pruner: str
    target: str
    workers: int


@dataclass(frozen=True)
class WorkerEvaluate:
    """Evaluates a config in whatever process it is called. `order` has every probe, those that are read first first."""

    recipe: Recipe
    order: Sequence[int]

    def __call__(self, config: Config, /) -> tuple[Observation, Mapping[str, object]]:
        evaluator = _evaluator_of(self.recipe)
        return observed(self.recipe.specification, evaluator.evaluate(config, self.order))


_loaded: list[tuple[Recipe, Evaluator]] = []


def recipe_of(prepared: Prepared, workers: int) -> Recipe:
    """How `workers` processes judge configs on the search probes of `prepared`."""
    model = prepared.model
    return Recipe(
        model.folder.absolute(),
        model.digest,
        model.streamed,
        tuple(prepared.probes.search),
        dict(prepared.specification),
        prepared.profile.quantiser,
        prepared.profile.pruner,
        prepared.target,
        workers,
    )


def default_batch(workers: int) -> int:
    """How many trials are proposed at once: one where nobody waits for another."""
    return 1 if workers == 1 else TRIALS_PER_WORKER * workers


def require_room(prepared: Prepared, workers: int) -> None:
    """Raises ConfigError where so many copies of the model do not fit into memory. Unknown memory is not refused."""
    device = device_of(prepared.model.module)
    free = available_bytes() if device.type == "cpu" else free_bytes(device)
    needed = 2 * 4 * stored_weights(prepared.model.folder)
    if not prepared.model.streamed and free is not None and workers * needed > free:
        raise ConfigError(
            f"workers: each holds model and candidate, {needed / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are "
            f"available on {device.type}; expected at most {max(1, free // needed)}, got {workers}"
        )


def _evaluator_of(recipe: Recipe) -> Evaluator:
    """The evaluator of this process, made when the first config comes. Raises ModelError when the model's files are not
    those that the search began with."""
    if not _loaded or _loaded[0][0] != recipe:
        model = load_model(recipe.model, streamed=recipe.streamed, device=chosen_device())
        if model.digest != recipe.model_digest:
            raise ModelError(
                f"model folder {recipe.model}: its files changed while it is searched; start a new study, or put back "
                "the files that this one began with"
            )
        use_threads(sum(layer.weights for layer in model.layers), recipe.workers)
        bank = bank_of(
            model,
            recipe.probes,
            quantiser=recipe.quantiser,
            pruner=recipe.pruner,
            target=recipe.target,
        )
        evaluator = Evaluator(
            model,
            bank,
            recipe.probes,
            recipe.specification,
            folder=baselines_folder(),
            target=recipe.target,
        )
        _loaded[:] = [(recipe, evaluator)]
    return _loaded[0][1]
