"""`toggle-edge check`: one config of a model against the contract, on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toggle_runtime.records import ERROR, FAIL, MARGINAL, PASS, SATISFIED, UNSET, ModeVerdict
from toggle_runtime.signals import Trace
from toggle_runtime.stl import Always, Formula, Not, parse, robustness_series

from toggle_edge.certify import coverage_bound
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import damaged_weights
from toggle_edge.pipeline.inputs import check_config_text, config_from, prepared_for
from toggle_edge.pipeline.preparing import Prepared
from toggle_edge.probes import excerpt
from toggle_edge.report.check import CheckResult
from toggle_edge.report.progress import Reporter
from toggle_edge.report.series import Series
from toggle_edge.strict_tables import nearest
from toggle_edge.tightening import tightened

EXCERPT_TOKENS = 10
"""Tokens shown on either side of the one that decides."""


@dataclass(frozen=True)
class CheckOptions:
    """What `toggle-edge check` may be told. `config` is a file's name or a format; `mode` None is the profile's;
    `relax` weakens every threshold by that share; `mine` asks for the tightest ones that hold; `quantiser` and
    `pruner` None are the profile's."""

    model: Path
    config: str
    profile: str = "default"
    mode: str | None = None
    probes: tuple[str, ...] = ()
    relax: float = 0.0
    mine: bool = False
    quantiser: str | None = None
    pruner: str | None = None


def run_check(options: CheckOptions, report: Reporter) -> CheckResult:
    """Judge one config on the certificate probes. Raises InputError for what cannot be used."""
    check_config_text(options.config)
    prepared = prepared_for(
        options.model,
        options.profile,
        options.probes,
        report,
        relax=options.relax,
        quantiser=options.quantiser,
        pruner=options.pruner,
    )
    mode = known_mode(options.mode or prepared.profile.default_mode, prepared.specification)
    config = config_from(options.config, prepared.model)
    report("check", 0, 1, config.summary())
    traces = prepared.certifier.traces(config)
    evaluation = prepared.certifier.judged(config, traces)
    report("check", 1, 1, config.summary())
    verdict, required = evaluation.modes[mode], prepared.specification[mode].avgpp
    outcome, reason = _outcome(verdict, evaluation.avgpp, required)
    damaged = damaged_weights(prepared.model) if verdict.verdict == UNSET else ()
    if damaged:
        reason = f"{reason}; the model's own weights are not finite in {', '.join(damaged[:3])}"
    mine = None
    if options.mine:
        mine = (
            {}
            if verdict.verdict == UNSET
            else tightened(prepared.specification[mode], prepared.profile.modes[mode].relax, traces)
        )
    return CheckResult(
        outcome=outcome,
        reason=reason,
        mode=mode,
        config=config,
        verdict=verdict,
        bound=None if verdict.verdict == UNSET else coverage_bound(mode, verdict.coverage),
        avgpp=evaluation.avgpp,
        avgpp_required=required,
        proxy_flops_ratio=prepared.flops_ratio(config),
        proxy_bytes=evaluation.cost.proxy_bytes,
        paper=prepared.paper_cost(config),
        series=_series(prepared, verdict, prepared.specification[mode].properties, traces),
        mine=mine,
    )


def _series(
    prepared: Prepared, judged: ModeVerdict, properties: Mapping[str, str], traces: Sequence[Trace]
) -> dict[str, Series | None]:
    """By property, robustness over time at the place that decides it; None where nothing does."""
    series: dict[str, Series | None] = {}
    for verdict in judged.verdicts:
        argmin = verdict.argmin
        if argmin is None:
            series[verdict.property] = None
            continue
        formula = ranged_over(parse(properties[verdict.property]))
        values = robustness_series(formula, traces[argmin.probe].signals)
        probe = prepared.probes.certificate[argmin.probe]
        words = excerpt(prepared.model.tokenizer, probe, argmin.step, tokens=EXCERPT_TOKENS)
        series[verdict.property] = Series(argmin, str(formula), tuple(map(float, values)), words)
    return series


def ranged_over(formula: Formula) -> Formula:
    """What an unbounded `always`, or `eventually`, ranges over: its least, or greatest, value is the robustness.

    The formula itself where it is neither. The robustness of an `always` says little over time: it changes only
    where the worst step is passed.
    """
    inner, negated = formula, False
    while isinstance(inner, Not):
        inner, negated = inner.operand, not negated
    if not isinstance(inner, Always) or inner.interval is not None:
        return formula
    if not negated:
        return inner.operand
    return inner.operand.operand if isinstance(inner.operand, Not) else Not(inner.operand)


def known_mode(mode: str, specification: Mapping[str, object]) -> str:
    """The mode, if the specification has it. Raises ConfigError naming the nearest and the known ones."""
    if mode not in specification:
        raise ConfigError(
            f"mode: expected one of {', '.join(specification)}, got {mode!r}{nearest(mode, specification)}"
        )
    return mode


def _outcome(verdict: ModeVerdict, avgpp: float | None, required: float) -> tuple[str, str | None]:
    if verdict.verdict == UNSET:
        reasons = [f"{v.property}: {v.reason}" for v in verdict.verdicts if v.reason]
        return ERROR, f"could not be judged: {'; '.join(reasons) or verdict.reason or 'no reason given'}"
    coverage = verdict.coverage
    if verdict.verdict not in (SATISFIED, MARGINAL):
        return FAIL, f"{coverage.satisfied} of {coverage.probes} probes satisfy it, {coverage.required} must"
    if avgpp is None:
        return (
            ERROR,
            "AvgPP could not be computed, although every property could be judged",
        )
    if avgpp < required:
        return FAIL, f"AvgPP is {avgpp:.2f}, the mode needs {required:g}"
    return PASS, None
