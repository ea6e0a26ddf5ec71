"""Where a model computes: as the environment says, and refused where that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel
from toggle_edge.model.placement import COMPUTE, THREADS_WEIGHTS, chosen_device, device_of, use_threads


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("said", "there", "expected"),
    [
        (None, False, "cpu"),
        (None, True, "cuda"),
        ("auto", True, "cuda"),
        ("cpu", True, "cpu"),
        ("cuda", True, "cuda"),
    ],
)
def test_the_device_is_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, said: str | None, there: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    if said is None:
        monkeypatch.delenv(COMPUTE, raising=False)
    else:
        monkeypatch.setenv(COMPUTE, said)
    assert chosen_device().type == expected


def test_what_is_not_there_or_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv(COMPUTE, "cuda")
    with pytest.raises(ConfigError, match="finds none"):
        chosen_device()
    monkeypatch.setenv(COMPUTE, "tpu")
    with pytest.raises(ConfigError, match="auto, cpu or cuda"):
        chosen_device()


def test_small_models_run_on_one_thread_and_large_ones_on_all() -> None:
    assert use_threads(THREADS_WEIGHTS - 1) == torch.get_num_threads() == 1
    assert use_threads(THREADS_WEIGHTS) == torch.get_num_threads() == len(os.sched_getaffinity(0))


def test_weights_that_are_nowhere_do_not_say_where_a_model_is(tiny: LanguageModel) -> None:
    assert device_of(tiny.module).type == "cpu"
    assert device_of(torch.nn.Linear(2, 2, device="meta")).type == "cpu"
