"""How long robustness takes on many probes at once, on one core.

`python benchmarks/stl.py [REPETITIONS]`, with OMP_NUM_THREADS=1. The aim is 50 ms for 1,000 probes × 4
properties × 256 steps. The other formulas are no part of it: they show what nesting and long windows cost.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from toggle_runtime.stl import parse, robustness, robustness_bounds

PROBES, STEPS, AIM_MS = 1_000, 256, 50.0
PROPERTIES = (
    "always (jsd <= 0.25)",
    "always (attention >= 0.7)",
    "always (context >= 0.7)",
    "always (factual >= 0.7)",
)
OTHERS = (
    "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))",
    "always ((attention >= 0.7) until[0,200] (context >= 0.7))",
    "always once[0,200] (jsd <= 0.1)",
)


def milliseconds(repetitions: int, call: Callable[..., object], *arguments: object) -> list[float]:
    """Wall times of repeated calls, the first one, a warm-up, left out."""
    times = []
    for _ in range(repetitions + 1):
        start = time.perf_counter()
        call(*arguments)
        times.append(1e3 * (time.perf_counter() - start))
    return times[1:]


def line(name: str, times: list[float]) -> str:
    tenths = statistics.quantiles(times, n=10)
    return (
        f"{statistics.median(times):8.1f} ms  median of n = {len(times)}, "
        f"p10 to p90 {tenths[0]:.1f} to {tenths[-1]:.1f} ms  {name}"
    )


def main(repetitions: int = 30) -> None:
    generator = np.random.default_rng(0)
    trace = {
        name: generator.uniform(size=(PROBES, STEPS)) for name in ("jsd", "attention", "context", "factual")
    }
    formulas = [parse(text) for text in PROPERTIES]
    print(f"{PROBES} probes, {STEPS} steps, numpy {np.__version__}")
    times = milliseconds(repetitions, lambda: [robustness(formula, trace) for formula in formulas])
    print(line(f"the {len(formulas)} properties together (aim: {AIM_MS:.0f} ms)", times))
    upper = {name: row + 0.01 for name, row in trace.items()}
    times = milliseconds(
        repetitions, lambda: [robustness_bounds(formula, trace, upper) for formula in formulas]
    )
    print(line("likewise, signals known as intervals", times))
    for text in OTHERS:
        print(line(text, milliseconds(repetitions, robustness, parse(text), trace)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
