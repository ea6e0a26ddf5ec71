"""The problem that `search.py` gives to every method: a story model, its units and formats, probes, and a token count.

Every evaluation is kept on disk by the digests of model, probes and config, so that a second run only reads. What is
kept are the robustness of each formula and the preservation on each probe; verdicts on any part of the probes follow.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.records import ModeSpecification
from toggle_runtime.signals import Outputs
from toggle_runtime.verdicts import avgpp, per_probe_robustness, signals_read

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe, probes_to_json, read_probes
from toggle_edge.probes.splitting import sides_of
from toggle_edge.profiles import load_profile
from toggle_edge.search.dimensions import unit_dimensions
from toggle_edge.search.space import Space
from toggle_edge.search.trial import Observation
from toggle_edge.signals import baseline_outputs, traces_of
from toggle_edge.sources import ProbeSource
from toggle_edge.specification import specification_of

MENU = tuple(Format.parse(f"int{bits}-g32") for bits in range(3, 9))
SEARCH, SELECTION, FRESH = "search", "selection", "fresh"
COUNTS = {SEARCH: 60, SELECTION: 120, FRESH: 240}
STEPS, TOKENS = 32, 96
FIRST_PROBES = 8


@dataclass(frozen=True)
class Rows:
    """What one config does on each probe: robustness by formula, mean preservation and its weight by signal."""

    formulas: Mapping[str, NDArray[np.float64]]
    preserved: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def avgpp(self) -> float:
        return float(np.mean((self.preserved * self.weights).sum(1) / self.weights.sum(1)))


class Evaluations:
    """One model on named sets of probes, its evaluations kept on disk."""

    def __init__(
        self,
        model: LanguageModel,
        specification: Mapping[str, ModeSpecification],
        probes: Mapping[str, Sequence[Probe]],
        path: Path,
        *,
        quantiser: str = "rtn",
    ) -> None:
        self.probes = probes
        self._model, self._bank = model, LayerBank(model, quantiser=quantiser)
        self._texts = sorted({text for mode in specification.values() for text in mode.properties.values()})
        self._signals = sorted(signals_read(specification))
        self._baseline: dict[str, list[Outputs]] = {}
        self._held: dict[tuple[str, str], NDArray[np.float64]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(path, timeout=120.0)
        self._database.execute("CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, data BLOB)")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._prefix = {
            name: hashlib.sha256(
                "\n".join([model.digest, quantiser, *self._texts, probes_to_json(part)]).encode()
            ).hexdigest()
            for name, part in probes.items()
        }

    def rows(self, config: Config, name: str, probes: Sequence[int] | None = None) -> Rows:
        """What the config does on some probes of a set, in this order; only what is not known yet is computed."""
        wanted = list(range(len(self.probes[name]))) if probes is None else list(probes)
        values = self._stored(config, name)
        missing = [probe for probe in wanted if np.isnan(values[-1, probe])]
        if missing:
            values = values.copy()
            values[:, missing] = self._computed(config, name, missing)
            key = f"{self._prefix[name]} {config.digest}"
            with self._database:
                self._database.execute("INSERT OR REPLACE INTO rows VALUES (?, ?)", (key, values.tobytes()))
            self._held[name, config.digest] = values
        texts, signals = len(self._texts), len(self._signals)
        part = values[:, wanted]
        formulas = dict(zip(self._texts, part[:texts], strict=True))
        return Rows(formulas, part[texts : texts + signals], part[texts + signals :])

    def _stored(self, config: Config, name: str) -> NDArray[np.float64]:
        """A row per formula, preserved signal and weight, a column per probe; NaN where nothing is known."""
        if (name, config.digest) not in self._held:
            key = f"{self._prefix[name]} {config.digest}"
            found = self._database.execute("SELECT data FROM rows WHERE key = ?", (key,)).fetchone()
            shape = (len(self._texts) + 2 * len(self._signals), len(self.probes[name]))
            values = np.full(shape, np.nan) if found is None else np.frombuffer(found[0]).reshape(shape)
            self._held[name, config.digest] = values
        return self._held[name, config.digest]

    def _computed(self, config: Config, name: str, probes: Sequence[int]) -> NDArray[np.float64]:
        if name not in self._baseline:
            self._baseline[name] = baseline_outputs(self._model.module, self.probes[name])
        part = [self.probes[name][i] for i in probes]
        baseline = [self._baseline[name][i] for i in probes]
        traces = traces_of(self._bank.assemble(config), part, baseline)
        robustness = [per_probe_robustness(text, traces) for text in self._texts]
        preserved = [[avgpp([trace], {signal}) for trace in traces] for signal in self._signals]
        steps = [
            [
                float(trace.answer.sum()) if signal == "factual" else float(len(trace.answer))
                for trace in traces
            ]
            for signal in self._signals
        ]
        return np.array([*robustness, *preserved, *steps], dtype=np.float64)


@dataclass(frozen=True)
class Judged:
    """A config on some probes: by mode, coverage, robustness and whether all holds."""

    satisfied: Mapping[str, int]
    probes: int
    observation: Observation


@dataclass
class Problem:
    """A space, a contract, and what evaluations cost in tokens."""

    name: str
    model: LanguageModel
    specification: Mapping[str, ModeSpecification]
    evaluations: Evaluations
    space: Space
    tokens: NDArray[np.int64] = field(init=False)
    """Tokens of each search probe."""

    def __post_init__(self) -> None:
        self.tokens = np.array([len(probe.tokens) for probe in self.evaluations.probes[SEARCH]])

    @property
    def targets(self) -> dict[str, float]:
        return {name: mode.avgpp for name, mode in self.specification.items()}

    @property
    def trial_tokens(self) -> int:
        """Tokens of one trial on all search probes."""
        return int(self.tokens.sum())

    def cost(self, config: Config) -> float:
        """The share of the dearest uniform config's proxy cost."""
        return self.space.proxy_flops(config) / self.space.proxy_flops(self.space.decode(self.space.safest))

    def judged(self, config: Config, name: str = SEARCH, probes: Sequence[int] | None = None) -> Judged:
        """The config on a set of probes, or some of it, all of them read."""
        rows = self.evaluations.rows(config, name, probes)
        return self._judged(config, rows, rows.weights.shape[1], refuted=False)

    def refuting(self, config: Config, order: Sequence[int]) -> tuple[Judged, list[int]]:
        """The config on the search probes in this order until no mode can hold any more; the probes read."""
        read = 0
        while read < len(order):
            read = min(len(order), 2 * read or FIRST_PROBES)
            rows = self.evaluations.rows(config, SEARCH, order[:read])
            judged = self._judged(config, rows, len(order), refuted=read < len(order))
            if read < len(order) and all(
                count < required(mode.coverage, len(order))
                for count, mode in zip(judged.satisfied.values(), self.specification.values(), strict=True)
            ):
                return judged, list(order[:read])
        return self.judged(config), list(order)

    def violations(self, config: Config, probes: Sequence[int]) -> NDArray[np.int64]:
        """By probe, how many modes it violates, of those read."""
        rows = self.evaluations.rows(config, SEARCH, probes)
        counts = np.zeros(len(self.tokens), dtype=np.int64)
        for mode in self.specification.values():
            counts[list(probes)] += (
                np.min([rows.formulas[text] for text in mode.properties.values()], axis=0) < 0
            )
        return counts

    def _judged(self, config: Config, rows: Rows, probes: int, *, refuted: bool) -> Judged:
        satisfied, robustness, feasible, properties = {}, {}, {}, {}
        for name, mode in self.specification.items():
            needed = required(mode.coverage, probes)
            tolerated = probes - needed
            by_property = {key: np.sort(rows.formulas[text]) for key, text in mode.properties.items()}
            joint = np.min([rows.formulas[text] for text in mode.properties.values()], axis=0)
            failed = int((joint < 0).sum())
            satisfied[name] = probes - failed
            place = min(tolerated, len(joint) - 1)
            robustness[name] = float(np.sort(joint)[place])
            properties[name] = {key: float(row[place]) for key, row in by_property.items()}
            feasible[name] = not refuted and failed <= tolerated and rows.avgpp >= mode.avgpp
        return Judged(
            satisfied,
            probes,
            Observation(
                self.space.proxy_flops(config), rows.avgpp, robustness, feasible, properties, refuted=refuted
            ),
        )


def required(coverage: float, probes: int) -> int:
    return max(1, math.ceil(coverage * probes - 1e-9))


def story_problem(shared: Path, name: str, cache: Path, menu: Sequence[Format] = MENU) -> Problem:
    """A story model with round-to-nearest formats per unit, probes from TinyStories, the default profile."""
    return problem_of(shared, shared / "models" / name, cache / f"{name}.sqlite", menu)


def problem_of(
    shared: Path,
    folder: Path,
    path: Path,
    menu: Sequence[Format],
    *,
    menus: Mapping[str, Sequence[Format]] | None = None,
    counts: Mapping[str, int] = COUNTS,
    steps: int = STEPS,
    tokens: int = TOKENS,
) -> Problem:
    """As `story_problem`, of the model in `folder`, its evaluations in the file `path`; `menus` maps a unit to another
    menu than `menu`, and `counts` has a set of probes less where none of it is wanted."""
    model = load_model(folder)
    specification = specification_of(load_profile("default"))
    source = ProbeSource("stories", str(shared / "data" / "tinystories" / "stories.jsonl"))
    context = model.shape.context_tokens
    loaded = read_probes([source], model.tokenizer, steps=steps, context_tokens=context, max_tokens=tokens)
    seen, judges = sides_of(loaded.probes)
    searched, chosen = counts[SEARCH], counts.get(SELECTION, 0)
    split = {
        SEARCH: seen[:searched],
        SELECTION: seen[searched : searched + chosen],
        FRESH: judges[: counts.get(FRESH, 0)],
    }
    if short := [part for part, count in counts.items() if len(split[part]) < count]:
        raise SystemExit(f"{source}: too few probes for the {short[0]} side")
    units: dict[str, list[str]] = {}
    for layer in model.layers:
        units.setdefault(layer.group, []).append(layer.name)
    kept = model.kept_parameters
    space = Space(
        tuple(layer for names in units.values() for layer in names),
        unit_dimensions(units, menu, menus=menus),
        lambda config: predicted_cost(model.layers, config, kept).proxy_flops,
    )
    evaluations = Evaluations(model, specification, split, path)
    return Problem(folder.name, model, specification, evaluations, space)
