"""onnxruntime on the CPU: greedy generation over one shared KV buffer, and batched outputs for the signals."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, Sequence, Tuple

# Host and devices call nobody. The engine reads this when it is loaded, so it comes before the import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from toggle_runtime.backends.placement import in_place
from toggle_runtime.records import Generation, ModelShape
from toggle_runtime.signals import UNDECIDED

GRAPH, SIGNALS_GRAPH, EXACT_GRAPH = "model.onnx", "signals.onnx", "exact.onnx"
_LEVEL = b"\x0a\x0eaccuracy_level\x18"
"""How a protobuf begins the attribute `accuracy_level`: its name, then the tag of its integer value."""

CPU = "CPUExecutionProvider"

onnxruntime.disable_telemetry_events()


@dataclass(frozen=True)
class OnnxModel:
    """An open session, the shape of its model, how long it took to open, in nanoseconds, and where its caches lie."""

    session: Any
    shape: ModelShape
    load_ns: int
    memory: str = "cpu"


def open_model(folder: Path, shape: ModelShape, graph: str, threads: int) -> OnnxModel:
    """Open `graph` of the artifact in `folder` with `threads` compute threads."""
    session, load_ns = open_session(folder / graph, threads, [CPU])
    return OnnxModel(session, shape, load_ns)


def open_session(path: Path, threads: int, providers: Sequence[str]) -> Tuple[Any, int]:
    """A session with these execution providers, and the nanoseconds that opening it took."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would burn the energy and the cores that the measurement is about.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    started = time.perf_counter_ns()
    session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    return session, time.perf_counter_ns() - started


def exact_graph(graph: bytes) -> bytes:
    """A serialised graph whose MatMulNBits nodes compute in float32 (`accuracy_level` 0 in place of 4).

    The device has no package to edit graphs with, and needs none: both values take one byte, so replacing it
    changes no length. Raises ValueError when a node's level is neither.
    """
    pieces = graph.split(_LEVEL)
    for index, piece in enumerate(pieces[1:], start=1):
        if piece[:1] not in (b"\x00", b"\x04"):
            raise ValueError(f"graph: expected accuracy_level 0 or 4, got {piece[:1]!r}")
        pieces[index] = b"\x00" + piece[1:]
    return _LEVEL.join(pieces)


def write_exact_graph(folder: Path) -> str:
    """Put the exact form of the artifact's graph beside its weights; return its name."""
    target = folder / EXACT_GRAPH
    # A bundle may bring a file of this name, a hard link to a blob that writing must not change.
    if target.exists():
        target.unlink()
    target.write_bytes(exact_graph((folder / GRAPH).read_bytes()))
    return EXACT_GRAPH


def versions() -> Dict[str, str]:
    """The engine and what it computes with, for the record."""
    return {"onnxruntime": onnxruntime.__version__, "numpy": np.__version__}


def provider(model: OnnxModel) -> str:
    """The execution providers that the session really uses; onnxruntime falls back without a word."""
    return ",".join(model.session.get_providers())


def generate(model: OnnxModel, prompt: Sequence[int], tokens: int) -> Generation:
    """Generate `tokens` tokens greedily after `prompt`; time each with a monotonic clock.

    Past and present of every layer are bound to the same buffer, and all buffers once, so a step copies nothing. The
    end token does not stop a generation: every generation has the same length, so they can be compared.
    """
    stamps = [time.perf_counter_ns()]
    for _ in stream(model, prompt, tokens):
        stamps.append(time.perf_counter_ns())
    intervals = [later - earlier for earlier, later in zip(stamps, stamps[1:])]
    return Generation(intervals[0], intervals[1:], len(prompt))


def stream(model: OnnxModel, prompt: Sequence[int], tokens: int) -> Iterator[int]:
    """Greedy tokens after `prompt`, one by one. Raises ValueError where logits are not finite."""
    decoding, logits = _begin(model, prompt, len(prompt) + tokens)
    chosen = _greedy(logits[0, -1])
    yield chosen
    last = decoding.logits[0, 0]  # the step overwrites it in place
    for past in range(len(prompt), len(prompt) + tokens - 1):
        _next(decoding, chosen, past)
        chosen = _greedy(last)
        yield chosen


def cached_logits(
    model: OnnxModel, prompt: Sequence[int], continuation: Sequence[int]
) -> NDArray[np.float32]:
    """Logits of every position, the prompt in one prefill and the continuation token by token from the cache.

    Returns `(len(prompt) + len(continuation)) x vocabulary`.
    """
    decoding, logits = _begin(model, prompt, len(prompt) + len(continuation))
    rows = [logits[0]]
    for index, token in enumerate(continuation):
        rows.append(_next(decoding, token, len(prompt) + index)[0].copy())
    return np.concatenate(rows)


def outputs(
    model: OnnxModel, batch: NDArray[np.int64], states: Sequence[int]
) -> Tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Outputs of the signals graph for `batch x tokens`: logits, attention `batch x layers x heads x tokens x
    tokens`, and the hidden states after the blocks in `states`, `batch x states x tokens x width`. Rows may be
    padded on the right: attention is causal. Layers and heads are the baseline's; those that the graph lacks attend to
    nothing."""
    attention = [f"signals.attention.{each.block}" for each in model.shape.blocks]
    hidden = [f"signals.hidden.{layer}" for layer in states]
    found = model.session.run(["logits", *attention, *hidden], _prompt(model.shape, batch))
    rows = found[1 : 1 + len(attention)]
    return found[0], in_place(model.shape, rows), np.stack(found[1 + len(attention) :], 1)


def choices(model: OnnxModel, batch: NDArray[np.int64]) -> NDArray[np.int64]:
    """The token of the largest logit at every position of `batch x tokens`, `UNDECIDED` where logits are not finite."""
    (logits,) = model.session.run(["logits"], _prompt(model.shape, batch))
    finite = np.logical_and.reduce(np.isfinite(logits), axis=-1)
    chosen: NDArray[np.int64] = np.where(finite, logits.argmax(axis=-1), UNDECIDED)
    return chosen


def _prompt(shape: ModelShape, batch: NDArray[np.int64]) -> Dict[str, NDArray[Any]]:
    feed: Dict[str, NDArray[Any]] = {"input_ids": batch, "attention_mask": np.ones_like(batch)}
    for each in shape.blocks:
        empty = np.zeros((len(batch), len(each.kv_groups), 0, shape.head_size), np.float32)
        feed[f"past_key_values.{each.block}.key"] = empty
        feed[f"past_key_values.{each.block}.value"] = empty
    return feed


@dataclass(frozen=True)
class _Decoding:
    """A generation under way: everything that a step reads or writes is bound, and what changes is written in place.

    A binding knows only where memory is, so `cache` and the arrays hold it.
    """

    model: OnnxModel
    binding: Any
    cache: Tuple[Any, ...]
    token: NDArray[np.int64]
    mask: NDArray[np.int64]
    logits: NDArray[np.float32]


def _begin(model: OnnxModel, prompt: Sequence[int], capacity: int) -> Tuple[_Decoding, NDArray[np.float32]]:
    """Prefill: what decodes on, and the logits, 1 x prompt x vocabulary. `capacity` is the most tokens in all."""
    shape, binding = model.shape, model.session.io_binding()
    cache = []
    for each in shape.blocks:
        for part in ("key", "value"):
            zeros = np.zeros((1, len(each.kv_groups), capacity, shape.head_size), np.float32)
            cache.append(onnxruntime.OrtValue.ortvalue_from_numpy(zeros, model.memory, 0))
            binding.bind_ortvalue_input(f"past_key_values.{each.block}.{part}", cache[-1])
            binding.bind_ortvalue_output(f"present.{each.block}.{part}", cache[-1])
    ids, mask = np.array([list(prompt)], dtype=np.int64), np.ones((1, capacity), np.int64)
    logits = np.empty((1, len(prompt), shape.vocabulary), np.float32)
    binding.bind_cpu_input("input_ids", ids)
    binding.bind_cpu_input("attention_mask", mask[:, : len(prompt)])
    # On the CPU the engine works in the array's own memory.
    whole = onnxruntime.OrtValue.ortvalue_from_numpy(logits)
    binding.bind_ortvalue_output("logits", whole)
    model.session.run_with_iobinding(binding)
    token, last = np.zeros((1, 1), np.int64), np.empty((1, 1, shape.vocabulary), np.float32)
    binding.bind_cpu_input("input_ids", token)
    binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(last))
    return _Decoding(model, binding, tuple(cache), token, mask, last), logits


def _greedy(logits: NDArray[np.float32]) -> int:
    chosen = int(logits.argmax())
    # NaN counts as the largest, so looking at the chosen one finds any. Between two runs all of Python is cold in the
    # processor's caches: `math` takes a fraction of numpy's way to look at one number.
    if not math.isfinite(logits.item(chosen)):
        raise ValueError(f"logits: expected finite numbers, got {logits[chosen]}")
    return chosen


def _next(decoding: _Decoding, token: int, past: int) -> NDArray[np.float32]:
    """The logits after one more token, 1 x 1 x vocabulary. The next step overwrites them."""
    decoding.token[0, 0] = token
    decoding.binding.bind_cpu_input("attention_mask", decoding.mask[:, : past + 1])
    decoding.model.session.run_with_iobinding(decoding.binding)
    return decoding.logits
