"""A lucky winner is passed over on selection probes, which neither trials nor certificates were judged on."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from toggle_edge.config import Config, Format
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.confirming import confirmed
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.preparing import Prepared, identity_of, prepare
from toggle_edge.profiles import builtin_profiles, load_profile
from toggle_edge.report.progress import silent
from toggle_edge.search.trial import Observation, Trial
from toggle_edge.sources import ProbeSource
from toggle_edge.store import Store, open_store

LUCKY, ROBUST = Format(2, 64), Format(8, 64)


@pytest.fixture(scope="module")
def prepared(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    path = tmp_path_factory.mktemp("confirming") / "few.toml"
    text = builtin_profiles()["default"].read_text(encoding="utf-8")
    path.write_text(re.sub(r"^(search|certificate) = \d+$", r"\1 = 4", text, flags=re.MULTILINE))
    return prepare(
        tiny.folder, load_profile(path), [ProbeSource(None, str(demo_folder() / "probes.jsonl"))], silent
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(f"sqlite:///{tmp_path}/confirming.db")


def study_of(store: Store, prepared: Prepared) -> int:
    return store.open_study("confirming", identity_of(prepared, 0)).id


def trials_of(prepared: Prepared) -> list[Trial]:
    """Two trials that the search took for feasible; of the first that is luck."""
    configs = [Config.uniform(prepared.layers, fmt) for fmt in (LUCKY, ROBUST)]
    modes = prepared.specification
    return [
        Trial(
            index,
            config,
            "test",
            Observation(
                prepared.cost(config).proxy_flops,
                99.9,
                dict.fromkeys(modes, 0.1 * index),
                dict.fromkeys(modes, True),
            ),
        )
        for index, config in enumerate(configs)
    ]


def test_selection_probes_are_nobody_elses(prepared: Prepared) -> None:
    sides = prepared.probes.search, prepared.probes.selection, prepared.probes.certificate
    assert [len(side) for side in sides] == [4, 8, 4]
    assert len({probe.text for side in sides for probe in side}) == 16


def test_a_lucky_winner_is_passed_over(prepared: Prepared, store: Store) -> None:
    with store:
        chosen = confirmed(prepared, trials_of(prepared), store, study_of(store, prepared), silent)
    assert set(chosen) == set(prepared.specification)
    for each in chosen.values():
        assert each is not None
        assert (each.trial.index, each.reading.satisfied, each.reading.probes) == (1, 8, 8)
        assert 0.5 < each.chance < 1.0


def test_what_was_read_is_not_read_again(
    prepared: Prepared, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, study = trials_of(prepared), study_of(store, prepared)
    with store:
        first = confirmed(prepared, trials, store, study, silent, modes=["optimal"])
        # From here on nothing can be evaluated.
        monkeypatch.setitem(vars(prepared), "selector", None)
        assert confirmed(prepared, trials, store, study, silent, modes=["optimal"]) == first
        with pytest.raises(AttributeError):
            confirmed(prepared, trials[:1], store, study_of_another(store, prepared), silent)


def study_of_another(store: Store, prepared: Prepared) -> int:
    return store.open_study("another", identity_of(prepared, 1)).id


def test_without_selection_probes_the_cheapest_is_taken_and_called_unconfirmed(
    prepared: Prepared, store: Store
) -> None:
    none = dataclasses.replace(prepared, probes=dataclasses.replace(prepared.probes, selection=()))
    with store:
        chosen = confirmed(none, trials_of(prepared), store, study_of(store, prepared), silent)["optimal"]
    assert chosen is not None
    assert (chosen.trial.index, chosen.reading.probes, chosen.confirmed) == (0, 0, False)


def test_where_nothing_is_feasible_nothing_is_chosen(prepared: Prepared, store: Store) -> None:
    with store:
        assert confirmed(prepared, [], store, study_of(store, prepared), silent) == dict.fromkeys(
            prepared.specification
        )
