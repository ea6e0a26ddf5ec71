"""The stages of the loop: prepare, search, export, measure, re-rank. Each is one function on frozen values."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from toggle_runtime.records import (
    ERROR,
    FAIL,
    MARGINAL,
    PASS,
    SATISFIED,
    VIOLATED,
    Measurement,
    ModeSpecification,
    ModeVerdict,
    RunRecord,
)
from toggle_runtime.signals import SignalsError, Trace, read_traces, write_outputs

from toggle_edge import __version__
from toggle_edge.bundle import Bundle, build_bundle
from toggle_edge.certify import Certificate, certify
from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.errors import CertificationError
from toggle_edge.evaluate import Evaluation, Evaluator
from toggle_edge.export import Skeleton, exporter_for
from toggle_edge.export.parity import check_parity
from toggle_edge.fleet.measurements import measured
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.probes import Probe, ProbeSplit, load_probes, probes_to_json, split_probes
from toggle_edge.profiles import Profile
from toggle_edge.report.progress import Reporter
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.space import Space, storage_bits
from toggle_edge.search.study import Study
from toggle_edge.search.trial import Ledger, Observation, Trial
from toggle_edge.specification import specification_of

TARGET = "onnx-cpu"
SENSITIVITY_PROBES = 16
"""Probes for the one-layer-at-a-time losses: enough to order the layers, a quarter of the cost of all."""


@dataclass(frozen=True)
class Prepared:
    """A model under a contract, with its baseline: what every later stage starts from.

    `evaluator` judges on the search probes, `certifier` on the certificate probes, which the search never sees.
    """

    model: LanguageModel
    profile: Profile
    specification: Mapping[str, ModeSpecification]
    probes: ProbeSplit
    bank: LayerBank
    evaluator: Evaluator
    certifier: Evaluator

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.model.layers)

    @property
    def baseline(self) -> Config:
        return Config.uniform(self.layers, FP16)


def prepare(model_folder: Path, profile: Profile, probe_file: Path, report: Reporter) -> Prepared:
    """Load the model, split the probes, compute the baseline's outputs."""
    specification = specification_of(profile)
    report("baseline", 0, 3, "loading the model")
    model = load_model(model_folder)
    counts = profile.probes
    probes = split_probes(
        load_probes(
            probe_file, model.tokenizer, steps=counts.min_steps, context_tokens=model.shape.context_tokens
        ),
        search=counts.search,
        certificate=counts.certificate,
    )
    bank = LayerBank(model)
    report("baseline", 1, 3, "search probes")
    evaluator = Evaluator(model, bank, probes.search, specification)
    report("baseline", 2, 3, "certificate probes")
    certifier = Evaluator(model, bank, probes.certificate, specification)
    report("baseline", 3, 3, f"{counts.search} search + {counts.certificate} certificate probes")
    return Prepared(model, profile, specification, probes, bank, evaluator, certifier)


def sensitivity_of(prepared: Prepared, report: Reporter) -> dict[str, float]:
    """AvgPP lost per weight when one layer alone goes to the menu's lowest format, all others untouched."""
    lowest = min((Format.parse(text) for text in prepared.profile.formats), key=storage_bits)
    probes = prepared.probes.search[:SENSITIVITY_PROBES]
    evaluator = Evaluator(prepared.model, prepared.bank, probes, prepared.specification)
    losses = {}
    for index, layer in enumerate(prepared.model.layers):
        formats = {**dict(prepared.baseline), layer.name: lowest}
        avgpp = evaluator.evaluate(Config.of(formats)).avgpp
        # What could not be computed is as sensitive as can be: such a layer is lowered last.
        losses[layer.name] = (100.0 if avgpp is None else 100.0 - avgpp) / layer.weights
        report("sensitivity", index + 1, len(prepared.layers), f"{lowest} in one layer at a time")
    return losses


def search(
    prepared: Prepared, ledger: Ledger, *, seed: int, max_trials: int, report: Reporter
) -> tuple[Trial, ...]:
    """Find configs that keep the contract at the least proxy cost."""
    menu = tuple(sorted((Format.parse(text) for text in prepared.profile.formats), key=storage_bits))
    layers, kept = prepared.model.layers, prepared.model.kept_parameters
    space = Space(prepared.layers, menu, lambda config: predicted_cost(layers, config, kept).proxy_flops)
    done = len(ledger.trials())
    # The initial design needs the sensitivities; a resumed study must begin with the same one.
    design = initial_design(space, seed=seed, sensitivity=sensitivity_of(prepared, report))
    targets = {name: mode.avgpp for name, mode in prepared.specification.items()}
    study = Study(space, ledger, seed=seed, max_trials=max_trials, modes=targets, initial=design)
    feasible = sum(any(trial.observation.feasible.values()) for trial in ledger.trials())
    report("search", done, max_trials, f"{feasible} feasible")

    def evaluate(config: Config) -> tuple[Observation, Mapping[str, object]]:
        return _observed(prepared, prepared.evaluator.evaluate(config))

    def on_trial(trial: Trial) -> None:
        nonlocal feasible
        feasible += any(trial.observation.feasible.values())
        report("search", trial.index + 1, max_trials, f"{feasible} feasible")

    return study.run(evaluate, on_trial)


def _observed(prepared: Prepared, evaluation: Evaluation) -> tuple[Observation, Mapping[str, object]]:
    observation = Observation(
        proxy_flops=evaluation.cost.proxy_flops,
        avgpp=evaluation.avgpp,
        robustness={name: verdict.robustness for name, verdict in evaluation.modes.items()},
        feasible={name: evaluation.holds(name, prepared.specification) for name in evaluation.modes},
    )
    verdicts = {name: dataclasses.asdict(verdict) for name, verdict in evaluation.modes.items()}
    return observation, {"modes": verdicts, "proxy_bytes": evaluation.cost.proxy_bytes}


@dataclass(frozen=True)
class Exported:
    """A config as a bundle on the host, and the largest logit difference to what was searched."""

    config: Config
    bundle: Bundle
    parity: float


def write_probes(prepared: Prepared, folder: Path) -> dict[str, Path]:
    """Write what bundles carry beside the artifact: certificate probes with their baseline, and the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    probes, baseline = folder / "probes.json", folder / "baseline.npz"
    probes.write_text(probes_to_json(prepared.probes.certificate), encoding="utf-8")
    write_outputs(baseline, prepared.certifier.baseline)
    extra = {"probes/probes.json": probes, "probes/baseline.npz": baseline}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (prepared.model.folder / name).is_file():
            extra[f"tokenizer/{name}"] = prepared.model.folder / name
    return extra


def export(
    prepared: Prepared, config: Config, skeleton: Skeleton, extra: Mapping[str, Path], folder: Path
) -> Exported:
    """Export one config, check its parity with the searched weights, and bundle it into `folder`.

    An existing `folder` is replaced. Raises ParityError when the artifact is not what was searched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    layers = prepared.bank.compressed(config)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=folder.parent) as scratch:
        artifact = exporter_for(TARGET)(skeleton, layers, Path(scratch) / "artifact")
        probe = prepared.probes.certificate[0]
        parity = check_parity(
            artifact,
            prepared.model.shape,
            prepared.bank.assemble(config),
            probe.tokens,
            prompt_tokens=probe.prompt_tokens,
        )
        built = build_bundle(
            Path(scratch) / "bundle",
            artifact,
            config=config,
            shape=prepared.model.shape,
            specification=prepared.specification,
            default_mode=prepared.profile.default_mode,
            extra=extra,
            environment={"toggle_edge": __version__, "exporter": TARGET, "model": prepared.model.digest},
        )
        if folder.exists():
            shutil.rmtree(folder)
        built.folder.rename(folder)
    return Exported(config, dataclasses.replace(built, folder=folder), parity)


@dataclass(frozen=True)
class Judged:
    """A run that came home: the device's claim, its measurements, and what RTAMT says of its traces."""

    record: RunRecord
    measured: Mapping[str, Measurement]
    modes: Mapping[str, ModeVerdict]
    certificate: Certificate | None
    outcome: str
    reason: str | None

    def shortfall(
        self, mode: str, specification: Mapping[str, ModeSpecification], host: Mapping[str, ModeVerdict]
    ) -> str | None:
        """Why the candidate may not be selected for `mode`; None when it may.

        It may when it is certified, SATISFIED or MARGINAL on the device, and at the mode's AvgPP target there.
        `host` is the host's judgement on the same probes: it tells whether the probes or the kernels are to blame.
        """
        if mode not in self.modes:
            return f"the run ended with {self.outcome}"
        if self.certificate is None or not self.certificate.certified:
            return "its verdict was not certified"
        verdict, target = self.modes[mode], specification[mode].avgpp
        if verdict.verdict not in (SATISFIED, MARGINAL):
            coverage = verdict.coverage
            blame = (
                "the host says the same on these probes, which the search did not see"
                if host[mode].verdict == verdict.verdict
                else f"the host says {host[mode].verdict}, so it is this device's kernels"
            )
            return (
                f"{verdict.verdict}: {coverage.satisfied} of {coverage.probes} certificate probes satisfy {mode}, "
                f"it needs {coverage.required}; {blame}"
            )
        if verdict.avgpp is None or verdict.avgpp < target:
            reached = "unknown" if verdict.avgpp is None else f"{verdict.avgpp:.2f}"
            return f"AvgPP is {reached}, {mode} needs {target:g}"
        return None


def judge_run(
    record: RunRecord, traces: Path | None, bundle: Bundle, prepared: Prepared, *, candidates: int
) -> Judged:
    """Certify a run's claim from its own traces. A disagreement is an ERROR, whatever the device said."""
    summary = measured(record)
    if record.outcome not in (PASS, FAIL):
        return Judged(record, summary, {}, None, record.outcome, record.reason)
    if record.bundle != bundle.digest:
        reason = f"expected the record of bundle {bundle.digest[:12]}, got one of {record.bundle[:12]}"
        return Judged(record, summary, {}, None, ERROR, reason)
    if traces is None:
        reason = f"the device says {record.outcome} but sent no traces, so nothing can be certified"
        return Judged(record, summary, {}, None, ERROR, reason)
    try:
        run, repeated = read_traces(traces)
        for part in (run, repeated):
            require_same_probes(part, prepared.probes.certificate)
        certificate = certify(
            record.modes,
            bundle.manifest.specification,
            run,
            repeated,
            record.noise_floor,
            candidates=candidates,
        )
    except (SignalsError, CertificationError) as exc:
        return Judged(record, summary, {}, None, ERROR, f"the traces cannot be certified: {exc}")
    modes = {verdict.mode: verdict for verdict in record.modes}
    if not certificate.certified:
        reason = f"device and RTAMT disagree: {certificate.disagreements[0]}"
        return Judged(record, summary, modes, certificate, ERROR, reason)
    implied = implied_outcome(modes[bundle.manifest.default_mode])
    if implied != record.outcome:
        reason = f"the device says {record.outcome}, its certified verdict means {implied}"
        return Judged(record, summary, modes, certificate, ERROR, reason)
    return Judged(record, summary, modes, certificate, implied, record.reason)


def implied_outcome(judged: ModeVerdict) -> str:
    """The outcome that a verdict of the default mode stands for. UNSET is an ERROR: nothing was decided."""
    if judged.verdict in (SATISFIED, MARGINAL):
        return PASS
    return FAIL if judged.verdict == VIOLATED else ERROR


def require_same_probes(traces: Sequence[Trace], probes: Sequence[Probe]) -> None:
    """Raises CertificationError unless the traces are of exactly these probes, by number, steps and answer steps.

    A device that left out a hard probe, or moved an answer, would otherwise be judged on easier ones.
    """
    if len(traces) != len(probes):
        raise CertificationError(f"expected traces of {len(probes)} certificate probes, got {len(traces)}")
    for index, (trace, probe) in enumerate(zip(traces, probes, strict=True)):
        answer_steps = tuple(int(step) for step in np.flatnonzero(trace.answer))
        if len(trace.answer) != probe.steps or answer_steps != probe.answer_steps:
            raise CertificationError(
                f"probe {index}: expected {probe.steps} steps with the answer at {probe.answer_steps}, "
                f"got {len(trace.answer)} steps with the answer at {answer_steps}"
            )
