"""How much of the true front a search finds, on a real model that is small enough to try every config.

`OMP_NUM_THREADS=1 python benchmarks/enumerated.py`. The model is the first two blocks of stories260K: trained weights,
and its contract is with itself. Its embedding, which is its head too, stays at int8-g32; the other eight units have
int4, int6 or int8 in groups of 32: 6,561 configs. All are evaluated (kept on disk, so that a second run only reads),
then the study is given 60 trials with each seed. Ends with 1 where the median finds less than 0.95 of a mode's
hypervolume.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from forgetful import Memory
from search_problem import SEARCH, Problem, problem_of
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from toggle_edge.cache import cache_folder
from toggle_edge.config import FP16, Config, Format
from toggle_edge.model.load import load_model
from toggle_edge.model.removal import without
from toggle_edge.pareto import hypervolume
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.sensitivity import expected_harm, measure
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Observation
from toggle_edge.structure import Kept, KeptBlock

SHARED = Path(__file__).parents[2] / "shared"
MENU = tuple(Format.parse(f"int{bits}-g32") for bits in (4, 6, 8))
BLOCKS = (0, 1)
PROBES, SENSITIVITY_PROBES = 32, 12
LEAST_SHARE = 0.95
MEAN = "mean of the modes"


def save_first_blocks(source: Path, folder: Path) -> Path:
    """The model of `source` with its first two blocks only, as a model of its own."""
    model = load_model(source)
    groups = tuple(range(model.anatomy.kv_groups))
    blocks = tuple(KeptBlock(block, groups, tuple(range(model.anatomy.channels(block)))) for block in BLOCKS)
    without(model.module, model.anatomy, Kept(model.anatomy.blocks, blocks)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Volumes:
    """By mode, the hypervolume that the feasible ones of some outcomes dominate, up to the dearest uniform config's
    cost and the mode's AvgPP target."""

    problem: Problem

    def of(self, outcomes: Sequence[Observation]) -> dict[str, float]:
        dearest = self.problem.space.proxy_flops(self.problem.space.decode(self.problem.space.safest))
        points = {
            mode: [[o.proxy_flops / dearest, -(o.avgpp or 0.0)] for o in outcomes if o.feasible[mode]]
            for mode in self.problem.targets
        }
        return {
            mode: hypervolume(points[mode], (1.0, -target)) if points[mode] else 0.0
            for mode, target in self.problem.targets.items()
        }

    def shares(self, outcomes: Sequence[Observation], whole: Mapping[str, float]) -> dict[str, float]:
        """Of the volumes `whole`, by mode; 1 where no config is feasible at all."""
        return {
            mode: found / whole[mode] if whole[mode] else 1.0 for mode, found in self.of(outcomes).items()
        }


def observed(problem: Problem, config: Config, /) -> Observation:
    """An evaluation as a search makes it: what no mode can bear is not read to its end."""
    return problem.refuting(config, range(len(problem.tokens)))[0].observation


def every(problem: Problem) -> Iterator[Observation]:
    """What each config of the space does."""
    return (observed(problem, config) for config in problem.space.enumerate())


def searched(problem: Problem, seed: int, trials: int, probes: int = SENSITIVITY_PROBES) -> list[Observation]:
    """The trials of one study, after sensitivities on so many probes."""
    part, space = list(range(probes)), problem.space
    sensitivities = measure(
        space,
        lambda config: problem.judged(config, SEARCH, part).observation,
        Config.uniform(space.layers, FP16),
    )
    study = Study(
        space,
        Memory(),
        seed=seed,
        max_trials=trials,
        modes=problem.targets,
        initial=initial_design(space, expected_harm(space, sensitivities)["avgpp"]),
        sensitivities=sensitivities,
    )
    return [trial.observation for trial in study.run(lambda config, /: (observed(problem, config), {}))]


def at_random(everything: Sequence[Observation], trials: int, seed: int) -> list[Observation]:
    """As many configs, drawn without looking: what says how hard the problem is."""
    drawn = np.random.default_rng(seed).choice(len(everything), trials, replace=False)
    return [everything[index] for index in drawn]


def show(name: str, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Print medians and the least by mode, and of their means; returns the medians."""
    known = [{**row, MEAN: statistics.fmean(row.values())} for row in rows]
    medians = {mode: statistics.median(row[mode] for row in known) for mode in known[0]}
    cells = [f"{medians[mode]:.3f} [{min(row[mode] for row in known):.3f}]" for mode in medians]
    print(f"| {name} | {len(rows)} | " + " | ".join(cells) + " |", flush=True)
    return medians


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "enumerated-benchmark")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    source = arguments.shared / "models" / "stories260K"
    if not source.is_dir():
        print(f"{source} is not there", file=sys.stderr)
        return 2
    problem = problem_of(
        arguments.shared,
        save_first_blocks(source, arguments.cache / "two-blocks"),
        arguments.cache / "two-blocks.sqlite",
        MENU,
        menus={"model.embed_tokens": MENU[-1:]},
        counts={SEARCH: PROBES},
    )
    started, volumes = time.perf_counter(), Volumes(problem)
    everything = list(every(problem))
    whole = volumes.of(everything)
    feasible = {mode: sum(o.feasible[mode] for o in everything) for mode in whole}
    counted = ", ".join(f"{mode} {count:,}" for mode, count in feasible.items())
    print(f"{len(everything):,} configs in {time.perf_counter() - started:.0f} s, feasible: {counted}\n")
    print("| share of the true hypervolume, median [least] | n | " + " | ".join((*whole, MEAN)) + " |")
    print("|---|---|" + "---|" * (len(whole) + 1))
    rows = [volumes.shares(searched(problem, seed, arguments.trials), whole) for seed in arguments.seeds]
    found = show(f"ours, {arguments.trials} trials", rows)
    blind = [volumes.shares(at_random(everything, arguments.trials, seed), whole) for seed in arguments.seeds]
    show(f"{arguments.trials} configs at random", blind)
    return 0 if min(found.values()) >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
