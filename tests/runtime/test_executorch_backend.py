"""The backend of ExecuTorch against a scripted runner: what it asks, and that nonsense never becomes a number."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from toggle_runtime.backends import executorch
from toggle_runtime.backends.executorch import RunnerModel
from toggle_runtime.records import BlockShape, ModelShape
from toggle_runtime.signals import UNDECIDED

SHAPE = ModelShape(3, 2, 4, 7, 64, None, [BlockShape(0, [0, 1]), BlockShape(2, [1])])
"""Three blocks of two kv groups with two heads each; the second block is gone, and one group of the third."""

RUNNER = """#!{python}
import json, sys, struct
def say(**event): print(json.dumps(event), flush=True)
def write(path, *tensors):
    with open(path, "wb") as file:
        for values in tensors:
            file.write(struct.pack("<%df" % len(values), *values))
say(event="loaded", ns=1000, threads=int(sys.argv[1]))
for line in sys.stdin:
    verb, *words = line.split()
    {script}
"""
HONEST = """
    if verb in ("generate", "stream"):
        count = int(words[0])
        tokens = [(int(words[-1]) + at) % 7 for at in range(count)]
        for token in tokens if verb == "stream" else []:
            say(event="token", token=token)
        say(event="generated", tokens=tokens, ns=[5000] + [10] * (count - 1))
    elif verb == "logits":
        ids = list(map(int, words[2:]))
        write(words[0], [float(id == place) for id in ids for place in range(7)])
        say(event="written", shape=[len(ids), 7])
    else:
        count = len(words) - 1
        heads = ((0, 4), (2, 2))
        rows = [[float(block * 10 + head) for head in range(own) for _ in range(count**2)] for block, own in heads]
        states = [[float(block)] * count * 5 for block in (0, 2)]
        write(words[0], [0.5] * count * 7, *rows, *states)
        attention, hidden = [[2, 2 * count, count], [1, 2 * count, count]], [[1, count, 5]] * 2
        say(event="written", shapes=[[1, count, 7], *attention, *hidden])
"""

Open = Callable[[str], RunnerModel]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    def open_with(script: str) -> RunnerModel:
        folder = tmp_path / "environment" / executorch.RUNNER
        folder.mkdir(parents=True)
        program = folder / executorch.RUNNER
        program.write_text(RUNNER.format(python=sys.executable, script=script.strip()))
        program.chmod(0o755)
        (folder / "version").write_text("1.5.1\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "environment")])
        artifact = tmp_path / "artifact"
        artifact.mkdir()
        (artifact / "model.pte").write_bytes(b"")
        return executorch.open_model(artifact, SHAPE, executorch.GRAPH, 2)

    return open_with


def test_an_honest_runner_is_asked_and_understood(opened: Open) -> None:
    model = opened(HONEST)
    assert model.load_ns == 1000
    generation = executorch.generate(model, [1, 2, 3], 4)
    assert (generation.first_token_ns, generation.token_ns, generation.prompt_tokens) == (5000, [10] * 3, 3)
    assert list(executorch.stream(model, [1, 2, 3], 4)) == [3, 4, 5, 6]
    logits = executorch.cached_logits(model, [1, 2], [5])
    np.testing.assert_array_equal(logits.argmax(-1), [1, 2, 5])
    np.testing.assert_array_equal(executorch.choices(model, np.array([[1, 2], [6, 0]])), [[1, 2], [6, 0]])
    assert executorch.versions()["executorch"] == "1.5.1"
    assert list(model.scratch.parent.iterdir()) == [model.scratch.parent / "model.pte"], (
        "nothing stays behind"
    )


def test_rows_and_states_of_a_narrowed_model_are_at_the_baselines_places(opened: Open) -> None:
    batch = np.array([[1, 2, 3], [4, 5, 6]])
    logits, attention, hidden = executorch.outputs(opened(HONEST), batch, (0, 2))
    assert logits.shape == (2, 3, 7)
    assert attention.shape == (2, 3, 4, 3, 3)
    assert attention[0, :, :, 0, 0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 20, 21]]
    assert hidden.shape == (2, 2, 3, 5)
    assert hidden[1, :, 0, 0].tolist() == [0, 2]


def test_a_choice_among_numbers_that_are_none_is_undecided(opened: Open) -> None:
    model = opened('write(words[0], [float("nan")] + [1.0] * 6); say(event="written", shape=[1, 7])')
    assert executorch.choices(model, np.array([[3]])).tolist() == [[UNDECIDED]]


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ('say(event="error", message="a logit is not finite")', "runner: a logit is not finite"),
        ("sys.exit(3)", "expected an answer"),
        ('say(event="written", shape=[1])', "expected the event 'generated'"),
        ('say(event="generated", tokens=[1], ns=[5])', "expected the times of 4 tokens, got 1"),
        ('say(event="generated", tokens=[1] * 4, ns=[5, 5, 0, 5])', "expected the times of 4 tokens"),
        ('print("no JSON", flush=True)', "Expecting value"),
        ('sys.stdout.write("{"); sys.exit(0)', "expected an answer"),
    ],
)
def test_what_is_no_generation_is_none(opened: Open, script: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        executorch.generate(opened(script), [1, 2], 4)


@pytest.mark.parametrize(
    "script",
    [
        'write(words[0], [0.0] * 14); say(event="written", shape=[2, 7])',  # a row too few
        'write(words[0], [0.0] * 20); say(event="written", shape=[3, 7])',  # cut short
        'write(words[0], [0.0] * 24); say(event="written", shape=[3, 8])',  # another vocabulary
        'write(words[0], []); say(event="written", shape=[3, 0])',
        'write(words[0], [0.0] * 21); say(event="written", shape=[3, 7, 1])',
    ],
)
def test_tensors_of_another_shape_are_refused_and_leave_nothing(opened: Open, script: str) -> None:
    model = opened(script)
    with pytest.raises(ValueError, match="of another model"):
        executorch.cached_logits(model, [1, 2], [3])
    assert not model.scratch.exists()


def test_a_stream_that_is_left_early_ends_its_runner(opened: Open) -> None:
    model = opened(HONEST)
    stream = executorch.stream(model, [1], 1000)
    assert next(stream) == 1
    stream.close()
    assert model.process.poll() is not None
    with pytest.raises(ValueError, match="it has ended"):
        executorch.generate(model, [1], 1)


def test_a_runner_ends_with_its_model(opened: Open) -> None:
    model = opened(HONEST)
    process = model.process
    del model
    assert process.poll() is not None


def test_a_runner_that_cannot_load_says_why(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "RUNNER", RUNNER.replace("loaded", "error"))
    with pytest.raises(ValueError, match="runner: None"):
        opened("pass")


def test_an_environment_without_a_runner_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ValueError, match="deploy the bundle again"):
        executorch.runner_folder()
