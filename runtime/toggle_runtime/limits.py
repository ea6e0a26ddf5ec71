"""What the device could do at best, kept in its root: measured once, and again when what it depends on changes."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Dict, Optional, Tuple

from toggle_runtime.blobs import write_durably
from toggle_runtime.codec import RecordError, from_json, require_version, to_json
from toggle_runtime.conditions import disturbances
from toggle_runtime.facts import board, cpu_model
from toggle_runtime.records import CapacitySample, PassConditions

LIMITS = "limits.json"
"""The file's name in the root."""


@dataclass(frozen=True)
class Limits:
    """A capacity, and what it was measured under."""

    READABLE: ClassVar[Tuple[int, ...]] = (1,)

    version: int
    under: Dict[str, str]
    capacity: CapacitySample

    def __post_init__(self) -> None:
        require_version(self.version, self.READABLE, "limits")


def circumstances(environment: str, threads: int) -> Dict[str, str]:
    """What a capacity depends on: processor, board, kernel, cores, threads, and the worker's environment."""
    return {
        "cpu": cpu_model(),
        "board": board(),
        "kernel": platform.release(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "environment": environment,
    }


def known_capacity(root: Path, under: Dict[str, str]) -> Optional[CapacitySample]:
    """The kept capacity if it was measured under the same circumstances; None otherwise, or if it cannot be read."""
    try:
        kept = from_json(Limits, (root / LIMITS).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, RecordError):
        return None  # it is measured anew, which is all that it takes
    return kept.capacity if kept.under == under else None


def keep_capacity(
    root: Path, under: Dict[str, str], capacity: CapacitySample, conditions: PassConditions
) -> bool:
    """Keep it until the circumstances change; returns whether it was kept. Raises OSError.

    Not where something disturbed it: every later run would seem to come nearer to a limit that is too low.
    """
    if disturbances([conditions]):
        return False
    text = to_json(Limits(1, under, capacity))
    write_durably(root / LIMITS, text.encode("utf-8"))
    return True
