"""ExecuTorch with XNNPACK, through the C++ runner of the worker environment: a process beside the worker.

The runner answers JSON lines and writes tensors into files; it keeps the key-value cache and times each token itself,
so what is measured has no Python in it.
"""

import json
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime.backends.placement import in_place
from toggle_runtime.records import Generation, ModelShape
from toggle_runtime.signals import UNDECIDED, states_compared

GRAPH = SIGNALS_GRAPH = "model.pte"
"""One program has both methods."""

RUNNER = "executorch_runner"
"""The folder of the runner in the worker environment, and the program's name in it."""

_MAX_LINE_BYTES = 4 << 20
_END_S = 5.0

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RunnerModel:
    """A runner that has loaded a program: its process, the model's shape, how long loading took in nanoseconds (of the
    program, without starting the process), and a file for what it writes. It ends with this object."""

    process: "subprocess.Popen[bytes]"
    shape: ModelShape
    load_ns: int
    scratch: Path


def open_model(folder: Path, shape: ModelShape, graph: str, threads: int) -> RunnerModel:
    """Start a runner on the artifact in `folder` with `threads` compute threads. Raises ValueError with its words."""
    files = sorted(map(str, (folder / "weights").glob("*.ptd")))
    process = subprocess.Popen(
        [str(runner_folder() / RUNNER), str(threads), str(folder / graph), *files],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        loaded = _answer(process, "loaded")
        model = RunnerModel(
            process, shape, int(loaded["ns"]), folder.absolute() / f"outputs.{process.pid}.f32"
        )
    except BaseException:
        _end(process)
        raise
    weakref.finalize(model, _end, process)
    return model


def runner_folder() -> Path:
    """Where the runner is. Raises ValueError where the environment has none."""
    for entry in sys.path:
        folder = Path(entry) / RUNNER
        if (folder / RUNNER).is_file():
            return folder
    raise ValueError(f"worker environment: expected {RUNNER} in it, found none; deploy the bundle again")


def write_exact_graph(folder: Path) -> str:
    """The program itself: its kernels have no more exact form, and the canary allows for that."""
    return GRAPH


def versions() -> Dict[str, str]:
    """The engine and what it computes with, for the record."""
    version = (runner_folder() / "version").read_text(encoding="utf-8").strip()
    return {"executorch": version, "numpy": np.__version__}


def provider(model: RunnerModel) -> str:
    """What all of the program's heavy operators were lowered to."""
    return "XnnpackBackend"


def generate(model: RunnerModel, prompt: Sequence[int], tokens: int) -> Generation:
    """Generate `tokens` tokens greedily after `prompt`; the runner times each with a monotonic clock."""
    _ask(model, "generate", tokens, *prompt)
    found = _answer(model.process, "generated")
    times = [int(each) for each in found["ns"]]
    if len(times) != tokens or min(times) <= 0:
        raise ValueError(f"runner: expected the times of {tokens} tokens, got {len(times)}")
    return Generation(times[0], times[1:], len(prompt))


def stream(model: RunnerModel, prompt: Sequence[int], tokens: int) -> Iterator[int]:
    """Greedy tokens after `prompt`, one by one. A stream that is left early ends its runner."""
    _ask(model, "stream", tokens, *prompt)
    whole = False
    try:
        for _ in range(tokens):
            yield int(_answer(model.process, "token")["token"])
        _answer(model.process, "generated")
        whole = True
    finally:
        if not whole:
            _end(model.process)


def cached_logits(model: RunnerModel, prompt: Sequence[int], continuation: Sequence[int]) -> Floats:
    """Logits of every position, the prompt in one prefill and the continuation token by token from the cache.

    Returns `(len(prompt) + len(continuation)) x vocabulary`.
    """
    _ask(model, "logits", model.scratch, len(prompt), *prompt, *continuation)
    shape = (len(prompt) + len(continuation), model.shape.vocabulary)
    return _written(model, "shape", [shape])[0]


def outputs(
    model: RunnerModel, batch: NDArray[np.int64], states: Sequence[int]
) -> Tuple[Floats, Floats, Floats]:
    """Logits, attention rows and hidden states of `batch x tokens`, as `backends.onnx` has them. Texts are read one
    after the other, since programs have a batch of one."""
    blocks = model.shape.blocks
    compared = states_compared(model.shape.layers, [each.block for each in blocks])
    tokens = batch.shape[1]
    logits, hidden = [], []
    attention: List[List[Floats]] = [[] for _ in blocks]
    for text in batch.tolist():
        _ask(model, "signals", model.scratch, *text)
        # Heads of a group lie one after the other; the runner says how many there are and how wide a state is.
        shapes = [(1, tokens, model.shape.vocabulary)]
        shapes += [(len(each.kv_groups), -1, tokens) for each in blocks]
        shapes += [(1, tokens, -1)] * len(blocks)
        first, *found = _written(model, "shapes", shapes)
        logits.append(first[0])
        for rows, seen in zip(attention, found):
            rows.append(seen.reshape(-1, tokens, tokens))
        hidden.append(np.stack([found[len(blocks) + compared.index(state)][0] for state in states]))
    return np.stack(logits), in_place(model.shape, [np.stack(rows) for rows in attention]), np.stack(hidden)


def choices(model: RunnerModel, batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token of the largest logit at every position of `batch x tokens`, `UNDECIDED` where logits are not finite."""
    chosen = []
    for text in batch.tolist():
        logits = cached_logits(model, text, [])
        finite = np.logical_and.reduce(np.isfinite(logits), axis=-1)
        chosen.append(np.where(finite, logits.argmax(axis=-1), UNDECIDED))
    return np.stack(chosen)


def _ask(model: RunnerModel, *words: object) -> None:
    line = " ".join(map(str, words)) + "\n"
    pipe = model.process.stdin
    try:
        if pipe is None:
            raise BrokenPipeError
        pipe.write(line.encode("utf-8"))
        pipe.flush()
    except (BrokenPipeError, ValueError) as exc:  # ended, or closed by us
        raise ValueError("runner: it has ended") from exc


def _answer(process: "subprocess.Popen[bytes]", kind: str) -> Dict[str, Any]:
    pipe = process.stdout
    line = pipe.readline(_MAX_LINE_BYTES) if pipe is not None and not pipe.closed else b""
    if not line.endswith(b"\n"):
        raise ValueError(f"runner: expected an answer, got {line[:60]!r}; it ended with {process.poll()}")
    event = json.loads(line.decode("utf-8"))
    if event.get("event") == "error":
        raise ValueError(f"runner: {event.get('message')}")
    if event.get("event") != kind:
        raise ValueError(f"runner: expected the event {kind!r}, got {line[:60]!r}")
    return dict(event)


def _written(model: RunnerModel, key: str, expected: Sequence[Tuple[int, ...]]) -> List[Floats]:
    """The tensors that the runner has just written, of the expected shapes, where -1 is any size."""
    try:
        said = _answer(model.process, "written")[key]
        shapes = [tuple(each) for each in (said if key == "shapes" else [said])]
        values = np.fromfile(model.scratch, np.float32)
    finally:
        if model.scratch.exists():
            model.scratch.unlink()
    sizes = [int(np.prod(shape)) for shape in shapes]
    fits = len(shapes) == len(expected) and all(map(_fits, shapes, expected))
    if not fits or values.size != sum(sizes):
        raise ValueError(
            f"runner: expected tensors {list(expected)}, got {shapes} and {values.size} numbers; the program is of "
            "another model than the manifest says"
        )
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes)]


def _fits(shape: Tuple[int, ...], expected: Tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (size, -1) and size > 0 for size, want in zip(shape, expected)
    )


def _end(process: "subprocess.Popen[bytes]") -> None:
    """At once: nothing that it holds is of use to anybody."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                continue  # closing flushes, and nobody reads any more
    process.wait(_END_S)
