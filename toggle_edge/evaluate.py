"""config -> Evaluation: compress, signals, verdicts, cost. The one way in which the host judges a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from toggle_runtime.records import SATISFIED, ModeSpecification, ModeVerdict
from toggle_runtime.signals import Outputs, Trace
from toggle_runtime.verdicts import avgpp, judge, signals_read

from toggle_edge.baseline import stored_baseline
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config
from toggle_edge.cost import Cost, predicted_cost
from toggle_edge.falsification import (
    Seen,
    nothing_seen,
    portions,
    refutation,
    upper_bounds,
    violated,
    with_traces,
)
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe
from toggle_edge.signals import traces_of


@dataclass(frozen=True)
class Evaluation:
    """What the host found for one config on one set of probes: a verdict per mode, AvgPP in percent, cost.

    `violated` are by mode the probes, by number, that violate it. A `refuted` evaluation stopped when no mode could be
    satisfied any more: only `read` probes were, AvgPP is of those, and robustness in `modes` and in `bounds` (by mode
    and property) is an upper bound of what all probes would give.
    """

    config: Config
    modes: Mapping[str, ModeVerdict]
    avgpp: float | None
    cost: Cost
    violated: Mapping[str, tuple[int, ...]]
    bounds: Mapping[str, Mapping[str, float]]
    read: int
    refuted: bool = False

    def holds(self, mode: str, specification: Mapping[str, ModeSpecification]) -> bool:
        """Whether the mode's specification is satisfied at its coverage and its AvgPP target is reached."""
        reached = self.avgpp is not None and self.avgpp >= specification[mode].avgpp
        return not self.refuted and reached and self.modes[mode].verdict == SATISFIED


class Evaluator:
    """Judges configs on one fixed set of probes, and counts their cost as on `target`. The baseline's outputs are
    computed once, and kept in `folder` if any."""

    def __init__(
        self,
        model: LanguageModel,
        bank: LayerBank,
        probes: Sequence[Probe],
        specification: Mapping[str, ModeSpecification],
        *,
        folder: Path | None = None,
        target: str = "",
    ) -> None:
        self._model = model
        self._bank = bank
        self._probes = probes
        self._specification, self._target = specification, target
        # The noise floor is a property of a device's runs; on the host nothing is marginal.
        self._no_noise = {name: 0.0 for mode in specification.values() for name in mode.properties}
        self.baseline: list[Outputs] = stored_baseline(
            model, probes, folder, free_running="departure" in signals_read(specification)
        )

    def traces(self, config: Config, part: slice = slice(None)) -> list[Trace]:
        """The config's signals on every probe, or on part of them. Raises ConfigError when it does not fit."""
        kept = self._bank.kept(config.structure)
        return traces_of(self._bank.assemble(config), self._probes[part], self.baseline[part], kept)

    def evaluate(self, config: Config, order: Sequence[int] | None = None) -> Evaluation:
        """Judge one config; with an `order` of the probes, by number, only until it is refuted.

        Raises ConfigError when it does not fit the model.
        """
        if order is None:
            return self.judged(config, self.traces(config))
        seen, traces = nothing_seen(self._specification, len(self._probes)), dict[int, Trace]()
        module, kept = self._bank.assemble(config), self._bank.kept(config.structure)
        for part in portions(self._specification, order):
            probes, baseline = [self._probes[i] for i in part], [self.baseline[i] for i in part]
            found = traces_of(module, probes, baseline, kept)
            traces |= zip(part, found, strict=True)
            seen = with_traces(seen, found)
            if len(traces) == len(self._probes):
                break
            percent = avgpp(list(traces.values()), signals_read(self._specification))
            verdicts = refutation(self._specification, seen, percent)
            if verdicts is not None:
                return self._evaluation(config, verdicts, percent, seen, order, refuted=True)
        return self.judged(config, [traces[i] for i in range(len(self._probes))])

    def judged(self, config: Config, traces: Sequence[Trace]) -> Evaluation:
        """Judge a config by the traces that `traces` gave for it."""
        modes = {verdict.mode: verdict for verdict in judge(self._specification, traces, self._no_noise)}
        seen = with_traces(nothing_seen(self._specification, len(traces)), traces)
        percent = next(iter(modes.values())).avgpp
        return self._evaluation(config, modes, percent, seen, range(len(traces)), refuted=False)

    def _evaluation(
        self,
        config: Config,
        modes: Mapping[str, ModeVerdict],
        percent: float | None,
        seen: Seen,
        order: Sequence[int],
        *,
        refuted: bool,
    ) -> Evaluation:
        layers = self._model.remaining(config.structure)
        kept = self._model.remaining_parameters(config.structure)
        cost = predicted_cost(layers, config, kept, target=self._target)
        found = {
            name: tuple(sorted(order[int(i)] for i in np.flatnonzero(violated(seen, mode))))
            for name, mode in self._specification.items()
        }
        bounds = {name: upper_bounds(seen, mode) for name, mode in self._specification.items()}
        return Evaluation(config, modes, percent, cost, found, bounds, seen.read, refuted)
