"""What every stage starts from: a model under a contract, with its probes, its baseline and its evaluators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from toggle_runtime.records import (
    ModeSpecification,
)
from toggle_runtime.stl import parse, signals_of

from toggle_edge.cache import baselines_folder, cache_folder
from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration, gram_bytes
from toggle_edge.config import FP16, Config
from toggle_edge.cost import Cost, PaperCost, paper_cost, predicted_cost, proxy_flops_ratio
from toggle_edge.errors import ProbeError
from toggle_edge.evaluate import Evaluator
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.placement import chosen_device, use_threads
from toggle_edge.probes import Probe, ProbeSplit, read_probes, split_probes
from toggle_edge.profiles import ProbeCounts, Profile
from toggle_edge.report.progress import Reporter
from toggle_edge.sources import ProbeSource
from toggle_edge.specification import specification_of
from toggle_edge.store import StudyIdentity
from toggle_edge.targets import target_named

DEFAULT_TARGET = "onnx-cpu"


@dataclass(frozen=True)
class Prepared:
    """A model under a contract, with its baseline: what every later stage starts from.

    `evaluator` judges on the search probes, `certifier` on the certificate probes, which the search never sees;
    `selector` on the selection probes, whose baseline is computed when it is first asked for.
    """

    model: LanguageModel
    profile: Profile
    specification: Mapping[str, ModeSpecification]
    sources: tuple[ProbeSource, ...]
    probes: ProbeSplit
    bank: LayerBank
    evaluator: Evaluator
    certifier: Evaluator
    target: str = DEFAULT_TARGET

    @cached_property
    def selector(self) -> Evaluator:
        return Evaluator(
            self.model,
            self.bank,
            self.probes.selection,
            self.specification,
            folder=baselines_folder(),
            target=self.target,
        )

    def cost(self, config: Config) -> Cost:
        """What `config` costs on the target, by formula."""
        layers = self.model.remaining(config.structure)
        kept = self.model.remaining_parameters(config.structure)
        return predicted_cost(layers, config, kept, target=self.target)

    def flops_ratio(self, config: Config) -> float:
        """Proxy FLOPs of the baseline over those of `config`."""
        layers = self.model.remaining(config.structure)
        return proxy_flops_ratio(layers, config, whole=self.model.layers, target=self.target)

    def paper_cost(self, config: Config) -> PaperCost:
        """What `config` costs by TOGGLE's own formulas, beside the whole baseline."""
        return paper_cost(
            self.model.remaining(config.structure),
            config,
            self.model.remaining_parameters(config.structure),
            whole=self.model.layers,
            whole_kept_parameters=self.model.kept_parameters,
        )

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.model.layers)

    @property
    def baseline(self) -> Config:
        return Config.uniform(self.layers, FP16)


def prepare(
    model_folder: Path,
    profile: Profile,
    sources: Sequence[ProbeSource],
    report: Reporter,
    *,
    target: str = DEFAULT_TARGET,
) -> Prepared:
    """Load the model, read and split the probes, compute the baseline's outputs.

    Raises ProbeError for probes that cannot be read or are too few, or that a property needs an answer of.
    """
    specification = specification_of(profile)
    report("baseline", 0, 3, "loading the model")
    model = load_model(model_folder, device=chosen_device())
    threads = use_threads(sum(layer.weights for layer in model.layers))
    report("model", 1, 1, f"{model.placement}; {threads} thread{'s' if threads > 1 else ''}")
    counts = profile.probes
    loaded = read_probes(
        sources,
        model.tokenizer,
        steps=counts.min_steps,
        context_tokens=model.shape.context_tokens,
        max_tokens=counts.max_tokens,
    )
    probes = split_probes(
        loaded.probes, search=counts.search, certificate=counts.certificate, selection=counts.selection
    )
    _check_answers(specification, probes)
    near = f"; {probes.near_duplicates:,} near-duplicates dropped" if probes.near_duplicates else ""
    report("texts", 1, 1, f"{loaded.summary}{near}")
    bank = bank_of(model, probes.search, quantiser=profile.quantiser, pruner=profile.pruner, target=target)
    report("baseline", 1, 3, "search probes")
    kept = baselines_folder()
    evaluator = Evaluator(model, bank, probes.search, specification, folder=kept, target=target)
    report("baseline", 2, 3, "certificate probes")
    certifier = Evaluator(model, bank, probes.certificate, specification, folder=kept, target=target)
    chosen = f"{len(probes.selection)}{_of_wanted(probes, counts)} selection"
    report("baseline", 3, 3, f"{counts.search} search + {chosen} + {counts.certificate} certificate probes")
    return Prepared(model, profile, specification, tuple(sources), probes, bank, evaluator, certifier, target)


def _of_wanted(probes: ProbeSplit, counts: ProbeCounts) -> str:
    return "" if len(probes.selection) == counts.selection else f" of {counts.selection}"


def bank_of(
    model: LanguageModel, probes: Sequence[Probe], *, quantiser: str, pruner: str, target: str
) -> LayerBank:
    """The model's layers, compressed by what they see on `probes`: the search's, for the certificate's stay unseen.
    Their scales are such as the target's kernels take."""
    return LayerBank(
        model,
        quantiser=quantiser,
        pruner=pruner,
        calibration=Calibration(
            model, [probe.tokens for probe in probes], gram_bytes=gram_bytes(model.streamed)
        ),
        folder=cache_folder() / "layers",
        narrow_scales=target_named(target).narrow_scales,
    )


def _check_answers(specification: Mapping[str, ModeSpecification], probes: ProbeSplit) -> None:
    """Refuse before hours of search what no candidate could satisfy: `factual` without an answer is UNSET."""
    every = [*probes.search, *probes.certificate, *probes.selection]
    silent = [probe for probe in every if not probe.answer_steps]
    reading = [
        name
        for mode in specification.values()
        for name, formula in mode.properties.items()
        if "factual" in signals_of(parse(formula))
    ]
    if silent and reading:
        raise ProbeError(
            f"probes: property {reading[0]} reads factual, but {len(silent)} of {len(every)} probes have no answer; "
            f"the first is {silent[0].origin}. Use --probes with answers (lambada, stories, truthfulqa, or jsonl and "
            "csv that give them), or a profile without that property"
        )


def identity_of(prepared: Prepared, seed: int, batch: int = 1) -> StudyIdentity:
    """What a search over `prepared`, in batches of so many trials, is identified by in the store."""
    return StudyIdentity(
        model=prepared.model.folder.name,
        model_digest=prepared.model.digest,
        model_folder=str(prepared.model.folder.absolute()),
        profile=prepared.profile.name,
        profile_path=str(prepared.profile.path),
        profile_digest=prepared.profile.digest,
        probes_path="\n".join(str(source.absolute) for source in prepared.sources),
        probes_digest=prepared.probes.digest,
        target=prepared.target,
        seed=seed,
        quantiser=prepared.profile.quantiser,
        pruner=prepared.profile.pruner,
        profile_content=prepared.profile.content,
        batch=batch,
    )
