"""What `toggle-edge check` found, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from toggle_runtime.records import ModeVerdict

from toggle_edge.certify import CoverageBound
from toggle_edge.config import Config
from toggle_edge.cost import PaperCost
from toggle_edge.report.cells import print_entry, print_outcome
from toggle_edge.report.series import Series, print_series, series_json
from toggle_edge.report.verdicts import coverage_json, coverage_sentence, verdict_table, verdicts_json
from toggle_edge.tightening import Tightened, as_profile


@dataclass(frozen=True)
class CheckResult:
    """One config judged on the certificate probes. AvgPP in percent; `series` is None for a property that could
    not be judged, `bound` where the mode could not; `mine` are the tightest thresholds that hold, none
    where nothing could be judged, None where they were not asked for."""

    outcome: str
    reason: str | None
    mode: str
    config: Config
    verdict: ModeVerdict
    bound: CoverageBound | None
    avgpp: float | None
    avgpp_required: float
    proxy_flops_ratio: float
    proxy_bytes: int
    paper: PaperCost
    series: Mapping[str, Series | None]
    mine: Mapping[str, Tightened] | None = None


def check_json(result: CheckResult) -> dict[str, object]:
    """The one object that `toggle-edge check --json` prints."""
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "mode": result.mode,
        "config_digest": result.config.digest,
        "verdict": result.verdict.verdict,
        "robustness": result.verdict.robustness,
        "verdicts": verdicts_json(result.verdict),
        "series": series_json(result.series),
        "coverage": coverage_json(result.verdict, result.bound),
        "avgpp": result.avgpp,
        "proxy_flops_ratio": result.proxy_flops_ratio,
        "proxy_bytes": result.proxy_bytes,
        "paper": dataclasses.asdict(result.paper),
        "mine": {name: dataclasses.asdict(each) for name, each in result.mine.items()}
        if result.mine
        else None,
    }


def print_check(result: CheckResult, console: Console) -> None:
    """For people: what was judged, the verdicts, the outcome, what to do next."""
    print_entry(console, "config", result.config.summary())
    print_entry(
        console,
        "cost",
        f"{result.proxy_flops_ratio:.2f}× fewer proxy FLOPs than fp16, {result.proxy_bytes / 1e6:.2f} MB by formula",
    )
    if result.config.sparsities:
        print_entry(
            console,
            "paper",
            f"by its formulas, which count zeros as saved: {result.paper.flops_ratio:.2f}× fewer FLOPs, "
            f"{100 * result.paper.size_reduction:.1f} % smaller",
        )
    reached = "could not be computed" if result.avgpp is None else f"{result.avgpp:.2f} %"
    print_entry(console, "AvgPP", f"{reached}, mode {result.mode} needs {result.avgpp_required:g} %")
    console.print()
    console.print(verdict_table(f"the contract, mode {result.mode}", result.verdict, {}))
    print_series(console, result.series, result.verdict)
    print_entry(console, "coverage", coverage_sentence(result.verdict))
    if result.bound is not None:
        print_entry(console, "bound", result.bound.statement)
    if result.mine is not None and not result.mine:
        print_entry(console, "mine", "no thresholds, since not every probe could be judged")
    elif result.mine:
        print_entry(
            console, "mine", f"the tightest thresholds with which {result.mode} holds, for a profile:"
        )
        console.print()
        console.print(as_profile(result.mine), highlight=False, markup=False, soft_wrap=True)
    print_outcome(console, result.outcome, result.reason)
