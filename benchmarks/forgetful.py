"""A ledger for benchmarks, which search and throw away."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from toggle_edge.search.trial import Trial


@dataclass
class Memory:
    """A ledger that forgets when the process ends."""

    kept: list[Trial] = field(default_factory=list)

    def trials(self) -> Sequence[Trial]:
        return list(self.kept)

    def record(self, trial: Trial) -> None:
        self.kept.append(trial)
