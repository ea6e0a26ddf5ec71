"""Are two equal things called equal, and is 5 % found? On a simulated clock with real noise, and on real cores.

`OMP_NUM_THREADS=1 python benchmarks/regression.py` replays `noise.json`, token times of 100 real processes, through
the simulated backend: 20 comparisons of a thing with itself, 20 with one that is 5 % slower, each of as many pairs as
it takes up to 640, at a minimum effect of 3 %. Ends with 1 unless at least 19 of 20 equal ones are not called different
and 19 of 20 slower ones are found. `regression.py record` records the noise anew; `regression.py real` compares once
with real processes, up to 80 pairs, where the slower one waits for 5 % of each token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from toggle_runtime.records import LatencySample, ModelShape, from_data
from token_times import measure

from toggle_edge.fleet.interleaving import LOOKS, decided
from toggle_edge.fleet.simulated import SimulatedBackend, SimulatedMachine, read_noise
from toggle_edge.statistics import IMPROVED, REGRESSED, Comparison

NOISE = Path(__file__).with_name("noise.json")
FORMAT = "int4-g128"
SLOWER, SEEDS, ENOUGH, PROCESSES = 1.05, 20, 19, 100
REAL_LOOKS = (20, 40, 80)
SHAPE = ModelShape(1, 1, 8, 512, 512, None)


def simulated(slower: float, seed: int, looks: Sequence[int] = LOOKS) -> Comparison:
    """One comparison on a simulated machine."""
    machine = SimulatedMachine(read_noise(NOISE), seed)

    def job(slowdown: float) -> Callable[[], LatencySample]:
        backend = SimulatedBackend(machine, slowdown=slowdown)
        return lambda: measure(backend, Path(), SHAPE)

    return decided(job(1.0), job(slower), looks=looks, seed=seed)


def process(folder: Path, slower: float) -> LatencySample:
    """Real token times, in a process of its own."""
    command = [sys.executable, str(NOISE.with_name("token_times.py")), str(folder), str(slower)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{(done.stderr.strip().splitlines() or ['no output'])[-1]}")
    return from_data(LatencySample, json.loads(done.stdout.splitlines()[-1]))


def record(folder: Path) -> None:
    """Run processes one after another, and keep the microseconds of their tokens."""
    found = []
    for done in range(PROCESSES):
        sample = process(folder, 1.0)
        found.append([[round(t / 1e3) for t in g.token_ns] for g in sample.generations if not g.warmup])
        print(f"process {done + 1} of {PROCESSES}", file=sys.stderr, flush=True)
    NOISE.write_text(json.dumps(found, separators=(",", ":")) + "\n", encoding="utf-8")


def artifact(given: Path | None) -> Iterator[Path]:
    """The folder that was given, or a random 100M Llama exported for this."""
    if given is not None:
        yield given
        return
    from decode_models import export_formats, save_llama

    with tempfile.TemporaryDirectory(prefix="toggle-edge-regression-") as scratch:
        model = save_llama(Path(scratch) / "model")
        yield export_formats(model, (FORMAT,), Path(scratch))[FORMAT]


def spread_of_noise() -> str:
    """How noisy the recording is: between neighbouring processes, and between all."""
    medians = np.log([np.median(np.concatenate(each)) for each in read_noise(NOISE).processes])
    neighbours = np.diff(medians).std() / np.sqrt(2.0)
    return (
        f"{len(medians)} processes: standard deviation of the median token time {100 * medians.std():.1f} %, between "
        f"neighbours {100 * neighbours:.1f} %"
    )


def show(name: str, found: Sequence[Comparison]) -> None:
    counted = Counter(each.verdict for each in found)
    ratios, pairs = [each.ratio for each in found], [each.pairs for each in found]
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(counted.items()))
    print(
        f"| {name} | {len(found)} | {verdicts} | {np.median(pairs):.0f} [{min(pairs)}, {max(pairs)}] "
        f"| {np.median(ratios):.4f} [{min(ratios):.4f}, {max(ratios):.4f}] |"
    )


def simulate() -> int:
    print(spread_of_noise() + "\n")
    print("| simulated | seeds | verdicts | pairs, median [least, most] | ratio |\n|---|---|---|---|---|")
    same = [simulated(1.0, seed) for seed in range(SEEDS)]
    slower = [simulated(SLOWER, SEEDS + seed) for seed in range(SEEDS)]
    show("A/A", same)
    show(f"A/B, {100 * (SLOWER - 1):.0f} % slower", slower)
    quiet = sum(each.verdict not in (REGRESSED, IMPROVED) for each in same)
    found = sum(each.verdict == REGRESSED for each in slower)
    return 0 if min(quiet, found) >= ENOUGH else 1


def real(folder: Path) -> None:
    print("| this machine | pairs | verdict | ratio [95 %] | p |\n|---|---|---|---|---|")
    for name, slower in (("A/A", 1.0), (f"A/B, {100 * (SLOWER - 1):.0f} % slower", SLOWER)):
        found = decided(
            lambda: process(folder, 1.0), lambda slower=slower: process(folder, slower), looks=REAL_LOOKS
        )
        ends = "none" if found.ci95 is None else f"[{found.ci95[0]:.4f}, {found.ci95[1]:.4f}]"
        verdict = found.verdict + (f": {found.reason}" if found.reason else "")
        print(
            f"| {name} | {found.pairs} | {verdict} | {found.ratio:.4f} {ends} | {found.p_value:.4f} |",
            flush=True,
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("simulate", "record", "real"), default="simulate")
    parser.add_argument("--folder", type=Path, help="an artifact with shape.json beside it")
    arguments = parser.parse_args()
    if arguments.action == "simulate":
        return simulate()
    for folder in artifact(arguments.folder):
        if arguments.action == "record":
            record(folder)
        else:
            real(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
