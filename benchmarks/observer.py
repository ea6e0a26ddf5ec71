"""What measuring costs: decode speed with every energy meter being read, beside none, in turns.

`OMP_NUM_THREADS=1 python benchmarks/observer.py`. The files of simulated boards (an Orin NX's rails, a Thor's, a
laptop's RAPL zones and battery) lie in a folder, so every meter of the registry that reads files is open at once, more
than any device has, each sampled at its own rate as the agent does it. The model decodes in another process, on the
same core if only one is allowed. A pair is a generation with the meters on and one without, in an order drawn for it;
short, since a host's speed drifts: two generations in a row differ less than two blocks of four. What is not in it: the
time that a real sensor's bus takes. Ends with 1 where the interval of the change of tokens/s begins below -2 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from regression import FORMAT, artifact
from toggle_runtime import meters
from toggle_runtime.meters.meter import Meter
from toggle_runtime.meters.sampling import Recording, Sampler
from toggle_runtime.tree import Tree

from toggle_edge.fleet.board_models import laptop, laptop_on_battery, orin_nx, thor
from toggle_edge.fleet.boards import PowerCurve
from toggle_edge.statistics import compare_pairs

LEAST = -0.02
TOKENS = 65


def boards(folder: Path) -> None:
    """The boards' files as they are at one moment; each adds what the ones before lack."""
    curve = PowerCurve([(60.0, 10.0)], 4.0, 1000.0)
    for board in (orin_nx(curve), thor(curve), laptop_on_battery(curve), laptop(curve)):
        for path, source in board.tree.files.items():
            target = folder / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(source if isinstance(source, str) else source(), encoding="utf-8")


def opened(folder: Path) -> list[Meter]:
    """Every meter of the registry that can be read there; those that cannot are told."""
    found = []
    for name in meters.ENERGY:
        meter = meters.open_named(name, Tree(folder))
        if isinstance(meter, Meter):
            found.append(meter)
        else:
            print(f"{name}: not on: {meter}")
    return found


class Decoder:
    """A process that decodes a generation when it is asked to."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "decode", "--folder", str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds_per_token()

    def seconds_per_token(self) -> float:
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit("the decoder has no pipes")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


def decode(folder: Path) -> None:
    """Serve generations: seconds that a token took, all after the first together."""
    from bare_loop import prompt_of, shape_of
    from toggle_runtime.backends import onnx

    shape = shape_of(folder)
    model = onnx.open_model(folder, shape, onnx.GRAPH, 1)
    for _ in sys.stdin:
        tokens = onnx.generate(model, prompt_of(shape), TOKENS).token_ns
        print(sum(tokens) / len(tokens) / 1e9, flush=True)


def observed(decoder: Decoder, found: list[Meter]) -> tuple[float, float]:
    """Seconds of a token while the meters are read, and how many readings a second that was."""
    recordings = [Recording(meter) for meter in found]
    began = time.monotonic()
    with ExitStack() as stack:
        for recording in recordings:
            stack.enter_context(Sampler(recording))
        taken = decoder.seconds_per_token()
    seconds = time.monotonic() - began
    broken = [failure for recording in recordings for failure in recording.failures]
    if broken:
        raise SystemExit(f"a meter failed: {broken[0]}")
    return taken, sum(len(recording.readings) for recording in recordings) / seconds


def compare(folder: Path, pairs: int) -> int:
    with tempfile.TemporaryDirectory(prefix="toggle-edge-observer-") as scratch:
        boards(Path(scratch))
        found = opened(Path(scratch))
        decoder, random = Decoder(folder), np.random.default_rng(0)
        off: list[float] = []
        on: list[float] = []
        rates = []
        for _ in range(pairs):
            for observe in (False, True) if random.random() < 0.5 else (True, False):
                if observe:
                    taken, rate = observed(decoder, found)
                    on.append(taken)
                    rates.append(rate)
                else:
                    off.append(decoder.seconds_per_token())
        decoder.close()
    # Tokens a second: the ratio of times the other way round.
    result = compare_pairs(on, off)
    low, high = result.ci95 or (float("nan"), float("nan"))
    print(f"{FORMAT}, {len(found)} meters, {np.median(rates):.0f} readings a second\n")
    print("| pairs | tokens/s without | change with all meters, % [95 %] |\n|---|---|---|")
    print(
        f"| {pairs} | {1 / np.median(off):.1f} | {100 * (result.ratio - 1):+.2f} [{100 * (low - 1):+.2f}, "
        f"{100 * (high - 1):+.2f}] |"
    )
    return 0 if low - 1 > LEAST else 1


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("compare", "decode"), default="compare")
    parser.add_argument("--folder", type=Path, help="an artifact with shape.json beside it")
    parser.add_argument("--pairs", type=int, default=600)
    arguments = parser.parse_args()
    if arguments.action == "decode":
        decode(arguments.folder)
        return 0
    return max(compare(folder, arguments.pairs) for folder in artifact(arguments.folder))


if __name__ == "__main__":
    sys.exit(main())
