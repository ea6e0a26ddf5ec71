"""How long `toggle-edge --help` takes, as a process, beside a Python that does nothing.

python benchmarks/startup.py --runs 20
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time


def main() -> None:
    """Run both in turns, and print medians, ranges and their difference."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    commands = {"python -c pass": ["-c", "pass"], "toggle-edge --help": ["-m", "toggle_edge", "--help"]}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, arguments in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            taken[name].append(time.perf_counter() - began)
    for name, seconds in taken.items():
        kept = sorted(seconds[1:])  # the first fills the disk's cache
        print(
            f"{name:<20} median {statistics.median(kept):.3f} s, {kept[0]:.3f} to {kept[-1]:.3f}, n={len(kept)}"
        )


if __name__ == "__main__":
    main()
