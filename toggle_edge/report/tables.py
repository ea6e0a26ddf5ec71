"""What a person reads: decided, on what evidence, what to do next. At most 100 columns, colour never alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from toggle_runtime.records import SATISFIED, Measurement

from toggle_edge.report.cells import (
    STYLES,
    TITLE,
    has,
    interval,
    number,
    place,
    print_entry,
    print_outcome,
    signed,
    value,
)
from toggle_edge.report.loop import CandidateResult, LoopResult


def print_loop(result: LoopResult, console: Console) -> None:
    """The whole result of one turn of the loop."""
    for heading, sentence in _setting(result):
        print_entry(console, heading, sentence)
    console.print()
    console.print(_front_table(result))
    console.print(_verdict_table(result, result.default_mode))
    for heading, sentence in _evidence(result):
        print_entry(console, heading, sentence)
    console.print()
    console.print(_selection_table(result))
    for mode, sentence in result.explanations.items():
        print_entry(console, mode, sentence)
    for note in _shared_selections(result):
        print_entry(console, "", note)
    print_outcome(console, result.outcome, result.reason)
    print_entry(console, "next", _next_step(result))


def _setting(result: LoopResult) -> Iterator[tuple[str, str]]:
    link = "over ssh, host key pinned" if result.transport == "ssh" else "local transport, without SSH"
    yield "device", f"{result.device} {link}"
    known = {key: value.split(":")[0] for key, value in result.conditions.items()}
    processor, governor = known.get("cpu_model"), known.get("governor_before")
    load = " then ".join(known[key] for key in ("load_average_before", "load_average_after") if key in known)
    engine = f"onnxruntime {known.get('onnxruntime')} ({known.get('execution_provider')})"
    yield (
        "conditions",
        (
            f"{processor or 'processor unavailable'}, governor {governor or 'unavailable'}, "
            f"load {load or 'unavailable'}, {engine}"
        ),
    )
    feasible = sum(any(trial.feasible.values()) for trial in result.trials)
    yield "search", f"{len(result.trials)} configs evaluated, {feasible} feasible in some mode"


def _front_table(result: LoopResult) -> Table:
    title = "predicted (P) on the host, measured (M) on the device; P and M mark the fronts"
    table = Table(box=SIMPLE_HEAD, title=title, **TITLE)
    rows = (result.baseline, *result.candidates)
    energy = any(has(row.measured.get("energy_mj_per_token")) for row in rows)
    table.add_column("", no_wrap=True, min_width=9)
    table.add_column("layers at\n2/4/8/16 bit", no_wrap=True, min_width=12)
    widths = {"proxy": 6, "MB": 5, "AvgPP": 6, "decode ms [95 %]": 20, "TTFT\nms": 5, "peak\nMB": 4}
    for heading, width in (*widths.items(), *([("mJ per\ntoken", 6)] if energy else [])):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("front", no_wrap=True, min_width=5)
    for row in rows:
        fronts = {"P": result.predicted_front, "M": result.measured_front}
        table.add_row(
            row.id,
            _layers_by_bits(row),
            f"{row.predicted.proxy_flops_ratio:.2f}×",
            f"{row.artifact_bytes / 1e6:.2f}",
            number(row.avgpp, 2),
            interval(row.measured.get("decode_ms_p50"), 3),
            value(row.measured.get("ttft_ms"), 2),
            value(row.measured.get("memory_bytes"), 0, 1e-6),
            *([value(row.measured.get("energy_mj_per_token"), 2)] if energy else []),
            " ".join(letter for letter, ids in fronts.items() if row.id in ids),
        )
    return table


def _layers_by_bits(row: CandidateResult) -> str:
    counts = Counter(fmt.bits for _, fmt in row.config)
    return "/".join(str(counts[bits]) for bits in (2, 4, 8, 16))


def _verdict_table(result: LoopResult, mode: str) -> Table:
    table = Table(box=SIMPLE_HEAD, title=f"the contract on the device, mode {mode}", **TITLE)
    table.add_column("property", no_wrap=True, min_width=24)
    table.add_column("verdict", no_wrap=True, min_width=9)
    for heading in ("robustness", "host said"):
        table.add_column(heading, justify="right", no_wrap=True, min_width=len(heading))
    table.add_column("binding at")
    for candidate in result.candidates:
        judged, host = candidate.modes.get(mode), candidate.host_modes.get(mode)
        if judged is None:
            table.add_row(Text(candidate.id, style="bold"), candidate.outcome, "", "", candidate.reason or "")
            continue
        coverage = judged.coverage
        table.add_row(
            Text(candidate.id, style="bold"),
            Text(judged.verdict, style=STYLES[judged.verdict]),
            signed(judged.robustness),
            signed(host.robustness if host else None),
            f"{coverage.satisfied} of {coverage.probes} probes, needs {coverage.required}; "
            + ("certified" if candidate.certified else "NOT certified"),
        )
        host_said = {verdict.property: verdict.robustness for verdict in host.verdicts} if host else {}
        for index, verdict in enumerate(judged.verdicts):
            # Where all is well the words around the step would only be in the way.
            excerpts = {} if verdict.verdict == SATISFIED else result.excerpts
            table.add_row(
                f"  {verdict.property.replace('_', ' ')}",
                Text(verdict.verdict, style=STYLES[verdict.verdict]),
                signed(verdict.robustness),
                signed(host_said.get(verdict.property)),
                Text(verdict.reason or place(verdict.argmin, excerpts)),
                end_section=index + 1 == len(judged.verdicts),
            )
    return table


def _evidence(result: LoopResult) -> Iterator[tuple[str, str]]:
    chosen = result.selected[result.default_mode].id
    if chosen is not None:
        ours, baseline = result.candidate(chosen), result.baseline
        yield (
            "size",
            (
                f"{chosen} {ours.artifact_bytes / 1e6:.2f} MB, fp16 baseline {baseline.artifact_bytes / 1e6:.2f} MB: "
                f"{ours.artifact_bytes / baseline.artifact_bytes:.2f} of it"
            ),
        )
        times = ours.measured.get("decode_ms_p50"), baseline.measured.get("decode_ms_p50")
        yield (
            "decode",
            (
                f"{chosen} {interval(times[0], 3)} ms, fp16 baseline {interval(times[1], 3)} ms: {_compared(*times)}"
            ),
        )
        uniform = result.cheapest_uniform
        if uniform is not None:
            yield (
                "uniform",
                (
                    f"the cheapest config with one format everywhere that was feasible is {uniform.formats} with "
                    f"{uniform.proxy_flops_ratio:.2f}× fewer proxy FLOPs than fp16; {chosen} has "
                    f"{ours.predicted.proxy_flops_ratio:.2f}×"
                ),
            )
        if ours.certificate is not None:
            agrees = (
                "RTAMT, judging the traces again, agrees in every number"
                if ours.certified
                else "NOT certified"
            )
            yield "certified", f"{chosen}: {agrees}. {ours.certificate.bounds[result.default_mode].statement}"
    energy = result.baseline.measured.get("energy_mj_per_token")
    if energy is not None and energy.reason:
        yield "energy", f"unavailable: {energy.reason}"
    yield (
        "proxy",
        (
            f"Kendall's tau between proxy FLOPs and measured decode time is {number(result.kendall_tau, 2)} over "
            f"{len(result.candidates) + 1} artifacts: 1 would rank them alike, 0 says nothing"
        ),
    )
    yield (
        "AvgPP",
        (
            "the mean of 1 - jsd, attention, context and min(1, factual) over probes and steps; the paper's own "
            "formula is not public"
        ),
    )


def _shared_selections(result: LoopResult) -> Iterator[str]:
    for chosen in {choice.id: None for choice in result.selected.values() if choice.id}:
        modes = [mode for mode, choice in result.selected.items() if choice.id == chosen]
        if len(modes) > 1:
            yield f"{', '.join(modes[:-1])} and {modes[-1]} select the same candidate, {chosen}"


def _next_step(result: LoopResult) -> str:
    chosen = result.selected[result.default_mode].id
    if chosen is None:
        return "toggle-edge demo --trials 60 --seed 1    (a longer search, with another seed)"
    return (
        f"the selected config: {result.config_files[chosen]}    all of this as JSON: toggle-edge demo --json"
    )


def _compared(ours: Measurement | None, baseline: Measurement | None) -> str:
    if not has(ours) or not has(baseline) or not ours.ci95 or not baseline.ci95:
        return "not comparable, since an interval is missing"
    low, high = sorted((ours, baseline), key=lambda measurement: measurement.value)
    if not (low.ci95 and high.ci95 and low.ci95[1] < high.ci95[0]):
        return "no difference that the intervals can tell; a model this small may gain nothing"
    ratio = high.value / low.value
    if low is ours:
        return f"{ratio:.2f}× faster than the baseline"
    return f"{ratio:.2f}× slower than the baseline; a model this small may gain nothing"


def _selection_table(result: LoopResult) -> Table:
    table = Table(box=SIMPLE_HEAD, title="what each mode selects", **TITLE)
    for heading in ("mode", "by proxy", "now"):
        table.add_column(heading, no_wrap=True)
    for heading in ("AvgPP", "MB", "decode ms [95 %]", "proxy"):
        table.add_column(heading, no_wrap=True, justify="right")
    for mode, choice in result.selected.items():
        cells = ["", "", "", ""]
        if choice.id is not None:
            candidate = result.candidate(choice.id)
            cells = [
                number(candidate.avgpp, 2),
                f"{candidate.artifact_bytes / 1e6:.2f}",
                interval(candidate.measured.get("decode_ms_p50"), 3),
                f"{candidate.predicted.proxy_flops_ratio:.2f}×",
            ]
        table.add_row(mode, result.predicted_selection[mode] or "none", choice.id or "none", *cells)
    return table
