"""What each mode selects of a search's trials: judged on selection probes, since winners of many are partly lucky."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from toggle_runtime.signals import Trace
from toggle_runtime.verdicts import required_probes

from toggle_edge.config import Config
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.report.progress import Reporter
from toggle_edge.search.confirmation import Confirmation, Reading, confirm, likeliest
from toggle_edge.search.finalists import predicted_selection
from toggle_edge.search.trial import Trial
from toggle_edge.store import Store, StoredReading


def confirmed(
    prepared: Prepared,
    trials: Sequence[Trial],
    store: Store,
    study: int,
    report: Reporter,
    *,
    modes: Sequence[str] | None = None,
) -> dict[str, Confirmation | None]:
    """By mode the trial to take, None where none is feasible. Readings are kept in the store.

    Without selection probes it is the cheapest feasible trial, of which nothing more is known. `modes` are all unless
    given.
    """
    modes = tuple(prepared.specification) if modes is None else modes
    probes, fresh = len(prepared.probes.selection), len(prepared.probes.certificate)
    if probes == 0:
        return {mode: _unread(predicted_selection(trials, mode)) for mode in modes}
    readings = store.readings(study)
    traces: dict[str, list[Trace]] = {}
    chosen: dict[str, Confirmation | None] = {}

    def read(config: Config, count: int) -> StoredReading:
        found = readings.find(config, count)
        if found is None:
            known = traces.setdefault(config.digest, [])
            if len(known) < count:
                known += prepared.selector.traces(config, slice(len(known), count))
            judged = prepared.selector.judged(config, known[:count])
            satisfied = {mode: verdict.coverage.satisfied for mode, verdict in judged.modes.items()}
            found = StoredReading(satisfied, count, judged.avgpp)
            readings.record(config, found)
        report("selection", len(chosen), len(modes), f"{count} of {probes} probes: {config.summary()}")
        return found

    for mode in modes:
        contract = prepared.specification[mode]

        def of_mode(config: Config, count: int, mode: str = mode) -> Reading:
            found = read(config, count)
            return Reading(found.satisfied[mode], count, found.avgpp)

        chosen[mode] = likeliest(
            confirm(
                trials,
                mode,
                of_mode,
                probes=probes,
                required=required_probes(contract.coverage, fresh),
                fresh=fresh,
                target=contract.avgpp,
            )
        )
    report("selection", len(modes), len(modes), _summary(chosen))
    return chosen


def _summary(chosen: Mapping[str, Confirmation | None]) -> str:
    said = [f"{mode} trial {each.trial.index}" for mode, each in chosen.items() if each is not None]
    return ", ".join(said) or "no trial is feasible"


def _unread(trial: Trial | None) -> Confirmation | None:
    return None if trial is None else Confirmation(trial, Reading(0, 0, None), 0.0, confirmed=False)
