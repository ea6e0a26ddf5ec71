"""The simulated backend does what it is told; comparisons on it with recorded noise are right as often as promised."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toggle_runtime import timing
from toggle_runtime.records import LatencySample, ModelShape

from toggle_edge.errors import InputError
from toggle_edge.fleet.interleaving import decided, interleaved, median_token
from toggle_edge.fleet.simulated import RecordedNoise, SimulatedBackend, SimulatedMachine, read_noise
from toggle_edge.statistics import INCONCLUSIVE, REGRESSED

ROOT = Path(__file__).parents[2]
SHAPE = ModelShape(1, 1, 8, 64, 128, None)
QUIET = RecordedNoise(((np.ones(3),), (np.ones(3),)))


def progress(**_: object) -> None:
    return


def test_a_simulated_token_takes_what_it_is_said_to_take() -> None:
    machine = SimulatedMachine(QUIET, 0)
    backend = SimulatedBackend(machine, token_ns=2e6, slowdown=1.5, load_ns=7)
    model = backend.open_model(Path(), SHAPE, backend.GRAPH, 1)
    made = backend.generate(model, [1] * 10, 4)
    assert (made.first_token_ns, made.token_ns, made.prompt_tokens) == (3_000_000, [3_000_000] * 3, 10)
    assert machine.clock.now_ns == 7 + 4 * 3_000_000


def test_the_latency_pass_flags_warmups_and_leaves_out_what_has_no_room() -> None:
    backend = SimulatedBackend(SimulatedMachine(QUIET, 0))
    model = backend.open_model(Path(), SHAPE, backend.GRAPH, 1)
    seen: list[dict[str, int]] = []
    sample = timing.timed(
        backend,
        model,
        [[1, 2, 3], [4, 5]],
        tokens=6,
        warmups=1,
        generations=2,
        contexts=[8, 112, 113],
        progress=lambda **fields: seen.append(fields),
    )
    assert [(each.warmup, each.prompt_tokens) for each in sample.generations] == [
        (True, 3),
        (False, 2),
        (False, 3),
    ]
    assert [(each.warmup, each.prompt_tokens) for each in sample.contexts or ()] == [
        (True, 8),
        (False, 8),
        (True, 112),
        (False, 112),
    ]
    assert [each["done"] for each in seen] == list(range(1, 6))
    assert {each["of"] for each in seen} == {5}
    assert timing.prompt_of_length([[1, 2, 3], [4, 5]], 7) == [1, 2, 3, 4, 5, 1, 2]


def test_a_sustained_run_lasts_as_long_as_it_is_told_and_shows_the_drift() -> None:
    machine = SimulatedMachine(QUIET, 0)
    backend = SimulatedBackend(machine, drift_per_s=0.01)
    model = backend.open_model(Path(), SHAPE, backend.GRAPH, 1)
    sample = timing.sustained(
        backend, model, [[1]], tokens=10, seconds=20.0, clock=machine.clock.seconds, progress=progress
    )
    last = sample.generations[-1]
    total = sample.starts_ns[-1] + last.first_token_ns + sum(last.token_ns)
    assert 20e9 <= total <= 20.2e9
    assert last.token_ns[-1] / sample.generations[0].token_ns[0] == pytest.approx(1.2, rel=0.01)


def test_turns_are_drawn_and_every_pair_has_both() -> None:
    order: list[str] = []

    def job(name: str) -> LatencySample:
        order.append(name)
        return LatencySample(1, [])

    before, after = interleaved(lambda: job("a"), lambda: job("b"), pairs=40, seed=1)
    assert len(before) == len(after) == 40
    pairs = {"".join(order[place : place + 2]) for place in range(0, 80, 2)}
    assert pairs == {"ab", "ba"}
    assert 10 < sum(order[place] == "a" for place in range(0, 80, 2)) < 30
    with pytest.raises(ValueError, match="without"):
        median_token(before[0])


def test_it_is_looked_again_until_it_is_decided() -> None:
    def job(machine: SimulatedMachine, slowdown: float) -> Callable[[], LatencySample]:
        backend = SimulatedBackend(machine, slowdown=slowdown)

        def made() -> LatencySample:
            model = backend.open_model(Path(), SHAPE, backend.GRAPH, 1)
            return LatencySample(model.load_ns, [backend.generate(model, [1], 5)])

        return made

    quiet, random = SimulatedMachine(QUIET, 0), np.random.default_rng(3)
    noisy = SimulatedMachine(RecordedNoise(tuple((each,) for each in random.lognormal(0, 0.3, (50, 5)))), 0)
    assert decided(job(quiet, 1.0), job(quiet, 1.1), looks=(8, 16)).pairs == 8
    assert decided(job(noisy, 1.0), job(noisy, 1.03), looks=(8, 16)).verdict == INCONCLUSIVE
    assert decided(job(noisy, 1.0), job(noisy, 1.03), looks=(8, 16)).pairs == 16
    for looks in ((), (16, 8), (8, 8), (0, 1)):
        with pytest.raises(ValueError, match="ascending"):
            decided(job(quiet, 1.0), job(quiet, 1.0), looks=looks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "3",
        "[]",
        "[[[1, 2]]]",
        "[[[1]], []]",
        '[[[1]], [["a"]]]',
        "[[[1]], [[0]]]",
        "[[[1]], [[NaN]]]",
    ],
)
def test_noise_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "noise.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"noise\.json"):
        read_noise(path)


def test_noise_is_relative_to_its_median(tmp_path: Path) -> None:
    path = tmp_path / "noise.json"
    path.write_text(json.dumps([[[100, 200, 300]], [[200, 200]]]))
    assert read_noise(path).processes[0][0] == pytest.approx([0.5, 1.0, 1.5])


def test_equal_things_are_called_equal_and_five_percent_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import regression  # type: ignore[import-not-found]

    same = [regression.simulated(1.0, seed).verdict for seed in range(100, 110)]
    slower = [regression.simulated(1.05, seed).verdict for seed in range(200, 210)]
    assert sum(verdict in (REGRESSED, "improved") for verdict in same) <= 1
    assert sum(verdict == REGRESSED for verdict in slower) >= 8
    assert regression.simulated(1.05, 0, (5,)).verdict == INCONCLUSIVE
