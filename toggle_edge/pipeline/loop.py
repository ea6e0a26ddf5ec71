"""The stages of the loop: prepare, search, export, measure, re-rank. Each is one function on frozen values."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from toggle_runtime.canary import write_canary
from toggle_runtime.records import (
    ModeSpecification,
)
from toggle_runtime.reduction import Limits, reduce_baseline
from toggle_runtime.reduction_files import write_reduced
from toggle_runtime.signals import SignalsError
from toggle_runtime.stl import parse, signals_of
from toggle_runtime.verdicts import signals_read

from toggle_edge import __version__
from toggle_edge.bundle import BASELINE, CANARY, PROBES, Bundle, build_bundle
from toggle_edge.cache import baselines_folder, cache_folder
from toggle_edge.compress.bank import LayerBank
from toggle_edge.compress.calibration import Calibration, gram_bytes
from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import Cost, PaperCost, paper_cost, predicted_cost, proxy_flops_ratio
from toggle_edge.errors import ProbeError
from toggle_edge.evaluate import Evaluator
from toggle_edge.export import Skeleton, exporter_for, narrowed, narrowed_shape
from toggle_edge.export.canary import canary_of
from toggle_edge.export.parity import check_parity
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.placement import chosen_device, use_threads
from toggle_edge.probes import ProbeSplit, probes_to_json, read_probes, split_probes
from toggle_edge.profiles import Profile
from toggle_edge.report.progress import Reporter
from toggle_edge.search.space import storage_bits
from toggle_edge.signing import SigningKey
from toggle_edge.sources import ProbeSource
from toggle_edge.specification import specification_of
from toggle_edge.store import StudyIdentity
from toggle_edge.targets import menu_of, target_named

DEFAULT_TARGET = "onnx-cpu"


@dataclass(frozen=True)
class Prepared:
    """A model under a contract, with its baseline: what every later stage starts from.

    `evaluator` judges on the search probes, `certifier` on the certificate probes, which the search never sees.
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

    def menu(self, role: str = "") -> tuple[Format, ...]:
        """The formats that the profile asks for and the target has, by ascending storage bits."""
        asked = [Format.parse(text) for text in self.profile.formats]
        return tuple(sorted(menu_of(target_named(self.target), asked, role), key=storage_bits))

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
    probes = split_probes(loaded.probes, search=counts.search, certificate=counts.certificate)
    _check_answers(specification, probes)
    near = f"; {probes.near_duplicates:,} near-duplicates dropped" if probes.near_duplicates else ""
    report("texts", 1, 1, f"{loaded.summary}{near}")
    bank = LayerBank(
        model,
        quantiser=profile.quantiser,
        pruner=profile.pruner,
        # Of the search's texts: the certificate's must stay unseen.
        calibration=Calibration(
            model, [probe.tokens for probe in probes.search], gram_bytes=gram_bytes(model.streamed)
        ),
        folder=cache_folder() / "layers",
    )
    report("baseline", 1, 3, "search probes")
    kept = baselines_folder()
    evaluator = Evaluator(model, bank, probes.search, specification, folder=kept, target=target)
    report("baseline", 2, 3, "certificate probes")
    certifier = Evaluator(model, bank, probes.certificate, specification, folder=kept, target=target)
    report("baseline", 3, 3, f"{counts.search} search + {counts.certificate} certificate probes")
    return Prepared(model, profile, specification, tuple(sources), probes, bank, evaluator, certifier, target)


def _check_answers(specification: Mapping[str, ModeSpecification], probes: ProbeSplit) -> None:
    """Refuse before hours of search what no candidate could satisfy: `factual` without an answer is UNSET."""
    both = [*probes.search, *probes.certificate]
    silent = [probe for probe in both if not probe.answer_steps]
    reading = [
        name
        for mode in specification.values()
        for name, formula in mode.properties.items()
        if "factual" in signals_of(parse(formula))
    ]
    if silent and reading:
        raise ProbeError(
            f"probes: property {reading[0]} reads factual, but {len(silent)} of {len(both)} probes have no answer; the "
            f"first is {silent[0].origin}. Use --probes with answers (lambada, stories, truthfulqa, or jsonl and csv "
            "that give them), or a profile without that property"
        )


def identity_of(prepared: Prepared, seed: int) -> StudyIdentity:
    """What a search over `prepared` is identified by in the store."""
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
    )


@dataclass(frozen=True)
class Exported:
    """A config as a bundle on the host, the largest logit difference to what was searched, and what its artifact was
    predicted to weigh in bytes."""

    config: Config
    bundle: Bundle
    parity: float
    predicted_bytes: int


def write_probes(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Write what bundles carry beside the artifact: certificate probes with their reduced baseline, the tokenizer.

    Raises ProbeError when a probe's baseline is larger than the profile allows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probes, baseline = folder / "probes.json", folder / "baseline.npz"
    probes.write_text(probes_to_json(prepared.probes.certificate), encoding="utf-8")
    counts, wanted = prepared.profile.probes, signals_read(prepared.specification)
    limits = Limits(
        distribution_ids=counts.distribution_ids,
        attention_ids=counts.attention_ids,
        probe_bytes=counts.probe_bytes,
    )
    pairs = zip(prepared.probes.certificate, prepared.certifier.baseline, strict=True)
    try:
        reduced = [
            reduce_baseline(outputs, np.array(probe.continuation), probe.prompt_tokens, wanted, limits)
            for probe, outputs in pairs
        ]
    except SignalsError as exc:
        raise ProbeError(f"probes: their baseline cannot be reduced for the device: {exc}") from exc
    write_reduced(baseline, reduced)
    extra = {PROBES: probes, BASELINE: baseline}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (prepared.model.folder / name).is_file():
            extra[f"tokenizer/{name}"] = prepared.model.folder / name
    return extra


def export(
    prepared: Prepared,
    config: Config,
    skeleton: Skeleton,
    extra: Mapping[str, Path],
    folder: Path,
    *,
    key: SigningKey | None,
) -> Exported:
    """Export one config, check its parity with the searched weights, and bundle it into `folder`, signed by `key`.

    An existing `folder` is replaced. Raises ParityError when the artifact is not what was searched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    layers, kept = prepared.bank.compressed(config), prepared.bank.kept(config.structure)
    shape = prepared.model.shape
    if kept is not None:
        skeleton = narrowed(skeleton, prepared.model.anatomy, config.structure)
        shape = narrowed_shape(shape, kept)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        artifact = exporter_for(prepared.target).export(skeleton, layers, Path(scratch) / "artifact")
        probe = prepared.probes.certificate[0]
        candidate = prepared.bank.assemble(config)
        parity = check_parity(artifact, shape, candidate, probe.tokens, prompt_tokens=probe.prompt_tokens)
        canary = canary_of(
            candidate, probe.tokens, vocabulary=shape.vocabulary, context_tokens=shape.context_tokens
        )
        write_canary(Path(scratch) / "canary.npz", canary)
        built = build_bundle(
            Path(scratch) / "bundle",
            artifact,
            config=config,
            shape=shape,
            specification=prepared.specification,
            default_mode=prepared.profile.default_mode,
            extra={**extra, CANARY: Path(scratch) / "canary.npz"},
            key=key,
            environment={
                "toggle_edge": __version__,
                "exporter": prepared.target,
                "model": prepared.model.digest,
            },
        )
        if folder.exists():
            shutil.rmtree(folder)
        built.folder.rename(folder)
    predicted = exporter_for(prepared.target).predicted_bytes(
        skeleton, prepared.model.remaining(config.structure), config
    )
    return Exported(config, dataclasses.replace(built, folder=folder), parity, predicted)
