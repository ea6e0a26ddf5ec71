"""Raw samples of a run record -> Measurements with intervals. Units are converted here and nowhere later.

Times are those of `latency`, shares of the device's limits those of `utilisation`; memory and energy follow here.
"""

from __future__ import annotations

from toggle_runtime.records import (
    DEGRADED,
    OK,
    EnergySample,
    Manifest,
    Measurement,
    RunRecord,
    unavailable,
)

from toggle_edge.fleet.latency import latencies
from toggle_edge.fleet.utilisation import utilisation


def measured(record: RunRecord, manifest: Manifest | None = None) -> dict[str, Measurement]:
    """Every measurement of a run by name. What the run did not bring is `unavailable` with the reason.

    `manifest` is the bundle's; shares of the device's limits need it.
    """
    times = latencies(record)
    return {
        **times,
        **utilisation(record, manifest, times),
        "memory_bytes": _memory(record, "peak"),
        "memory_steady_bytes": _memory(record, "steady"),
        **_energy(record.energy, record.reason),
    }


def _memory(record: RunRecord, which: str) -> Measurement:
    """The `peak` of the worker with its children, or the `steady` state: what is resident when it has generated."""
    sample = record.memory
    if sample is None or sample.peak_bytes is None:
        reason = (sample.reason if sample else record.reason) or "the run has no memory pass"
        return unavailable("bytes", sample.method if sample else "none", reason)
    status, doubts = (DEGRADED, "; ".join(sample.flags)) if sample.flags else (OK, None)
    if which == "peak":
        return Measurement(float(sample.peak_bytes), "bytes", sample.method, 1, None, status, doubts)
    if sample.steady_bytes is None:
        return unavailable("bytes", "VmRSS", "the record does not say what was resident in the end")
    return Measurement(
        float(sample.steady_bytes),
        "bytes",
        "VmRSS after generating; without children",
        1,
        None,
        status,
        doubts,
    )


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
