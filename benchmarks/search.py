"""Searches side by side: what each finds for the tokens that it reads, and what its winners do on fresh probes.

`OMP_NUM_THREADS=1 python benchmarks/search.py run` plays every method on every model and keeps each run as a file;
`report` prints the tables and, with `--plot`, draws the curves. Needs the story models and stories in ../shared and
optuna. Effort is tokens read, in units of one trial on all search probes; sensitivities count, and a refuted trial
counts what it read.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import hypergeom
from search_ours import OURS
from search_problem import COUNTS, FRESH, SEARCH, SELECTION, Problem, required, story_problem
from search_rivals import RIVALS, Desk, SpentError, quiet
from transformers.utils import logging as transformers_logging

from toggle_edge.cache import cache_folder
from toggle_edge.config import Config
from toggle_edge.pareto import hypervolume
from toggle_edge.search.confirmation import Reading, confirm, likeliest
from toggle_edge.search.trial import Trial

SHARED = Path(__file__).parents[2] / "shared"
MODELS = ("stories260K", "stories-gpt2-1M")
METHODS = {**OURS, **RIVALS}
SEARCHED = 175
CONFIRMED = ("ours", "gp-bo", "knapsack")
MARKS = (20, 40, 80, 120, 160, 200)


def play(problem: Problem, method: str, seed: int, trials: int) -> dict[str, Any]:
    """One run as JSON: every trial with the effort after it, and the winners on fresh probes."""
    desk = Desk(problem, trials * problem.trial_tokens)
    started = time.perf_counter()
    with contextlib.suppress(SpentError):
        METHODS[method](desk, seed)
    return {
        "model": problem.name,
        "method": method,
        "seed": seed,
        "seconds": time.perf_counter() - started,
        "trials": [
            {
                "effort": entry.tokens / problem.trial_tokens,
                "cost": problem.cost(entry.config),
                "avgpp": entry.observation.avgpp,
                "feasible": entry.observation.feasible,
                "refuted": entry.observation.refuted,
                "config": entry.config.to_json(),
            }
            for entry in desk.entries
        ],
        "winners": {mode: winner(problem, desk, mode) for mode in problem.targets},
    }


def winner(problem: Problem, desk: Desk, mode: str) -> dict[str, Any] | None:
    """The cheapest trial that is feasible in the mode, judged on fresh probes."""
    feasible = [entry for entry in desk.entries if entry.observation.feasible[mode]]
    if not feasible:
        return None
    best = min(feasible, key=lambda entry: entry.observation.proxy_flops)
    return judged_fresh(problem, best.config, mode)


def judged_fresh(problem: Problem, config: Config, mode: str) -> dict[str, Any]:
    judged = problem.judged(config, FRESH)
    return {
        "cost": problem.cost(config),
        "satisfied": judged.satisfied[mode],
        "probes": judged.probes,
        "avgpp": judged.observation.avgpp,
        "holds": judged.observation.feasible[mode],
    }


def volume(trials: Sequence[Mapping[str, Any]], mode: str, target: float, least: float) -> float:
    """The share of the box from (dearest uniform, AvgPP target) to (cheapest uniform, 100 %) that is dominated."""
    points = [[t["cost"], -t["avgpp"]] for t in trials if t["feasible"][mode]]
    if not points:
        return 0.0
    return hypervolume(points, (1.0, -target)) / ((1.0 - least) * (100.0 - target))


def curve(
    run: Mapping[str, Any], targets: Mapping[str, float], least: float, marks: Sequence[float]
) -> list[float]:
    """Feasible hypervolume, mean over modes, once so much effort is spent."""
    found = []
    for mark in marks:
        done = [trial for trial in run["trials"] if trial["effort"] <= mark + 1e-9]
        found.append(statistics.fmean(volume(done, mode, target, least) for mode, target in targets.items()))
    return found


def quartiles(values: Sequence[float], form: str = ".3f") -> str:
    low, middle, high = np.percentile(values, (25, 50, 75))
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def cheapest_uniform(uniform: Mapping[str, Any], targets: Mapping[str, float]) -> dict[str, float]:
    return {
        mode: min((t["cost"] for t in uniform["trials"] if t["feasible"][mode]), default=float("nan"))
        for mode in targets
    }


def print_model(
    model: str, runs: Sequence[Mapping[str, Any]], uniform: Mapping[str, Any], targets: Mapping[str, float]
) -> None:
    least = min(trial["cost"] for trial in uniform["trials"])
    cheapest = cheapest_uniform(uniform, targets)
    shown = ", ".join(f"{mode} {cost:.3f}" for mode, cost in cheapest.items())
    print(f"\n**{model}**: cheapest feasible uniform config: {shown}.\n")
    print(
        "| method | n | "
        + " | ".join(f"volume at {mark}" for mark in MARKS)
        + " | feasible share | s per run |"
    )
    print("|---|---|" + "---|" * (len(MARKS) + 2))
    methods = list(dict.fromkeys(run["method"] for run in runs))
    for method in methods:
        own = [run for run in runs if run["method"] == method]
        curves = np.array([curve(run, targets, least, MARKS) for run in own])
        share = statistics.median(
            statistics.fmean(any(t["feasible"].values()) for t in run["trials"]) for run in own
        )
        seconds = statistics.median(run["seconds"] for run in own)
        cells = [quartiles(column) for column in curves.T]
        print(f"| {method} | {len(own)} | " + " | ".join(cells) + f" | {share:.2f} | {seconds:.0f} |")
    print(
        "\nWinners: cost over the cheapest feasible uniform's; coverage and whether the mode holds on fresh probes.\n"
    )
    print("| method | " + " | ".join(targets) + " |")
    print("|---|" + "---|" * len(targets))
    for method in methods:
        cells = []
        for mode in targets:
            won = [run["winners"][mode] for run in runs if run["method"] == method]
            kept = [each for each in won if each is not None]
            if not kept:
                cells.append("none feasible")
                continue
            ratios = [each["cost"] / cheapest[mode] for each in kept]
            coverage = statistics.median(each["satisfied"] / each["probes"] for each in kept)
            holds = sum(each["holds"] for each in kept)
            cells.append(f"{quartiles(ratios, '.2f')}, {coverage:.3f}, {holds}/{len(won)}")
        print(f"| {method} | " + " | ".join(cells) + " |")


def confirmed(problem: Problem, run: Mapping[str, Any], mode: str, searched: float) -> dict[str, Any] | None:
    """What the mode would ship: of the trials within `searched` effort, the one that selection probes confirm.

    Its fresh coverage, the effort of the readings, and the chance to hold on as many fresh probes as the search had.
    """
    contract, count = problem.specification[mode], COUNTS[SEARCH]
    needed = required(contract.coverage, count)
    trials = [
        Trial(index, config, "", problem.judged(config).observation)
        for index, (config, trial) in enumerate((Config.from_json(t["config"]), t) for t in run["trials"])
        if trial["feasible"][mode] and trial["effort"] <= searched
    ]
    tokens = [len(probe.tokens) for probe in problem.evaluations.probes[SELECTION]]
    read: dict[str, int] = {}

    def reading(config: Config, probes: int) -> Reading:
        judged = problem.judged(config, SELECTION, range(probes))
        read[config.digest] = probes
        return Reading(judged.satisfied[mode], probes, judged.observation.avgpp)

    best = likeliest(
        confirm(
            trials,
            mode,
            reading,
            probes=len(tokens),
            required=needed,
            fresh=count,
            target=contract.avgpp,
        )
    )
    if best is None:
        return None
    fresh = judged_fresh(problem, best.trial.config, mode)
    failed = fresh["probes"] - fresh["satisfied"]
    effort = sum(sum(tokens[:probes]) for probes in read.values()) / problem.trial_tokens
    holds = float(hypergeom.cdf(count - needed, fresh["probes"], failed, count))
    return {**fresh, "effort": effort, "chance": holds, "confirmed": best.confirmed}


def print_confirmed(
    problem: Problem, runs: Sequence[Mapping[str, Any]], cheapest: Mapping[str, float]
) -> None:
    """Winners after confirmation, of the methods that come closest."""
    print(
        f"\nConfirmed: of the trials within {SEARCHED} trials' effort, what {COUNTS[SELECTION]} selection probes"
    )
    print(
        "confirm: cost over the cheapest feasible uniform's, coverage on fresh probes, chance to hold on 60 of them."
    )
    print("\n| method | n | " + " | ".join(cheapest) + " | effort |")
    print("|---|---|" + "---|" * (len(cheapest) + 1))
    for method in (name for name in CONFIRMED if any(run["method"] == name for run in runs)):
        own = [run for run in runs if run["method"] == method]
        found = {mode: [confirmed(problem, run, mode, SEARCHED) for run in own] for mode in cheapest}
        cells = []
        for mode, rows in found.items():
            kept = [row for row in rows if row is not None]
            if not kept:
                cells.append("none feasible")
                continue
            ratio = statistics.median(row["cost"] / cheapest[mode] for row in kept)
            coverage = statistics.median(row["satisfied"] / row["probes"] for row in kept)
            chance = statistics.median(row["chance"] for row in kept)
            cells.append(f"{ratio:.2f}, {coverage:.3f}, {chance:.2f}")
        efforts = [sum(found[mode][n]["effort"] for mode in found if found[mode][n]) for n in range(len(own))]
        print(f"| {method} | {len(own)} | " + " | ".join(cells) + f" | {statistics.median(efforts):.0f} |")


def draw(
    path: Path, model: str, runs: Sequence[Mapping[str, Any]], targets: Mapping[str, float], least: float
) -> None:
    """The anytime curves: medians, and between least and most."""
    from matplotlib.figure import Figure

    marks = np.arange(5, 201, 5)
    axes = (figure := Figure(figsize=(7, 4.5))).subplots()
    for method in dict.fromkeys(run["method"] for run in runs if run["method"] != "uniform"):
        rows = [curve(run, targets, least, marks) for run in runs if run["method"] == method]
        axes.plot(marks, np.median(rows, axis=0), label=f"{method} (n={len(rows)})")
        axes.fill_between(marks, np.min(rows, axis=0), np.max(rows, axis=0), alpha=0.15)
    axes.set(
        xlabel="effort: tokens read, in trials", ylabel="feasible hypervolume, mean of modes", title=model
    )
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--cache", type=Path, default=cache_folder() / "search-benchmark")
    parser.add_argument("--output", type=Path, default=Path("search-benchmark"))
    parser.add_argument("--plot", type=Path, help="with report: a folder for the anytime curves")
    parser.add_argument("--again", action="store_true", help="replace runs that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    quiet()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in arguments.models:
        problem = story_problem(arguments.shared, name, arguments.cache)
        if arguments.what == "report":
            files = [
                arguments.output / f"{name} {method} {seed}.json"
                for method in arguments.methods
                for seed in arguments.seeds
            ]
            runs = [json.loads(path.read_text(encoding="utf-8")) for path in files if path.is_file()]
            uniform = play(problem, "uniform", 0, arguments.trials)
            print_model(name, runs, uniform, problem.targets)
            print_confirmed(problem, runs, cheapest_uniform(uniform, problem.targets))
            if arguments.plot is not None:
                least = min(trial["cost"] for trial in uniform["trials"])
                draw(arguments.plot / f"search-{name}.png", name, runs, problem.targets, least)
            continue
        for seed in arguments.seeds:
            for method in arguments.methods:
                path = arguments.output / f"{name} {method} {seed}.json"
                if path.is_file() and not arguments.again:
                    continue
                run = play(problem, method, seed, arguments.trials)
                path.write_text(json.dumps(run), encoding="utf-8")
                print(f"{path.name}: {len(run['trials'])} trials, {run['seconds']:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
