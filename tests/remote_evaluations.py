"""Evaluations that misbehave in their worker process, and as a script workers whose parent a test kills.

Imports no torch, which each of the processes would import anew.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from search_problems import SPACE, bits_of, evaluate

from toggle_edge.config import FP16, Config, Format
from toggle_edge.search.executors import LocalProcesses
from toggle_edge.search.trial import Observation

LONG_S = 300.0

Evaluated = tuple[Observation, Mapping[str, object]]


def noted(config: Config, /) -> Evaluated:
    """Says in its payload which process it was."""
    return evaluate(config)[0], {"process": os.getpid()}


def deadly(config: Config, /) -> Evaluated:
    """As a process that runs out of memory: the kernel kills it while it computes all layers at 4 bits."""
    if bits_of(config) == 4 * len(config):
        os.kill(os.getpid(), signal.SIGKILL)
    return evaluate(config)


def mistaken(config: Config, /) -> Evaluated:
    raise ValueError(f"expected another config than {config.summary()}")


def endless(config: Config, /) -> Evaluated:
    """Answers for the first config, which has 16 bits everywhere; no other ends."""
    if bits_of(config) < 16 * len(config):
        (Path(os.environ["PROCESSES"]) / str(os.getpid())).touch()
        time.sleep(LONG_S)
    return evaluate(config)


if __name__ == "__main__":
    lower = [Config.of(dict.fromkeys(SPACE.layers, FP16) | {layer: Format(4, 32)}) for layer in SPACE.layers]
    with LocalProcesses(int(sys.argv[1])) as pool:
        list(pool.map(endless, lower))
