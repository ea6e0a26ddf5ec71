"""RTAMT's robustness of every formula on every probe, in parallel processes, and how far it is from ours."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from toggle_runtime.records import ModeSpecification
from toggle_runtime.signals import Trace
from toggle_runtime.stl import UnsetError
from toggle_runtime.verdicts import per_probe_bounds

from toggle_edge.certify.monitor import Monitor

TOLERANCE = 1e-9
"""Both sides compute in float64 from the same traces; more than this is another number."""


@dataclass(frozen=True, slots=True)
class Series:
    """One formula on every probe: lower and upper end of the robustness or None, and why each None is unset."""

    values: tuple[tuple[float, float] | None, ...]
    reasons: Mapping[int, str]


def series_of(texts: Sequence[str], runs: Sequence[Sequence[Trace]], jobs: int) -> list[dict[str, Series]]:
    """RTAMT's series of every formula on all traces of each run, shared out among `jobs` processes.

    Raises FormulaError and CertificationError as `Monitor.robustness` does.
    """
    tasks = [(text, traces) for traces in runs for text in texts]
    if jobs <= 1 or len(tasks) < 2:
        series = [_series(*task) for task in tasks]
    else:
        # Not forked: the libraries around us have threads.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context) as pool:
            series = list(pool.map(_series, *zip(*tasks, strict=True)))
    of_run = [series[start : start + len(texts)] for start in range(0, len(tasks), len(texts) or 1)]
    return [dict(zip(texts, group, strict=True)) for group in of_run] or [{} for _ in runs]


def _series(text: str, traces: Sequence[Trace]) -> Series:
    monitor = Monitor()
    values: list[tuple[float, float] | None] = []
    reasons: dict[int, str] = {}
    for probe, trace in enumerate(traces):
        try:
            values.append(monitor.robustness(text, trace))
        except UnsetError as exc:
            values.append(None)
            reasons[probe] = str(exc)
    return Series(tuple(values), reasons)


def differences_of(
    specification: Mapping[str, ModeSpecification],
    runs: Sequence[tuple[Sequence[Trace], Mapping[str, Series]]],
) -> dict[str, float]:
    """By property, the largest difference between our monitor and RTAMT, over modes, runs, probes and both ends.

    `runs` are traces with RTAMT's series on them. 0.0 where no probe has a value; infinite where only one of the
    monitors gives one.
    """
    found: dict[str, float] = {}
    for mode in specification.values():
        for name, text in mode.properties.items():
            for traces, series in runs:
                found[name] = max(found.get(name, 0.0), *_differences(text, traces, series[text]), 0.0)
    return found


def _differences(text: str, traces: Sequence[Trace], series: Series) -> list[float]:
    differences = []
    for least, most, theirs in zip(*per_probe_bounds(text, traces), series.values, strict=True):
        if theirs is None or math.isnan(least):
            differences.append(0.0 if theirs is None and math.isnan(least) else math.inf)
        else:
            differences += [abs(float(least) - theirs[0]), abs(float(most) - theirs[1])]
    return differences
