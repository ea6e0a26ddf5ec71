"""`toggle-edge search`: find the cheapest configs that keep the contract, and judge the winners on fresh probes."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import FAIL, PASS

from toggle_edge.certify import Division, coverage_bound, of_selected
from toggle_edge.errors import StudyError
from toggle_edge.evaluate import Evaluation
from toggle_edge.model.load import require_whole
from toggle_edge.pipeline.blocking import why_blocked
from toggle_edge.pipeline.confirming import confirmed
from toggle_edge.pipeline.inputs import prepared_for
from toggle_edge.pipeline.preparing import DEFAULT_TARGET, Prepared, identity_of
from toggle_edge.pipeline.reranking import cheapest_uniform, trial_row, uniform_of_size
from toggle_edge.pipeline.spaces import require_bounds, space_note
from toggle_edge.pipeline.trials import search, stored_sensitivities
from toggle_edge.pipeline.workers import default_batch
from toggle_edge.profiles import load_profile
from toggle_edge.report.progress import Reporter
from toggle_edge.report.search import SearchResult, Selected, Selection
from toggle_edge.search.confirmation import Confirmation
from toggle_edge.search.diagnosis import Blocked
from toggle_edge.search.trial import Trial
from toggle_edge.store import DEFAULT_URL, Store, open_store
from toggle_edge.workspace import workspace


@dataclass(frozen=True)
class SearchOptions:
    """What `toggle-edge search` may be told. `trials` None is the profile's; `study` is named after model and
    profile unless given; `resume` insists that it exists. `workers` processes evaluate trials that are proposed `batch`
    at a time; None is the study's, or else what keeps the workers busy."""

    model: Path
    profile: str = "default"
    target: str = DEFAULT_TARGET
    probes: tuple[str, ...] = ()
    trials: int | None = None
    study: str | None = None
    seed: int = 0
    resume: bool = False
    store: str = DEFAULT_URL
    output: Path = Path("toggle-edge-studies")
    quantiser: str | None = None
    pruner: str | None = None
    workers: int = 1
    batch: int | None = None


def run_search(options: SearchOptions, report: Reporter) -> SearchResult:
    """Search, or go on where the same search was interrupted. Raises ToggleEdgeError when it cannot be done."""
    started = time.monotonic()
    require_bounds(load_profile(options.profile), options.target)  # before anything is done
    prepared = prepared_for(
        options.model,
        options.profile,
        options.probes,
        report,
        quantiser=options.quantiser,
        pruner=options.pruner,
        target=options.target,
    )
    require_whole(prepared.model)
    report("space", 1, 1, space_note(prepared))
    name = options.study or f"{prepared.model.folder.name}-{prepared.profile.name}-{options.seed}"
    with workspace(options.output / _plain(name)) as folder, open_store(options.store) as store:
        if options.resume:
            store.study(name)  # a name that is not there is an error here, and would be a new study below
        batch = options.batch or _batch_of(store, name) or default_batch(options.workers)
        study = store.open_study(name, identity_of(prepared, options.seed, batch))
        # More than a batch has trials would have nothing to do.
        workers = min(options.workers, batch)
        if options.workers > 1:
            asked = f", not {options.workers}" if workers < options.workers else ""
            report("workers", 1, 1, f"{workers}{asked}, for batches of {batch}")
        trials = search(
            prepared,
            store.ledger(study.id),
            sensitivities=stored_sensitivities(prepared, store, study, report),
            seed=options.seed,
            max_trials=options.trials or prepared.profile.trials,
            report=report,
            batch=batch,
            workers=workers,
        )
        chosen = confirmed(prepared, trials, store, study.id, report)
        selected = _selected(prepared, trials, chosen, folder, report)
    mode = prepared.profile.default_mode
    outcome, reason = _outcome(selected[mode], why_blocked(prepared, trials, mode, report))
    return SearchResult(
        outcome=outcome,
        reason=reason,
        study=name,
        target=study.target,
        default_mode=mode,
        trials=tuple(trial_row(prepared, trial) for trial in trials),
        cheapest_uniform=cheapest_uniform(prepared, trials, mode),
        selected=selected,
        seconds=time.monotonic() - started,
    )


def _batch_of(store: Store, name: str) -> int | None:
    """The batch that a study of this name began with, None where there is none."""
    return next((study.batch for study in store.studies() if study.name == name), None)


def _selected(
    prepared: Prepared,
    trials: Sequence[Trial],
    chosen: Mapping[str, Confirmation | None],
    folder: Path,
    report: Reporter,
) -> dict[str, Selected | None]:
    distinct = {each.trial.index: each.trial for each in chosen.values() if each is not None}
    names = {mode: f"trial {each.trial.index}" for mode, each in chosen.items() if each is not None}
    division = of_selected(names, prepared.specification)
    judged: dict[int, Evaluation] = {}
    for trial in distinct.values():
        judged[trial.index] = prepared.certifier.evaluate(trial.config)
        report("certificate", len(judged), len(distinct), "the winners on probes that the search did not see")
    return {
        mode: None
        if each is None
        else _winner(prepared, trials, mode, each, judged[each.trial.index], folder, division)
        for mode, each in chosen.items()
    }


def _winner(
    prepared: Prepared,
    trials: Sequence[Trial],
    mode: str,
    chosen: Confirmation,
    evaluation: Evaluation,
    folder: Path,
    division: Division,
) -> Selected:
    trial = chosen.trial
    path = folder / f"trial-{trial.index}.json"
    path.write_text(json.dumps(trial.config.to_json(), indent=1) + "\n", encoding="utf-8")
    verdict = evaluation.modes[mode]
    cost = prepared.cost(trial.config)
    return Selected(
        trial=trial_row(prepared, trial),
        config=trial.config,
        config_file=str(path),
        proxy_bytes=cost.proxy_bytes,
        paper=prepared.paper_cost(trial.config),
        verdict=verdict,
        bound=coverage_bound(mode, verdict.coverage, division),
        avgpp=evaluation.avgpp,
        holds=evaluation.holds(mode, prepared.specification),
        selection=Selection(
            chosen.reading.satisfied, chosen.reading.probes, chosen.chance, confirmed=chosen.confirmed
        ),
        cheapest_uniform=cheapest_uniform(prepared, trials, mode),
        uniform_of_size=uniform_of_size(prepared, trials, trial),
    )


def _outcome(selected: Selected | None, why: Blocked | None) -> tuple[str, str | None]:
    if why is not None:
        return FAIL, f"no trial is feasible. {why.message}; or more --trials"
    if selected is not None and not selected.holds:
        seen = selected.selection
        told = f", and on {seen.satisfied} of {seen.probes} selection probes" if seen.probes else ""
        return FAIL, (
            f"trial {selected.trial.index} held on the search probes{told}; it does not on the certificate probes: "
            "more --trials may find one that does"
        )
    return PASS, None


def _plain(name: str) -> str:
    """A study's name as a folder's. Names are free in the store; here they must stay inside the output folder."""
    if not name or name.startswith((".", "-")) or not all(c.isalnum() or c in "._-" for c in name):
        raise StudyError(f"study {name!r}: expected letters, digits, dots, dashes and underscores; rename it")
    return name
