"""Where a model computes, and with how many threads."""

from __future__ import annotations

import os

import torch

from toggle_edge.errors import ConfigError

COMPUTE = "TOGGLE_EDGE_COMPUTE"

THREADS_WEIGHTS = 20_000_000
"""Models of at least so many weights gain from more than one thread; `benchmarks/RESULTS.md` has the measurement."""


def device_of(module: torch.nn.Module) -> torch.device:
    """The device of the model's weights. Weights that are read from disk when they are used lie nowhere till then."""
    places = (parameter.device for parameter in module.parameters())
    return next((place for place in places if place.type != "meta"), torch.device("cpu"))


def chosen_device() -> torch.device:
    """What `$TOGGLE_EDGE_COMPUTE` asks for: `cpu`, `cuda`, or `auto`, which is cuda where there is one.

    Raises ConfigError for anything else, and for cuda where there is none.
    """
    said = os.environ.get(COMPUTE) or "auto"
    if said not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"{COMPUTE}: expected auto, cpu or cuda, got {said!r}")
    there = torch.cuda.is_available()
    if said == "cuda" and not there:
        raise ConfigError(f"{COMPUTE}: cuda, but torch {torch.__version__} finds none; say cpu or auto")
    return torch.device("cuda" if there and said != "cpu" else "cpu")


def free_bytes(device: torch.device) -> int:
    """What may still be allocated on a cuda device."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def use_threads(weights: int, processes: int = 1) -> int:
    """Set torch's threads for a model of so many weights; gives their number.

    One for small models: threads that wait for each other cost more than they save, much more on a busy machine. For
    large ones as many as this process may use, or its share of them where `processes` do the same at once.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // processes) if weights >= THREADS_WEIGHTS else 1
    torch.set_num_threads(threads)
    return threads
