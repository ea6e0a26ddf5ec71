"""What `toggle-edge search` found, and how it is shown."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import ModeVerdict

from toggle_edge.certify import CoverageBound
from toggle_edge.config import Config
from toggle_edge.cost import PaperCost
from toggle_edge.report.cells import STYLES, TITLE, number, print_entry, print_outcome
from toggle_edge.report.loop import TrialRow
from toggle_edge.report.verdicts import coverage_json, verdicts_json
from toggle_edge.targets import PAPER


@dataclass(frozen=True)
class Selection:
    """How a chosen trial did on the selection probes read, and the chance to hold on the certificate's; `confirmed`
    where that is enough. No `probes` where there were none."""

    satisfied: int
    probes: int
    chance: float
    confirmed: bool


@dataclass(frozen=True)
class Selected:
    """What a mode selects: the trial, and the host's judgement of its config on the certificate probes.

    `holds` says whether the mode's coverage and AvgPP (percent) are reached there, too; `paper` has the figures that
    TOGGLE's table prints. Beside it, of the configs with one format everywhere, the cheapest that is feasible in the
    mode and the one nearest in proxy cost.
    """

    trial: TrialRow
    config: Config
    config_file: str
    proxy_bytes: int
    paper: PaperCost
    verdict: ModeVerdict
    bound: CoverageBound
    avgpp: float | None
    holds: bool
    selection: Selection
    cheapest_uniform: TrialRow | None
    uniform_of_size: TrialRow | None


@dataclass(frozen=True)
class SearchResult:
    """One search. A mode without a feasible trial selects None."""

    outcome: str
    reason: str | None
    study: str
    target: str
    default_mode: str
    trials: tuple[TrialRow, ...]
    cheapest_uniform: TrialRow | None
    selected: Mapping[str, Selected | None]
    seconds: float


def search_json(result: SearchResult) -> dict[str, object]:
    """The one object that `toggle-edge search --json` prints."""
    return {
        "outcome": result.outcome,
        "reason": result.reason,
        "study": result.study,
        "target": result.target,
        "mode": result.default_mode,
        "selected": {mode: _selected_json(chosen) for mode, chosen in result.selected.items()},
        "uniform": {"cheapest_feasible": _row(result.cheapest_uniform)},
        "trials": [dataclasses.asdict(trial) for trial in result.trials],
        "seconds": round(result.seconds, 1),
    }


def print_search(result: SearchResult, console: Console) -> None:
    """For people: what each mode selects, beside the best uniform config, and what to do next."""
    feasible = sum(any(trial.feasible.values()) for trial in result.trials)
    print_entry(
        console, "study", f"{result.study}: {len(result.trials)} trials, {feasible} feasible in some mode"
    )
    console.print()
    console.print(_selection_table(result))
    if result.target == PAPER:
        console.print(_paper_table(result))
    for mode, selected in result.selected.items():
        if selected is not None:
            print_entry(console, "uniform", f"{mode}: {_beside(selected, mode)}")
        if selected is not None and selected.config.structure:
            print_entry(console, "structure", f"{mode}: {selected.config.structure.summary()}")
    chosen = result.selected[result.default_mode]
    if chosen is not None:
        print_entry(console, "bound", chosen.bound.statement)
    print_outcome(console, result.outcome, result.reason)
    if chosen is not None and result.target == PAPER:
        print_entry(console, "next", f"toggle-edge check MODEL --config {chosen.config_file}")
    elif chosen is not None:
        print_entry(
            console, "next", f"toggle-edge export {result.study} --mode {result.default_mode} -o FOLDER"
        )


def _beside(chosen: Selected, mode: str) -> str:
    """What one format everywhere would do, in words."""
    same, cheapest = chosen.uniform_of_size, chosen.cheapest_uniform
    said = []
    if same is not None:
        verdict = "feasible" if same.feasible[mode] else "not feasible"
        said.append(f"{same.formats} is nearest in cost ({same.proxy_flops_ratio:.2f}×) and {verdict}")
    if cheapest is None:
        said.append("no config with one format everywhere is feasible")
    else:
        share = cheapest.proxy_flops_ratio / chosen.trial.proxy_flops_ratio
        said.append(
            f"the cheapest feasible is {cheapest.formats} ({cheapest.proxy_flops_ratio:.2f}×): trial "
            f"{chosen.trial.index} costs {share:.2f} of it"
        )
    return "; ".join(said)


def _chosen_on(selection: Selection) -> str:
    if not selection.probes:
        return "no probes: unconfirmed"
    unconfirmed = "" if selection.confirmed else ", unconfirmed"
    return f"{selection.satisfied} of {selection.probes}, {100 * selection.chance:.0f} %{unconfirmed}"


def _selection_table(result: SearchResult) -> Table:
    title = "what each mode selects; the percentage is the chance to hold on fresh probes"
    table = Table(box=SIMPLE_HEAD, title=title, **TITLE)
    for heading in ("mode", "trial", "layers at\n2/4/8/16 bit"):
        table.add_column(heading, no_wrap=True)
    for heading in ("proxy", "AvgPP"):
        table.add_column(heading, no_wrap=True, justify="right")
    table.add_column("on selection probes")
    table.add_column("on fresh probes")
    for mode, chosen in result.selected.items():
        if chosen is None:
            table.add_row(mode, "none", "", "", "", "", "no trial is feasible")
            continue
        coverage = chosen.verdict.coverage
        short = "" if chosen.holds else f", needs {coverage.required}"
        counts = Counter(fmt.bits for _, fmt in chosen.config)
        table.add_row(
            mode,
            str(chosen.trial.index),
            "/".join(str(counts[bits]) for bits in (2, 4, 8, 16)),
            f"{chosen.trial.proxy_flops_ratio:.2f}×",
            number(chosen.avgpp, 2),
            _chosen_on(chosen.selection),
            Text(
                f"{chosen.verdict.verdict} {coverage.satisfied} of {coverage.probes}{short}",
                style=STYLES[chosen.verdict.verdict],
            ),
        )
    return table


def _paper_table(result: SearchResult) -> Table:
    title = "as TOGGLE's table has it (arXiv 2512.16855): zeros and every bit pay, scales cost nothing"
    table = Table(box=SIMPLE_HEAD, title=title, **TITLE)
    table.add_column("mode", no_wrap=True)
    for heading in (
        "mean\nbits",
        "mean\nsparsity",
        "size\nMB",
        "size\nreduction",
        "FLOPs\nreduction",
        "AvgPP",
    ):
        table.add_column(heading, no_wrap=True, justify="right")
    for mode, chosen in result.selected.items():
        if chosen is None:
            table.add_row(mode, "none")
            continue
        paper = chosen.paper
        table.add_row(
            mode,
            f"{paper.bits:.1f}",
            f"{100 * paper.sparsity:.1f} %",
            f"{paper.bytes / 1e6:.2f}",
            f"{100 * paper.size_reduction:.1f} %",
            f"{paper.flops_ratio:.2f}×",
            number(chosen.avgpp, 2),
        )
    return table


def _selected_json(chosen: Selected | None) -> dict[str, object] | None:
    if chosen is None:
        return None
    return {
        "trial": chosen.trial.index,
        "config_digest": chosen.trial.config_digest,
        "config_file": chosen.config_file,
        "avgpp": chosen.avgpp,
        "proxy_flops_ratio": chosen.trial.proxy_flops_ratio,
        "proxy_bytes": chosen.proxy_bytes,
        "paper": dataclasses.asdict(chosen.paper),
        "verdict": chosen.verdict.verdict,
        "verdicts": verdicts_json(chosen.verdict),
        "coverage": coverage_json(chosen.verdict, chosen.bound),
        "holds": chosen.holds,
        "selection": dataclasses.asdict(chosen.selection),
        "uniform": {
            "cheapest_feasible": _row(chosen.cheapest_uniform),
            "of_equal_size": _row(chosen.uniform_of_size),
        },
    }


def _row(trial: TrialRow | None) -> dict[str, object] | None:
    return None if trial is None else dataclasses.asdict(trial)
