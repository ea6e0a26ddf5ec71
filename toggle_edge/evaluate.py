"""config -> Evaluation: compress, signals, verdicts, cost. The one way in which the host judges a candidate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import SATISFIED, ModeSpecification, ModeVerdict
from toggle_runtime.signals import Outputs, Trace
from toggle_runtime.verdicts import judge, signals_read

from toggle_edge.baseline import stored_baseline
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config
from toggle_edge.cost import Cost, predicted_cost
from toggle_edge.model.load import LanguageModel
from toggle_edge.probes import Probe
from toggle_edge.signals import traces_of


@dataclass(frozen=True)
class Evaluation:
    """What the host found for one config on one set of probes: a verdict per mode, AvgPP in percent, cost."""

    config: Config
    modes: Mapping[str, ModeVerdict]
    avgpp: float | None
    cost: Cost

    def holds(self, mode: str, specification: Mapping[str, ModeSpecification]) -> bool:
        """Whether the mode's specification is satisfied at its coverage and its AvgPP target is reached."""
        reached = self.avgpp is not None and self.avgpp >= specification[mode].avgpp
        return reached and self.modes[mode].verdict == SATISFIED


class Evaluator:
    """Judges configs on one fixed set of probes. The baseline's outputs are computed once, kept in `folder` if any."""

    def __init__(
        self,
        model: LanguageModel,
        bank: LayerBank,
        probes: Sequence[Probe],
        specification: Mapping[str, ModeSpecification],
        *,
        folder: Path | None = None,
    ) -> None:
        self._model = model
        self._bank = bank
        self._probes = probes
        self._specification = specification
        # The noise floor is a property of a device's runs; on the host nothing is marginal.
        self._no_noise = {name: 0.0 for mode in specification.values() for name in mode.properties}
        self.baseline: list[Outputs] = stored_baseline(
            model, probes, folder, free_running="departure" in signals_read(specification)
        )

    def traces(self, config: Config) -> list[Trace]:
        """The config's signals on every probe. Raises ConfigError when it does not fit the model."""
        return traces_of(self._bank.assemble(config), self._probes, self.baseline)

    def evaluate(self, config: Config) -> Evaluation:
        """Judge one config. Raises ConfigError when it does not fit the model."""
        return self.judged(config, self.traces(config))

    def judged(self, config: Config, traces: Sequence[Trace]) -> Evaluation:
        """Judge a config by the traces that `traces` gave for it."""
        modes = {verdict.mode: verdict for verdict in judge(self._specification, traces, self._no_noise)}
        avgpp = next(iter(modes.values())).avgpp
        cost = predicted_cost(self._model.layers, config, self._model.kept_parameters)
        return Evaluation(config, modes, avgpp, cost)
