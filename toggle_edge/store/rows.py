"""What the store hands out, and how rows become values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from toggle_runtime.records import Manifest, Measurement, RecordError, RunRecord

from toggle_edge.config import Config
from toggle_edge.errors import ConfigError, SearchError, StoreError
from toggle_edge.search.trial import Observation, Trial


@dataclass(frozen=True)
class StudyIdentity:
    """What a search was started with. Digests are SHA-256 in hex; folder and path are where the files were.
    `profile_content` is what `profile_digest` is of, so that a difference can be named; None where it is not known."""

    model: str
    model_digest: str
    model_folder: str
    profile: str
    profile_path: str
    profile_digest: str
    probes_path: str
    probes_digest: str
    target: str
    seed: int
    quantiser: str = "rtn"
    pruner: str = "magnitude"
    batch: int = 1
    profile_content: Mapping[str, object] | None = None


@dataclass(frozen=True)
class StoredStudy:
    """A search and what identifies it. `created` is ISO 8601 in UTC; what is None was not noted by the older
    toggle-edge that began the study. `sensitivity` is None until it was computed."""

    id: int
    name: str
    model: str
    model_digest: str
    profile: str
    target: str
    seed: int
    created: str
    model_folder: str | None
    profile_path: str | None
    profile_digest: str | None
    probes_path: str | None
    probes_digest: str | None
    sensitivity: Mapping[str, float] | None
    quantiser: str
    pruner: str
    batch: int
    profile_content: Mapping[str, object] | None


@dataclass(frozen=True)
class StoredReading:
    """One config on the first `probes` selection probes: how many satisfy each mode, and their AvgPP in percent."""

    satisfied: Mapping[str, int]
    probes: int
    avgpp: float | None


@dataclass(frozen=True)
class StoredBundle:
    """A bundle exported for a study."""

    study: int
    digest: str
    config_digest: str
    artifact_bytes: int
    manifest: Manifest


@dataclass(frozen=True)
class StoredRun:
    """A run as it came home. `certified` is None when nobody has certified it; `traces` is a path or None."""

    study: int
    device: str
    record: RunRecord
    measurements: Mapping[str, Measurement]
    certified: bool | None
    certificate: Mapping[str, object] | None
    traces: str | None
    created: str


def trial_of(row: sa.RowMapping) -> Trial:
    """A row of `trials`. Raises StoreError if its config does not match its digest."""
    config = Config.from_json(row["config"])
    if config.digest != row["config_digest"]:
        raise StoreError(
            f"store: trial {row['index']}: the config does not match its digest; restore a backup"
        )
    observation = Observation(
        row["proxy_flops"],
        row["avgpp"],
        row["robustness"],
        row["feasible"],
        row["properties"] or {},
        bool(row["refuted"]),
    )
    return Trial(row["index"], config, row["origin"], observation, row["payload"])


def trial_row(trial: Trial) -> dict[str, object]:
    """A trial as a row of `trials`, without its study."""
    observation = trial.observation
    return {
        "index": trial.index,
        "config_digest": trial.config.digest,
        "config": trial.config.to_json(),
        "origin": trial.origin,
        "proxy_flops": observation.proxy_flops,
        "avgpp": observation.avgpp,
        "robustness": dict(observation.robustness),
        "feasible": dict(observation.feasible),
        "payload": dict(trial.payload),
        "properties": {mode: dict(found) for mode, found in observation.properties.items()},
        "refuted": observation.refuted,
    }


def measurement_row(run: str, name: str, measurement: Measurement) -> dict[str, object]:
    """A measurement as a row of `measurements`."""
    low, high = measurement.ci95 or (None, None)
    return {
        "run": run,
        "name": name,
        "value": measurement.value,
        "unit": measurement.unit,
        "method": measurement.method,
        "n": measurement.n,
        "low": low,
        "high": high,
        "status": measurement.status,
        "reason": measurement.reason,
    }


def measurement_of(row: sa.RowMapping) -> Measurement:
    """A row of `measurements`. Raises RecordError if its value and status do not fit."""
    ci95 = None if row["low"] is None else [row["low"], row["high"]]
    return Measurement(row["value"], row["unit"], row["method"], row["n"], ci95, row["status"], row["reason"])


@contextmanager
def reading(what: str) -> Iterator[None]:
    """What a row cannot be read for becomes a StoreError that says what to do."""
    try:
        yield
    except (RecordError, ConfigError, SearchError) as exc:
        raise StoreError(f"store: a stored {what} cannot be read: {exc}; restore a backup") from exc


def now() -> str:
    """The time as rows have it: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
