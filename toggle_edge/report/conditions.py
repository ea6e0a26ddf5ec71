"""What disturbed a run's measurements, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from toggle_runtime.records import PassConditions

LATENCY = "latency"
TIMED = ("capacity", "cold", LATENCY, "sustained", "energy")
"""Passes whose numbers another process or a slow clock would change; verdicts and memory stay what they are."""


def disturbances(passes: Sequence[PassConditions], *, strict: bool = False) -> list[str]:
    """Why times or energy are not those of a device of its own at its full speed, empty where nothing was seen.

    `strict`: that other processes could not be looked at during the latency pass counts too. Other passes may be too
    short for it, as an energy pass without a meter is.
    """
    found = []
    for each in passes:
        if each.name not in TIMED:
            continue
        for what, why in (("contended", each.contended), ("throttled", each.throttled)):
            if why is not None:
                found.append(f"{each.name} was {what}: {why}")
        if strict and each.name == LATENCY and each.others_share is None:
            found.append(
                f"{each.name}: {'; '.join(each.unknown) or 'other processes could not be looked at'}"
            )
    return found
