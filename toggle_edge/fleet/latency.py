"""Times of a run record -> Measurements: loads, first tokens, later tokens, speeds by context length, drift.

Warm-ups are kept in the record and left out here. Restarts are what was drawn independently: tokens of one process
resemble each other, so every interval counts restarts first. Where there are too few the value stands without an
interval and `reason` says what it takes; a tail quantile of too few values is no value either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.records import FAIL, PASS, Generation, LatencySample, Measurement, RunRecord, unavailable

from toggle_edge.statistics import (
    BOOTSTRAP_SEED,
    MIN_CLUSTERS,
    cluster_bootstrap_interval,
    cluster_quantile_interval,
    least_samples,
    order_statistic_interval,
)

CLOCK = "monotonic clock in the process that runs the model"
COLD = "cold: pages of the artifact dropped by posix_fadvise, and seen to be gone"
WARM = "warm: artifact in memory, fresh process"

DRIFT_WINDOW_S = 60.0
"""A run of at least two such windows compares its first with its last; a shorter one its first and last tenth."""

_MS, _RATE = "ms", "tokens/s"
_TIMED = {
    "ttft_ms": _MS,
    "decode_ms_p50": _MS,
    "decode_ms_p95": _MS,
    "decode_ms_p99": _MS,
    "decode_tokens_per_s": _RATE,
    "prefill_tokens_per_s": _RATE,
}


def latencies(record: RunRecord) -> dict[str, Measurement]:
    """Every time and speed of a run by name. What the run did not bring is `unavailable` with the reason."""
    return {**_loads(record), **_timed(record), **_contexts(record.latency), **_drift(record)}


def kept(sample: LatencySample) -> list[Generation]:
    """A restart's generations that are no warm-ups."""
    return [generation for generation in sample.generations if not generation.warmup]


def why_missing(record: RunRecord, otherwise: str) -> str:
    """Why a run brought nothing of a pass: what broke it off; a verdict did not, so then `otherwise`."""
    return otherwise if record.outcome in (PASS, FAIL) else record.reason or otherwise


def _loads(record: RunRecord) -> dict[str, Measurement]:
    missing = why_missing(record, "the run has no latency pass")
    warm = _independent([s.load_ns / 1e6 for s in record.latency], f"{CLOCK}; {WARM}", missing)
    cold = [each.load_ns / 1e6 for each in record.cold or () if each.load_ns is not None]
    first = [each.first_token_ns / 1e6 for each in record.cold or () if each.first_token_ns is not None]
    reasons = [each.reason for each in record.cold or () if each.reason is not None]
    missing = reasons[0] if reasons else why_missing(record, "the run has no cold pass")
    return {
        "load_ms": warm,
        "load_cold_ms": _independent(cold, f"{CLOCK}; {COLD}", missing),
        "ttft_cold_ms": _independent(first, f"{CLOCK}; first token after such a load", missing),
    }


def _timed(record: RunRecord) -> dict[str, Measurement]:
    restarts = [made for sample in record.latency if (made := kept(sample))]
    if not restarts:
        missing = why_missing(record, "the run has no timed generations")
        return {name: unavailable(unit, CLOCK, missing) for name, unit in _TIMED.items()}
    first = [[g.first_token_ns / 1e6 for g in made] for made in restarts]
    prefill = [[1e9 * g.prompt_tokens / g.first_token_ns for g in made] for made in restarts]
    tokens = _later_tokens(restarts)
    count = sum(bool(g.token_ns) for generations in restarts for g in generations)
    return {
        "ttft_ms": _quantile(first, 0.5, _MS, "without tokenizer and load"),
        **{
            f"decode_ms_p{percent}": _quantile(tokens, percent / 100, _MS, "tokens after the first", count)
            for percent in (50, 95, 99)
        },
        "decode_tokens_per_s": _throughput(tokens, count),
        "prefill_tokens_per_s": _quantile(prefill, 0.5, _RATE, "prompt tokens over time to the first token"),
    }


def _contexts(samples: Sequence[LatencySample]) -> dict[str, Measurement]:
    lengths = sorted({each.prompt_tokens for sample in samples for each in sample.contexts or ()})
    found = {}
    for length in lengths:
        restarts = [
            [each for each in sample.contexts or () if each.prompt_tokens == length and not each.warmup]
            for sample in samples
        ]
        restarts = [made for made in restarts if made]
        prefill = [[1e9 * length / each.first_token_ns for each in made] for made in restarts]
        found[f"prefill_tokens_per_s_at_{length}"] = _quantile(
            prefill, 0.5, _RATE, f"prompt of {length} tokens over time to the first token"
        )
        found[f"decode_tokens_per_s_at_{length}"] = _throughput(
            _later_tokens(restarts), sum(bool(g.token_ns) for made in restarts for g in made)
        )
    return found


def _drift(record: RunRecord) -> dict[str, Measurement]:
    name, unit, sample = "decode_drift_ratio", "1", record.sustained
    if sample is None or not sample.generations:
        return {name: unavailable(unit, CLOCK, why_missing(record, "a sustained run was not asked for"))}
    ends = [
        start + each.first_token_ns + sum(each.token_ns)
        for start, each in zip(sample.starts_ns, sample.generations, strict=True)
    ]
    seconds = ends[-1] / 1e9
    window = DRIFT_WINDOW_S if seconds >= 2 * DRIFT_WINDOW_S else seconds / 10
    label = f"{window:.0f} s" if window == DRIFT_WINDOW_S else f"tenth of {seconds:.0f} s"
    method = f"{CLOCK}; median token time of the last {label} over the first, of one process"
    pairs = list(zip(sample.starts_ns, ends, sample.generations, strict=True))
    first = [g for start, _, g in pairs if start < window * 1e9]
    last = [g for _, end, g in pairs if end > (seconds - window) * 1e9]
    parts = [_later_tokens([[g] for g in part if g.token_ns]) for part in (first, last)]
    if not all(parts) or first[-1] is last[0]:
        return {name: unavailable(unit, method, f"needs a longer run than {seconds:.0f} s")}
    before, after = (float(np.median(np.concatenate(part))) for part in parts)
    count = sum(len(part) for part in parts)
    limits = [cluster_quantile_interval(part, 0.5) for part in parts]
    if limits[0].ends is None or limits[1].ends is None:
        reason = f"no interval: each end {limits[0].reason or limits[1].reason}".replace(
            "restarts", "generations"
        )
        return {name: Measurement(after / before, unit, method, count, reason=reason)}
    # Donner and Zou's interval (2012) of a ratio from those of its parts, on logarithms.
    (low, high), (low_after, high_after) = limits[0].ends, limits[1].ends
    down = math.hypot(math.log(after / low_after), math.log(high / before))
    up = math.hypot(math.log(high_after / after), math.log(before / low))
    ends95 = [after / before * math.exp(-down), after / before * math.exp(up)]
    return {name: Measurement(after / before, unit, method, count, ends95)}


def _later_tokens(restarts: Sequence[Sequence[Generation]]) -> list[NDArray[np.float64]]:
    """Milliseconds of every token after the first, an array for each restart that has any."""
    every = [np.array([t for g in made for t in g.token_ns], dtype=np.float64) / 1e6 for made in restarts]
    return [each for each in every if len(each)]


def _independent(samples: Sequence[float], method: str, missing: str) -> Measurement:
    """A median of samples of which each is of a process of its own."""
    if not samples:
        return unavailable(_MS, method, missing)
    interval = order_statistic_interval(samples, 0.5)
    reason = None if interval else f"no interval: needs n >= {least_samples(0.5)}, has {len(samples)}"
    value = float(np.median(samples))
    return Measurement(
        value, _MS, f"median; {method}", len(samples), list(interval) if interval else None, reason=reason
    )


def _quantile(
    restarts: Sequence[Sequence[float] | NDArray[np.float64]],
    quantile: float,
    unit: str,
    what: str,
    generations: int | None = None,
) -> Measurement:
    """`n` counts `generations` where one has several values, else the values themselves."""
    values = sum(len(each) for each in restarts)
    n = values if generations is None else generations
    least = least_samples(quantile)
    method = f"{CLOCK}; {what}; {len(restarts)} restarts, order statistics of what they are worth"
    if quantile != 0.5 and values < least:
        return unavailable(unit, method, f"needs n >= {least}, has {values}")
    if values == 0:
        return unavailable(unit, method, "no generation has more than one token")
    limits = cluster_quantile_interval(restarts, quantile)
    value = float(np.quantile(np.concatenate([np.asarray(each) for each in restarts]), quantile))
    if limits.ends is None:
        return Measurement(value, unit, method, n, reason=f"no interval: {limits.reason}")
    return Measurement(value, unit, method, n, list(limits.ends))


def _throughput(restarts: Sequence[NDArray[np.float64]], generations: int) -> Measurement:
    """Tokens over the time that they took, those of all restarts together."""
    method = f"{CLOCK}; interval by a bootstrap of {len(restarts)} restarts, seed {BOOTSTRAP_SEED}"
    if not restarts:
        return unavailable(_RATE, method, "no generation has more than one token")
    interval = cluster_bootstrap_interval(restarts, _speed)
    value = _speed(np.concatenate(restarts))
    if interval is None:
        reason = f"no interval: needs at least {MIN_CLUSTERS} restarts, has {len(restarts)}"
        return Measurement(value, _RATE, method, generations, reason=reason)
    return Measurement(value, _RATE, method, generations, list(interval))


def _speed(milliseconds: NDArray[np.float64]) -> float:
    return 1e3 / float(milliseconds.mean())
