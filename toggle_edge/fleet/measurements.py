"""Raw samples of a run record -> Measurements with intervals. Units are converted here and nowhere later.

Warm-ups are kept in the record and left out here. Tokens of one generation depend on each other, so intervals of
decode times resample generations, never tokens; TTFT and load are one sample per generation and per process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from toggle_runtime.records import (
    DEGRADED,
    OK,
    EnergySample,
    Generation,
    LatencySample,
    Measurement,
    RunRecord,
    unavailable,
)

from toggle_edge.statistics import cluster_bootstrap_interval, order_statistic_interval

CLOCK = "monotonic clock in the process that runs the model"


def measured(record: RunRecord) -> dict[str, Measurement]:
    """Every measurement of a run by name. What the run did not bring is `unavailable` with the reason."""
    generations = [g for sample in record.latency for g in sample.generations if not g.warmup]
    if not generations:
        missing = record.reason or "the run has no timed generations"
        timed = {name: unavailable(unit, CLOCK, missing) for name, unit in _TIMED_UNITS.items()}
    else:
        timed = _timed(record.latency, generations)
    return {**timed, "memory_bytes": _memory(record), **_energy(record.energy, record.reason)}


_TIMED_UNITS = {
    "load_ms": "ms",
    "ttft_ms": "ms",
    "decode_ms_p50": "ms",
    "decode_ms_p95": "ms",
    "decode_ms_p99": "ms",
    "decode_tokens_per_s": "tokens/s",
    "prefill_tokens_per_s": "tokens/s",
}


def _timed(samples: Sequence[LatencySample], generations: Sequence[Generation]) -> dict[str, Measurement]:
    decode = [np.array(g.token_ns) / 1e6 for g in generations]
    first = [g.first_token_ns / 1e6 for g in generations]
    speed = [np.array([len(g.token_ns) / (sum(g.token_ns) / 1e9)]) for g in generations]
    prefill = [g.prompt_tokens / (g.first_token_ns / 1e9) for g in generations]
    return {
        "load_ms": _median(
            [s.load_ns / 1e6 for s in samples], "ms", f"{CLOCK}; page cache warm after the first"
        ),
        "ttft_ms": _median(first, "ms", f"{CLOCK}; without tokenizer and load"),
        "decode_ms_p50": _clustered(decode, lambda v: float(np.median(v)), "ms"),
        "decode_ms_p95": _clustered(decode, lambda v: float(np.quantile(v, 0.95)), "ms"),
        "decode_ms_p99": _clustered(decode, lambda v: float(np.quantile(v, 0.99)), "ms"),
        "decode_tokens_per_s": _clustered(speed, lambda v: float(np.median(v)), "tokens/s"),
        "prefill_tokens_per_s": _median(prefill, "tokens/s", f"{CLOCK}; prompt tokens over TTFT"),
    }


def _median(samples: Sequence[float], unit: str, method: str) -> Measurement:
    interval = order_statistic_interval(samples, 0.5)
    return Measurement(
        float(np.median(samples)),
        unit,
        f"median; {method}",
        len(samples),
        list(interval) if interval else None,
    )


def _clustered(
    clusters: Sequence[NDArray[np.float64]], statistic: Callable[[NDArray[np.float64]], float], unit: str
) -> Measurement:
    interval = cluster_bootstrap_interval([cluster.tolist() for cluster in clusters], statistic)
    method = f"{CLOCK}; 95 % interval resamples {len(clusters)} generations"
    value = statistic(np.concatenate(clusters))
    return Measurement(value, unit, method, len(clusters), list(interval) if interval else None)


def _memory(record: RunRecord) -> Measurement:
    sample = record.memory
    if sample is None or sample.peak_bytes is None:
        reason = (sample.reason if sample else record.reason) or "the run has no memory pass"
        return unavailable("bytes", sample.method if sample else "none", reason)
    status, doubts = (DEGRADED, "; ".join(sample.flags)) if sample.flags else (OK, None)
    return Measurement(float(sample.peak_bytes), "bytes", sample.method, 1, None, status, doubts)


def _energy(sample: EnergySample | None, reason: str | None) -> dict[str, Measurement]:
    if sample is None or sample.gross_mj is None or sample.tokens < 1:
        why = (sample.reason if sample else reason) or "the run has no energy pass"
        missing = unavailable("mJ/token", sample.method if sample else "none", why)
        return {"energy_mj_per_token": missing, "energy_net_mj_per_token": missing}
    method = f"{sample.method}; scope: {sample.scope}"
    if sample.step_mw is not None:
        method += f"; steps of {sample.step_mw:.3g} mW"
    status, doubts = (DEGRADED, "; ".join(sample.flags)) if sample.flags else (OK, None)
    gross = Measurement(
        sample.gross_mj / sample.tokens, "mJ/token", f"{method}; gross", 1, None, status, doubts
    )
    if sample.idle_mw is None or sample.window_s is None:
        net = unavailable("mJ/token", method, "idle power could not be read, so nothing can be subtracted")
    else:
        # mW times s is mJ.
        net_mj = sample.gross_mj - sample.idle_mw * sample.window_s
        net = Measurement(
            net_mj / sample.tokens, "mJ/token", f"{method}; idle subtracted", 1, None, status, doubts
        )
    return {"energy_mj_per_token": gross, "energy_net_mj_per_token": net}
