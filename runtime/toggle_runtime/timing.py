"""What the latency passes do with a model that can generate: generations, contexts, a cold load, a long run.

Nothing here knows an engine or a clock: a backend times its own tokens, so a simulated one can be measured as a real
one is.
"""

import dataclasses
from pathlib import Path
from typing import Any, Callable, List, Sequence

from toggle_runtime import page_cache
from toggle_runtime.records import ColdLoad, Generation, LatencySample, ModelShape, SustainedSample

CONTEXT_TOKENS = 16
"""Tokens generated after a long prompt."""

COLD_AT_MOST = 0.05
"""With more of an artifact still in memory its load is not called cold."""

Progress = Callable[..., None]


def timed(
    backend: Any,
    model: Any,
    prompts: Sequence[List[int]],
    *,
    tokens: int,
    warmups: int,
    generations: int,
    contexts: Sequence[int],
    progress: Progress,
) -> LatencySample:
    """Warm-ups, generations of `tokens` tokens, then after prompts of each length of `contexts` that has room.

    Each length is gone through twice, the first time as a warm-up: engines set up memory for shapes they have not seen.
    """
    lengths = [each for each in contexts if each + CONTEXT_TOKENS <= model.shape.context_tokens]
    steps, done = warmups + generations + len(lengths), 0
    made: List[Generation] = []
    for index in range(warmups + generations):
        generation = backend.generate(model, prompts[index % len(prompts)], tokens)
        made.append(dataclasses.replace(generation, warmup=index < warmups))
        done += 1
        progress(done=done, of=steps)
    longer: List[Generation] = []
    for length in lengths:
        prompt = prompt_of_length(prompts, length)
        for warmup in (True, False):
            generation = backend.generate(model, prompt, CONTEXT_TOKENS)
            longer.append(dataclasses.replace(generation, warmup=warmup))
        done += 1
        progress(done=done, of=steps)
    return LatencySample(model.load_ns, made, longer)


def cold_load(backend: Any, folder: Path, shape: ModelShape, threads: int, prompt: List[int]) -> ColdLoad:
    """Open the artifact in `folder` with its pages dropped, and ask for one token."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        page_cache.drop(files)
    except (OSError, AttributeError) as exc:
        return ColdLoad(None, None, f"the page cache cannot be dropped here: {exc}")
    resident = page_cache.resident_share(files)
    if resident is None:
        return ColdLoad(None, None, "whether the page cache was dropped cannot be seen here")
    if resident > COLD_AT_MOST:
        return ColdLoad(None, None, f"{100 * resident:.0f} % of the artifact stayed in the page cache")
    model = backend.open_model(folder, shape, backend.GRAPH, threads)
    return ColdLoad(model.load_ns, backend.generate(model, prompt, 2).first_token_ns)


def sustained(
    backend: Any,
    model: Any,
    prompts: Sequence[List[int]],
    *,
    tokens: int,
    seconds: float,
    clock: Callable[[], float],
    progress: Progress,
) -> SustainedSample:
    """Generate without a pause for `seconds` of `clock`. Nothing is a warm-up: a drift begins at the beginning."""
    began = clock()
    starts: List[int] = []
    made: List[Generation] = []
    while not made or clock() - began < seconds:
        starts.append(int((clock() - began) * 1e9))
        made.append(backend.generate(model, prompts[len(made) % len(prompts)], tokens))
        progress(step="sustained", done=int(clock() - began), of=int(seconds))
    return SustainedSample(starts, made)


def prompt_of_length(prompts: Sequence[List[int]], length: int) -> List[int]:
    """The prompts' tokens one after another, from the start again where they end, cut to `length`."""
    every = [token for prompt in prompts for token in prompt]
    return (every * (-(-length // len(every))))[:length]
