"""What proposing one trial costs at 150 dimensions, as the trials grow to 200. `python benchmarks/proposing.py`.

A made-up problem with additive harm: evaluations take no time, so that all of it is the search's. One thread.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np
import torch

from toggle_edge.config import Config, Format
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import expected_harm, measure
from toggle_edge.search.space import Space
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Observation, Trial

MENU = tuple(Format.parse(f"int{bits}-g32") for bits in range(3, 9))
PROPERTIES = ("coherence", "long_range_dependency", "contextual_consistency", "factual_accuracy")
MODES = {"strict": 99.0, "optimal": 95.0, "relaxed": 85.0}


class Problem:
    """Units of different size and delicacy; each property falls with a power of the summed harm."""

    def __init__(self, dimensions: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self._harm = generator.lognormal(0.0, 1.5, dimensions)
        weights = generator.choice((1.0, 4.0), dimensions)
        units = {f"unit{n}": (f"layer{n}",) for n in range(dimensions)}
        self._noise = generator
        self.space = Space.of_units(
            units,
            MENU,
            lambda config: float(sum(w * fmt.bits for w, (_, fmt) in zip(weights, config, strict=True))),
        )

    def evaluate(self, config: Config) -> Observation:
        bits = np.array([fmt.bits for _, fmt in config])
        total = float((self._harm * 4.0**-bits).sum() / (self._harm.sum() * 4.0**-6))
        avgpp = max(100.0 - total**0.6, 0.0)
        properties = {
            mode: {
                name: 0.3 - (0.1 + 0.05 * place) * total**0.5 * float(self._noise.lognormal(0.0, 0.1))
                for place, name in enumerate(PROPERTIES)
            }
            for mode in MODES
        }
        joint = {mode: min(own.values()) for mode, own in properties.items()}
        feasible = {mode: joint[mode] >= 0 and avgpp >= MODES[mode] for mode in MODES}
        return Observation(self.space.proxy_flops(config), avgpp, joint, feasible, properties)


class NoLedger:
    """Proposals are asked for with a history at hand: nothing is kept."""

    def trials(self) -> Sequence[Trial]:
        return ()

    def record(self, trial: Trial) -> None:
        raise AssertionError("nothing is evaluated here")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, default=150)
    parser.add_argument("--observations", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--repeats", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    problem = Problem(arguments.dimensions, 0)
    space = problem.space
    sensitivities = measure(space, problem.evaluate, space.decode(space.safest))
    study = Study(
        space,
        NoLedger(),
        seed=0,
        max_trials=10**6,
        modes=MODES,
        initial=initial_design(space, expected_harm(space, sensitivities)["avgpp"]),
        sensitivities=sensitivities,
    )
    generator = np.random.default_rng(1)
    configs = [config for _, config in study.initial]
    while len(configs) < max(arguments.observations) + arguments.repeats:
        configs.append(space.random(generator))
    history = [Trial(n, config, "", problem.evaluate(config)) for n, config in enumerate(configs)]
    print("| observations | seconds per proposal, median [least, most] | n |")
    print("|---|---|---|")
    for count in arguments.observations:
        seconds = []
        for repeat in range(arguments.repeats):
            started = time.process_time()
            study.propose(history[: count + repeat])
            seconds.append(time.process_time() - started)
        # The first proposal imports and tables costs.
        kept = seconds[1:]
        print(
            f"| {count} | {statistics.median(kept):.2f} [{min(kept):.2f}, {max(kept):.2f}] | {len(kept)} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
