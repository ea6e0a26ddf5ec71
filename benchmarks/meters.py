"""What each energy meter says of simulated boards, beside the joules that their power curve has.

`python benchmarks/meters.py`. Constant, stepped and bursty power on each board of `toggle_edge.fleet.board_models`, on
a simulated clock: window of 12 s (320 s on batteries), idle of 30 s before and after. Prints a table, and ends with 1
where a number is more than 2 % from the curve without a flag.
"""

import sys

from toggle_edge.fleet.board_models import BOARDS
from toggle_edge.fleet.boards import PowerCurve

WATTS = {
    "orin-nx": (5.0, 8.0, 15.0),
    "agx-orin": (12.0, 20.0, 40.0),
    "nano-jetpack4": (2.0, 4.0, 9.0),
    "thor": (20.0, 40.0, 90.0),
    "laptop": (6.0, 15.0, 45.0),
    "laptop-on-battery": (5.0, 9.0, 20.0),
    "phone": (0.8, 1.5, 4.0),
}
"""Idle, low and high."""


def pieces(kind: str, low: float, high: float, seconds: float) -> list[tuple[float, float]]:
    if kind == "constant":
        return [(seconds, high)]
    if kind == "stepped":
        return [(seconds / 4, watts) for watts in (low, high, (low + high) / 2, high)]
    return [(0.13, high), (0.27, low)] * round(seconds / 0.4)


def main() -> int:
    wrong = 0
    print("| board | meter | power | joules | measured, gross | idle, measured over true | step | readings |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (idle, low, high) in WATTS.items():
        for kind in ("constant", "stepped", "bursty"):
            seconds = 320.0 if name in ("phone", "laptop-on-battery") else 12.0
            board = BOARDS[name](PowerCurve(pieces(kind, low, high, seconds), idle, 1040.0))
            sample = board.measure(30.0)
            if sample.gross_mj is None or sample.idle_mw is None:
                print(f"| {name} | | {kind} | | unavailable: {sample.reason} | | | |")
                wrong += 1
                continue
            true = board.joules(sample)
            share = sample.gross_mj / 1000 / true
            wrong += abs(share - 1) > 0.02 and not sample.flags
            step = "not told" if sample.step_mw is None else f"{sample.step_mw:.3g} mW"
            print(
                f"| {name} | {sample.scope} | {kind} | {true:.1f} | {100 * (share - 1):+.2f} % "
                f"| {100 * (sample.idle_mw / 1000 / idle - 1):+.2f} % | {step} | {sample.readings} |"
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
