"""Problems whose answer is known: additive harm with an interaction, two modes, two properties."""

from collections.abc import Mapping, Sequence

import numpy as np

from toggle_edge.config import Config, Format
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Observation, Trial

MENU = tuple(Format.parse(text) for text in ("int2-g64", "int4-g32", "int8-g64", "fp16"))
MODES = {"strict": 99.0, "relaxed": 85.0}
UNITS = {f"unit{n:02}": (f"layer{n:02}",) for n in range(12)}
SENSITIVITY = np.array([8.0, 0.1, 0.1, 4.0, 0.1, 0.2, 0.1, 6.0, 0.1, 0.2, 0.1, 3.0])
HARM = {2: 1.0, 4: 0.25, 8: 0.004, 16: 0.0}


def bits_of(config: Config) -> float:
    return float(sum(fmt.bits for _, fmt in config))


SPACE = Space.of_units(UNITS, MENU, bits_of)


def evaluate(config: Config, /) -> tuple[Observation, Mapping[str, object]]:
    """Losses that add up, plus an interaction of neighbours; four layers matter, eight hardly do.

    Of the two properties the second one decides.
    """
    harm = SENSITIVITY[: len(config)] * np.array([HARM[fmt.bits] for _, fmt in config])
    loss = float(harm.sum() + 0.3 * np.sqrt(harm[1:] * harm[:-1]).sum())
    joint = {"strict": 0.2 - loss / 5, "relaxed": 0.5 - loss / 20}
    feasible = {mode: joint[mode] >= 0 and 100 - loss >= target for mode, target in MODES.items()}
    properties = {mode: {"first": value / 2 + 0.2, "second": value} for mode, value in joint.items()}
    observation = Observation(bits_of(config), max(100 - loss, 0.0), joint, feasible, properties)
    return observation, {"loss": loss}


class Memory:
    """A ledger in memory."""

    def __init__(self, trials: Sequence[Trial] = ()) -> None:
        self.kept = list(trials)

    def trials(self) -> Sequence[Trial]:
        return list(self.kept)

    def record(self, trial: Trial) -> None:
        self.kept.append(trial)
