"""Decode and prefill speed of our loop, onnxruntime-genai and llama.cpp on a random 100M Llama, side by side.

`OMP_NUM_THREADS=1 python benchmarks/decode.py --rounds 10` exports the model at 8 and 4 bits, writes the same
weights as GGUF, and measures every engine in a process of its own, in turns, on one thread. Ratios are taken round
by round. Needs onnxruntime-genai; llama.cpp takes part where `llama-cpp-python` and `gguf` are installed. Bandwidth
is what a copy of 256 MiB moves, read and written, measured in every round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from decode_models import GENAI_FILE, SHAPE, export_formats, save_llama, write_gguf
from toggle_runtime.records import ModelShape, from_json

FORMATS = ("int8-g32", "int8-g128", "int8-g256", "int4-g32", "int4-g128", "int4-g256")
GGUF = {"Q8_0": 8, "Q4_0": 4}
PREFILL, PROMPT, TOKENS, REPEATS = 128, 16, 96, 3


def prompt_of(tokens: int, vocabulary: int) -> list[int]:
    return np.random.default_rng(0).integers(3, vocabulary, size=tokens).tolist()


def timed(generation: Callable[[Sequence[int], int], list[int]], vocabulary: int) -> dict[str, Any]:
    """What every engine is asked for: a warm-up, generations, prefills. `generation` gives nanoseconds by token."""
    prompt, long = prompt_of(PROMPT, vocabulary), prompt_of(PREFILL, vocabulary)
    generation(prompt, 8)
    decode = [each for _ in range(REPEATS) for each in generation(prompt, TOKENS)[1:]]
    return {"decode_ns": decode, "prefill_ns": [generation(long, 1)[0] for _ in range(REPEATS)]}


def ours(folder: Path) -> dict[str, Any]:
    """The worker's own backend."""
    from toggle_runtime.backends import onnx

    shape = from_json(ModelShape, (folder / SHAPE).read_text(encoding="utf-8"))
    model = onnx.open_model(folder, shape, onnx.GRAPH, 1)

    def generation(prompt: Sequence[int], tokens: int) -> list[int]:
        made = onnx.generate(model, prompt, tokens)
        return [made.first_token_ns, *made.token_ns]

    return timed(generation, shape.vocabulary)


def genai(folder: Path) -> dict[str, Any]:
    """The same folder in onnxruntime-genai's own loop."""
    import onnxruntime_genai as og

    vocabulary = json.loads((folder / GENAI_FILE).read_text(encoding="utf-8"))["model"]["vocab_size"]
    model = og.Model(str(folder))

    def generation(prompt: Sequence[int], tokens: int) -> list[int]:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=len(prompt) + tokens, do_sample=False)
        generator = og.Generator(model, parameters)
        stamps = [time.perf_counter_ns()]
        generator.append_tokens(list(prompt))
        for _ in range(tokens):
            generator.generate_next_token()
            stamps.append(time.perf_counter_ns())
        return [later - earlier for earlier, later in pairwise(stamps)]

    return timed(generation, vocabulary)


def llama_cpp(path: Path) -> dict[str, Any]:
    """llama.cpp through its C interface, greedy, logits of the last token only."""
    import llama_cpp as lib

    lib.llama_backend_init()
    asked = lib.llama_model_default_params()
    asked.n_gpu_layers = 0
    model = lib.llama_model_load_from_file(str(path).encode(), asked)
    context_asked = lib.llama_context_default_params()
    context_asked.n_ctx = context_asked.n_batch = context_asked.n_ubatch = 512
    context_asked.n_threads = context_asked.n_threads_batch = 1
    context = lib.llama_init_from_model(model, context_asked)
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def step(tokens: Sequence[int]) -> int:
        held = (lib.llama_token * len(tokens))(*tokens)  # the batch only points at it
        if lib.llama_decode(context, lib.llama_batch_get_one(held, len(tokens))):
            raise RuntimeError("llama_decode failed")
        return int(np.ctypeslib.as_array(lib.llama_get_logits_ith(context, -1), (vocabulary,)).argmax())

    def generation(prompt: Sequence[int], tokens: int) -> list[int]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        stamps, pending = [time.perf_counter_ns()], list(prompt)
        for _ in range(tokens):
            pending = [step(pending)]
            stamps.append(time.perf_counter_ns())
        return [later - earlier for earlier, later in pairwise(stamps)]

    return timed(generation, vocabulary)


ENGINES: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    "ours": ours,
    "genai": genai,
    "llama.cpp": llama_cpp,
}


def copied_per_second() -> float:
    """Bytes that a copy reads and writes, the best of a few."""
    source = np.ones(2**25)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * source.nbytes / best


def measure(engine: str, path: Path) -> dict[str, Any]:
    """One engine on one file in a process of its own."""
    command = [sys.executable, __file__, "measure", engine, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} {path.name}: {(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: Sequence[float], form: str) -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def read_bytes(folder: Path) -> int:
    """What every token reads: all weights but the embedding, of which it reads one row."""
    return sum(
        path.stat().st_size for path in (folder / "weights").iterdir() if "embed_tokens" not in path.name
    )


def compare(rounds: int, folder: Path) -> None:
    """Measure all in turns; print medians with quartiles, and ratios taken round by round."""
    source = save_llama(folder / "model")
    artifacts = export_formats(source, FORMATS, folder)
    subjects = {f"ours {name}": ("ours", path) for name, path in artifacts.items()}
    subjects |= {f"genai {name}": ("genai", path) for name, path in artifacts.items()}
    if find_spec("llama_cpp") and find_spec("gguf"):
        for kind in GGUF:
            path = write_gguf(source, kind, folder / f"{kind}.gguf")
            subjects[f"llama.cpp {kind}"] = ("llama.cpp", path)
    else:
        print("llama.cpp: unavailable: llama-cpp-python or gguf is not installed")
    decode: dict[str, list[float]] = {name: [] for name in subjects}
    prefill: dict[str, list[float]] = {name: [] for name in subjects}
    bandwidth = []
    for done in range(rounds):
        bandwidth.append(copied_per_second())
        # Turned by one each round, so that nobody always follows the same one.
        names = list(subjects)
        for name in names[done % len(names) :] + names[: done % len(names)]:
            found = measure(*subjects[name])
            decode[name].append(1e9 / statistics.median(found["decode_ns"]))
            prefill[name].append(PREFILL * 1e9 / min(found["prefill_ns"]))
        print(f"round {done + 1} of {rounds}", file=sys.stderr, flush=True)
    print(f"copy: {spread([each / 1e9 for each in bandwidth], '.1f')} GB/s, n = {rounds}\n")
    print("| | decode tokens/s | share of copy bandwidth | prefill tokens/s |")
    print("|---|---|---|---|")
    for name, (engine, path) in subjects.items():
        share = "-"
        if engine != "llama.cpp":
            size = read_bytes(path)
            rows = [speed * size / each for speed, each in zip(decode[name], bandwidth, strict=True)]
            share = spread(rows, ".2f")
        print(f"| {name} | {spread(decode[name], '.1f')} | {share} | {spread(prefill[name], '.0f')} |")
    print("\n| ours over | decode | prefill |")
    print("|---|---|---|")
    for bits in (8, 4):
        mine = best(f"ours int{bits}", decode)
        for prefix in (
            f"genai int{bits}",
            *(f"llama.cpp {kind}" for kind, own in GGUF.items() if own == bits),
        ):
            if not any(name.startswith(prefix) for name in subjects):
                continue
            theirs = best(prefix, decode)
            ratios = [a / b for a, b in zip(decode[mine], decode[theirs], strict=True)]
            ours_, other = best(f"ours int{bits}", prefill), best(prefix, prefill)
            prompts = [a / b for a, b in zip(prefill[ours_], prefill[other], strict=True)]
            print(f"| {theirs} | {spread(ratios, '.3f')} | {spread(prompts, '.3f')} |")


def best(prefix: str, found: Mapping[str, Sequence[float]]) -> str:
    """Of the blocks of one engine and number of bits, the fastest."""
    names = [name for name in found if name.startswith(prefix)]
    return max(names, key=lambda name: statistics.median(found[name]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    actions = parser.add_subparsers(dest="action")
    one = actions.add_parser("measure")
    one.add_argument("engine", choices=tuple(ENGINES))
    one.add_argument("path", type=Path)
    arguments = parser.parse_args()
    if arguments.action == "measure":
        print(json.dumps(ENGINES[arguments.engine](arguments.path)))
        return
    with tempfile.TemporaryDirectory(prefix="toggle-edge-decode-") as scratch:
        compare(arguments.rounds, Path(scratch))


if __name__ == "__main__":
    main()
