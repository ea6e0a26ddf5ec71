"""The passes of a run: parity, verify, latency, memory, energy. Each runs in a worker of its own.

One measurement must not disturb another: the latency pass computes no signals, the memory pass starts fresh, and
no pass reads a sensor while it is being timed.
"""

import dataclasses
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from numpy.typing import NDArray

from toggle_runtime import canary, capacity, timing, verdicts
from toggle_runtime.backends import backend_for
from toggle_runtime.intervals import bounds_of
from toggle_runtime.meters import memory
from toggle_runtime.records import REDUCED_SINCE, Manifest, from_data
from toggle_runtime.reduction import ReducedBaseline
from toggle_runtime.reduction_files import read_reduced
from toggle_runtime.signals import Outputs, Trace, states_compared
from toggle_runtime.trace_files import write_traces

Progress = Callable[..., None]

BATCH, REPEATED_BATCH = 8, 3
"""Probes per forward pass of the run and of its repetition: the noise floor is what batching and threads change."""


@dataclass(frozen=True)
class Probe:
    """Tokens, where the continuation starts, and the steps that predict the gold answer."""

    tokens: List[int]
    prompt_tokens: int
    answer_steps: List[int]


def parity(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """The graph in full precision against the canary: prompt in one prefill, the rest decoded from the cache."""
    manifest, bundle = _manifest_of(request), Path(request["bundle"])
    backend = backend_for(manifest.target)
    expected = canary.read_canary(bundle / "canary" / "canary.npz", manifest.model.vocabulary)
    canary.require_strict(expected, manifest.target, manifest.config.values())
    exact = backend.write_exact_graph(bundle / "artifact")
    model = backend.open_model(bundle / "artifact", manifest.model, exact, int(request["threads"]))
    rows = []
    for row in expected.tokens.tolist():
        prompt, rest = row[: expected.prompt_tokens], row[expected.prompt_tokens :]
        rows.append(backend.cached_logits(model, prompt, rest))
        progress(done=len(rows), of=len(expected.tokens))
    sample = canary.compare(expected, np.stack(rows), manifest.model.vocabulary)
    return {"sample": dataclasses.asdict(sample)}


def verify(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Signals on every probe, twice, and the verdicts they lead to. Writes `traces.npz` into the output folder.

    Raises ValueError for a bundle of an earlier version, whose baseline is not reduced.
    """
    manifest, bundle = _manifest_of(request), Path(request["bundle"])
    if manifest.version < REDUCED_SINCE:
        raise ValueError(
            f"bundle: expected a manifest of version {REDUCED_SINCE} or later, got {manifest.version}; export it again"
        )
    backend = backend_for(manifest.target)
    probes = _read_probes(bundle / "probes" / "probes.json")
    baseline = read_reduced(bundle / "probes" / "baseline.npz")
    if len(baseline) != len(probes):
        raise ValueError(f"probes: expected a baseline for each of {len(probes)} probes, got {len(baseline)}")
    threads = int(request["threads"])
    other_threads = 2 if threads == 1 else 1
    runs = []
    for label, batch, count in (("verify", BATCH, threads), ("repeat", REPEATED_BATCH, other_threads)):
        model = backend.open_model(bundle / "artifact", manifest.model, backend.SIGNALS_GRAPH, count)
        runs.append(_traces(backend, model, probes, baseline, batch, functools.partial(progress, step=label)))
    traces, repeated = runs
    floor = verdicts.noise_floor(manifest.specification, traces, repeated)
    write_traces(Path(request["output"]) / "traces.npz", traces, repeated)
    modes = verdicts.judge(manifest.specification, traces, floor)
    environment = {**backend.versions(), "execution_provider": backend.provider(model)}
    return {
        "modes": [dataclasses.asdict(mode) for mode in modes],
        "noise_floor": floor,
        "traces": "traces.npz",
        "environment": environment,
    }


def latency(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Load, then warm-ups and generations, every token timed."""
    backend, model, prompts = _opened(request)
    sample = timing.timed(
        backend,
        model,
        prompts,
        tokens=int(request["tokens"]),
        warmups=int(request["warmups"]),
        generations=int(request["generations"]),
        contexts=[int(length) for length in request.get("contexts", [])],
        progress=progress,
    )
    return {"sample": dataclasses.asdict(sample)}


def cold(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Load from storage, in a process that has not loaded anything."""
    manifest, bundle = _manifest_of(request), Path(request["bundle"])
    backend = backend_for(manifest.target)
    prompt = _prompts(manifest, bundle, int(request["tokens"]))[0]
    sample = timing.cold_load(backend, bundle / "artifact", manifest.model, int(request["threads"]), prompt)
    return {"sample": dataclasses.asdict(sample)}


def sustained(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Generate for `seconds` without a pause, every token timed."""
    backend, model, prompts = _opened(request)
    sample = timing.sustained(
        backend,
        model,
        prompts,
        tokens=int(request["tokens"]),
        seconds=float(request["seconds"]),
        clock=time.monotonic,
        progress=progress,
    )
    return {"sample": dataclasses.asdict(sample)}


def measure_capacity(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """What the device could do at best. No model is loaded."""
    return {"sample": dataclasses.asdict(capacity.measure(int(request["threads"])))}


def memory_peak(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Load and generate once in this fresh process, and say what it held meanwhile and in the end."""
    with memory.Watch() as watch:
        backend, model, prompts = _opened(request)
        watch.loaded()
        backend.generate(model, prompts[0], int(request["tokens"]))
        sample = watch.sample()
    progress(done=1, of=1)
    return {"sample": dataclasses.asdict(sample)}


def energy(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Generate for `seconds`; the control plane reads the meter meanwhile. Says when the model is loaded."""
    backend, model, prompts = _opened(request)
    backend.generate(model, prompts[0], int(request["tokens"]))
    progress(step="loaded")
    started, tokens, index = time.monotonic(), 0, 0
    while time.monotonic() - started < float(request["seconds"]):
        backend.generate(model, prompts[index % len(prompts)], int(request["tokens"]))
        tokens += int(request["tokens"])
        index += 1
    return {"tokens": tokens}


def talk(request: Mapping[str, Any], progress: Progress) -> Dict[str, Any]:
    """Continue a prompt greedily, telling each token as it comes, until a stop token or as many as asked for."""
    manifest, bundle = _manifest_of(request), Path(request["bundle"])
    backend = backend_for(manifest.target)
    prompt, stop, shape = list(request["prompt"]), set(request["stop"]), manifest.model
    room = shape.context_tokens - len(prompt)
    if not prompt or room < 1 or not all(0 <= token < shape.vocabulary for token in prompt):
        raise ValueError(
            f"prompt: expected 1 to {shape.context_tokens - 1} tokens below {shape.vocabulary}, got {len(prompt)}"
        )
    model = backend.open_model(bundle / "artifact", shape, backend.GRAPH, int(request["threads"]))
    tokens: List[int] = []
    stamps = [time.perf_counter_ns()]
    for token in backend.stream(model, prompt, min(int(request["tokens"]), room)):
        tokens.append(token)
        stamps.append(time.perf_counter_ns())
        progress(step="token", token=token, at=len(tokens) - 1)
        if token in stop:
            break
    between = [later - earlier for earlier, later in zip(stamps, stamps[1:])]
    stopped = bool(tokens) and tokens[-1] in stop
    return {"tokens": tokens, "token_ns": between, "load_ns": model.load_ns, "stopped": stopped}


PASSES: Dict[str, Callable[[Mapping[str, Any], Progress], Dict[str, Any]]] = {
    "parity": parity,
    "verify": verify,
    "capacity": measure_capacity,
    "cold": cold,
    "latency": latency,
    "sustained": sustained,
    "memory": memory_peak,
    "energy": energy,
    "talk": talk,
}


def _manifest_of(request: Mapping[str, Any]) -> Manifest:
    return from_data(Manifest, request["manifest"])


def _opened(request: Mapping[str, Any]) -> Tuple[Any, Any, List[List[int]]]:
    manifest, bundle = _manifest_of(request), Path(request["bundle"])
    backend = backend_for(manifest.target)
    model = backend.open_model(bundle / "artifact", manifest.model, backend.GRAPH, int(request["threads"]))
    return backend, model, _prompts(manifest, bundle, int(request["tokens"]))


def _prompts(manifest: Manifest, bundle: Path, tokens: int) -> List[List[int]]:
    """The probes' prompts, cut where `tokens` more would not fit."""
    probes = _read_probes(bundle / "probes" / "probes.json")
    room = manifest.model.context_tokens - tokens
    prompts = [probe.tokens[: min(probe.prompt_tokens, room)] for probe in probes]
    if room < 1 or not prompts:
        raise ValueError(f"generation: {tokens} tokens do not fit a context of {room} beside a prompt")
    return prompts


def _read_probes(path: Path) -> List[Probe]:
    entries = json.loads(path.read_text(encoding="utf-8"))
    return [Probe(entry["tokens"], entry["prompt_tokens"], entry["answer_steps"]) for entry in entries]


def _traces(
    backend: Any,
    model: Any,
    probes: Sequence[Probe],
    baseline: Sequence[ReducedBaseline],
    batch: int,
    progress: Progress,
) -> List[Trace]:
    traces: List[Trace] = []
    layers, narrowed = model.shape.layers, model.shape.kept is not None
    after = states_compared(layers, [each.block for each in model.shape.blocks])
    for start in range(0, len(probes), batch):
        part, references = probes[start : start + batch], baseline[start : start + batch]
        first = layers - max(1, *(reference.states for reference in references))
        states = tuple(block for block in after if block >= first)
        logits, attention, hidden = backend.outputs(
            model, _padded([probe.tokens[:-1] for probe in part]), states
        )
        chosen = _choices(backend, model, part, references)
        for row, (probe, reference) in enumerate(zip(part, references)):
            # Keys past the probe's own end are padding.
            keys = len(probe.tokens) - 1
            steps = slice(probe.prompt_tokens - 1, keys)
            candidate = Outputs(
                logits[row, steps],
                attention[row, :, :, steps, :keys],
                hidden[row, :, steps],
                chosen[row],
                states if narrowed else None,
            )
            gold = np.array(probe.tokens[probe.prompt_tokens :], dtype=np.int64)
            answer = np.isin(np.arange(len(gold)), probe.answer_steps)
            traces.append(bounds_of(reference, candidate, gold, answer))
        progress(done=len(traces), of=len(probes))
    return traces


def _choices(
    backend: Any, model: Any, probes: Sequence[Probe], baseline: Sequence[ReducedBaseline]
) -> List[Optional[NDArray[np.int64]]]:
    """What the candidate would write along each baseline's greedy text, None where no formula asks for it."""
    texts = [reference.choices for reference in baseline]
    greedy = [text for text in texts if text is not None]
    if len(greedy) < len(probes):
        return [None] * len(probes)
    # Any token may stand for one that the baseline could not decide on: nothing after it is compared.
    rows = [
        probe.tokens[: probe.prompt_tokens] + np.maximum(text, 0)[:-1].tolist()
        for probe, text in zip(probes, greedy)
    ]
    chosen = backend.choices(model, _padded(rows))
    return [chosen[row, probe.prompt_tokens - 1 : len(probe.tokens) - 1] for row, probe in enumerate(probes)]


def _padded(rows: Sequence[List[int]]) -> NDArray[np.int64]:
    """Padded on the right: attention is causal, so nothing that is read can see the padding."""
    longest = max(len(row) for row in rows)
    return np.array([row + [0] * (longest - len(row)) for row in rows], dtype=np.int64)
