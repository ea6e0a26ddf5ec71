"""Ship a bundle, run it, bring its record and traces home. Every step may be repeated after a lost link."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toggle_runtime.blobs import mismatch
from toggle_runtime.plan import Plan
from toggle_runtime.records import Blob, RecordError, RunRecord, from_data, from_json

from toggle_edge.bundle import MANIFEST, Bundle
from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import Event, OnProgress, exchange, ignore_progress, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile, environment_id, worker_wheels
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.owner import this_process
from toggle_edge.fleet.packages import adopt_packages
from toggle_edge.fleet.session import Connect, Session, new_run_id
from toggle_edge.fleet.shipping import ship
from toggle_edge.fleet.transport import Transport
from toggle_edge.keyring import successions

MAX_RECORD_BYTES = 64 << 20
MAX_TRACES_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that came home, its files verified. `traces` is None where the run made none."""

    record: RunRecord
    record_path: Path
    traces: Path | None


def prepare_environment(
    transport: Transport,
    device: Device,
    wheels: list[WheelFile] | None = None,
    on_progress: OnProgress = ignore_progress,
    target: str = "onnx-cpu",
) -> str:
    """Have the worker's wheels (chosen by `target` and the device's facts unless given) unpacked, or the device's own
    packages taken where its file names them; return the environment's id.

    They are sent only where the environment is not there yet: once it is, the device may have let its wheels go.
    """
    if wheels is None and device.packages:
        return adopt_packages(transport, device, target, on_progress)
    if wheels is None:
        wheels = worker_wheels(facts_of(transport, device), target=target)
    identifier = environment_id(wheels)
    described = [{"sha256": wheel.sha256, "size": wheel.size, "name": wheel.name} for wheel in wheels]
    fields: Event = {"id": identifier, "wheels": described}
    if exchange(transport, device, "environment", on_progress=on_progress, **fields)["event"] == "error":
        ship(transport, device, {wheel.sha256: (wheel.path, wheel.size) for wheel in wheels}, on_progress)
        request(transport, device, "environment", on_progress=on_progress, **fields)
    return identifier


def _leave_it_there(result: RunResult) -> None:
    """For callers whose folder is where runs stay."""


def run_bundle(
    device: Device,
    bundle: Bundle,
    plan: Plan,
    folder: Path,
    *,
    wheels: list[WheelFile] | None = None,
    owner: str | None = None,
    allow_unsigned: bool = False,
    on_progress: OnProgress = ignore_progress,
    keep: Callable[[RunResult], None] = _leave_it_there,
    connect: Connect = transports.connect,
) -> RunResult:
    """Ship `bundle` and its worker environment, run `plan`, fetch record and traces into `folder`, verified.

    `keep` puts them where they are to stay: only then the device hears that it may let the run go, so a host that is
    killed before has lost nothing.

    The device is told to trust the bundle's key if it trusts none yet; `allow_unsigned` lets it run a bundle
    without a signature. A run that a killed process of this host left there is ended first.

    A record whose outcome is not PASS is returned like any other. A link that is lost is opened again: uploads go on
    where they broke off, and a run's result is fetched, since the agent goes on without us. Raises FleetError when the
    device cannot be used, AgentError when it refuses (its lease is taken) or answers nonsense.
    """
    session = Session(device, connect)
    try:
        signature = bundle.manifest.signature
        if signature is not None:
            name = bundle.signed_by or "unnamed"
            session.through(lambda link: trust_key(link, device, signature.key, name), on_progress)
        run_id = new_run_id()
        identifier = session.through(
            lambda link: prepare_environment(link, device, wheels, on_progress, bundle.manifest.target),
            on_progress,
        )
        manifest = bundle.folder / MANIFEST
        files = {
            blob.sha256: (bundle.blob_path(blob.sha256), blob.size) for blob in bundle.manifest.files.values()
        }
        files[bundle.digest] = (manifest, manifest.stat().st_size)
        sent = session.through(lambda link: ship(link, device, files, on_progress), on_progress)
        on_progress({"event": "progress", "step": "shipped", "sent_bytes": sent})
        event = session.run(
            {
                "run_id": run_id,
                "bundle": bundle.digest,
                "environment": identifier,
                "owner": owner or this_process(),
                "plan": dataclasses.asdict(plan),
                "allow_unsigned": allow_unsigned,
            },
            on_progress,
            _longest_s(plan),
        )
        result = session.through(lambda link: _fetch(link, device, event, run_id, folder), on_progress)
        keep(result)
        _tidy(session, device, run_id)
        return result
    finally:
        session.close()


def trust_key(transport: Transport, device: Device, key: str, name: str, *, force: bool = False) -> None:
    """Have the device trust bundles signed by `key` (hex): if it is the first key, is known there, follows one that
    is by this host's rotations, or `force`.

    Raises AgentError, with the keys that the device trusts, otherwise.
    """
    followed = [dataclasses.asdict(each) for each in successions()]
    request(transport, device, "trust", key=key, name=name, force=force, successions=followed)


def _fetch(transport: Transport, device: Device, event: Event, run_id: str, folder: Path) -> RunResult:
    folder.mkdir(parents=True, exist_ok=True)
    record_path = folder / "record.json"
    _fetch_file(transport, device, event.get("record"), record_path, MAX_RECORD_BYTES)
    try:
        record = from_json(RunRecord, record_path.read_text(encoding="utf-8"))
    except (RecordError, UnicodeDecodeError) as exc:
        raise AgentError(f"device {device.name!r}: the record of {run_id} cannot be read: {exc}") from exc
    if record.run_id != run_id:
        raise AgentError(f"device {device.name!r}: expected the record of {run_id}, got {record.run_id!r}")
    if record.traces is None:
        return RunResult(record, record_path, None)
    traces = folder / "traces.npz"
    described = {**(event.get("traces") or {}), **dataclasses.asdict(record.traces)}
    _fetch_file(transport, device, described, traces, MAX_TRACES_BYTES)
    return RunResult(record, record_path, traces)


def _tidy(session: Session, device: Device, run_id: str) -> None:
    """The run has come home, so the device may let it go, and what else it does not need beyond its quota.

    What fails here fails again where it matters: a run that is home must not be lost for it.
    """
    with suppress(FleetError):
        transport = session.open()
        request(transport, device, "fetched", run_id=run_id)
        request(
            transport,
            device,
            "collect",
            quota_bytes=device.quota_bytes,
            run_id=run_id,
            owner=this_process(),
        )


def _fetch_file(transport: Transport, device: Device, described: Any, local: Path, limit: int) -> None:
    try:
        remote = str(described["path"])
        blob = from_data(Blob, {"sha256": described["sha256"], "size": described["size"]})
    except (KeyError, TypeError, RecordError) as exc:
        raise AgentError(
            f"device {device.name!r}: expected path, sha256 and size of {local.name}, got {described!r}"
        ) from exc
    # What a device names is fetched only if it could be what was asked for.
    parts = PurePosixPath(remote).parts
    if ".." in parts or parts[-1:] != (local.name,):
        raise AgentError(
            f"device {device.name!r}: expected the path of a {local.name} without `..`, got {remote[:120]!r}"
        )
    transport.download(remote, local, limit)
    problem = mismatch(local, blob)
    if problem is not None:
        raise AgentError(f"device {device.name!r}: {local.name} came home altered: {problem}")


def _longest_s(plan: Plan) -> float:
    """The time after which a run cannot be going on any more, with room for hashing and start-up."""
    processes = len(plan.passes) + plan.restarts + plan.colds
    return 120.0 + processes * (plan.pass_timeout_s + 15.0) + 2 * plan.idle_s + plan.sustained_s
