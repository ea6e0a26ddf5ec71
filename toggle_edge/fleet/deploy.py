"""Ship a bundle, run it, bring its record and traces home. Every step may be repeated after a lost link."""

from __future__ import annotations

import dataclasses
import getpass
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toggle_runtime.blobs import mismatch
from toggle_runtime.plan import Plan
from toggle_runtime.records import Blob, RecordError, RunRecord, from_data, from_json

from toggle_edge.bundle import MANIFEST, Bundle
from toggle_edge.errors import AgentError, FleetError, TransportLostError
from toggle_edge.fleet import transport as transports
from toggle_edge.fleet.agent_client import Event, OnProgress, exchange, ignore_progress, request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile, environment_id, worker_wheels
from toggle_edge.fleet.transport import Transport

MAX_RECORD_BYTES = 64 << 20
MAX_TRACES_BYTES = 256 << 20
RECONNECT_S = 120.0
"""How long a device may be unreachable before a run on it is given up."""

_POLL_S = 2.0

Files = Mapping[str, tuple[Path, int]]
Connect = Callable[[Device], Transport]


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that came home, its files verified. `traces` is None where the run made none."""

    record: RunRecord
    record_path: Path
    traces: Path | None


def ship(
    transport: Transport, device: Device, files: Files, on_progress: OnProgress = ignore_progress
) -> int:
    """Bring `files` (digest -> path and size) into the device's store; return the bytes that had to be sent.

    What the store holds is not sent, what was sent in part is continued. A blob that arrives damaged is sent
    once more from the start. Raises FleetError when it is damaged again.
    """
    sent, refused = _ship_once(transport, device, files, on_progress)
    if refused:
        more, refused = _ship_once(transport, device, {d: files[d] for d in refused}, on_progress)
        sent += more
    if refused:
        digest, message = next(iter(refused.items()))
        raise FleetError(
            f"device {device.name!r}: {files[digest][0].name}: {message} (sent twice); "
            "check the file on this host and the device's storage"
        )
    return sent


def prepare_environment(
    transport: Transport,
    device: Device,
    wheels: list[WheelFile] | None = None,
    on_progress: OnProgress = ignore_progress,
) -> str:
    """Ship the worker's wheels (chosen by the device's facts unless given), unpack them; return the id."""
    if wheels is None:
        wheels = worker_wheels(request(transport, device, "facts")["facts"])
    ship(transport, device, {wheel.sha256: (wheel.path, wheel.size) for wheel in wheels}, on_progress)
    identifier = environment_id(wheels)
    described = [{"sha256": wheel.sha256, "size": wheel.size, "name": wheel.name} for wheel in wheels]
    request(transport, device, "environment", id=identifier, wheels=described, on_progress=on_progress)
    return identifier


def run_bundle(
    device: Device,
    bundle: Bundle,
    plan: Plan,
    folder: Path,
    *,
    wheels: list[WheelFile] | None = None,
    owner: str | None = None,
    on_progress: OnProgress = ignore_progress,
    connect: Connect = transports.connect,
) -> RunResult:
    """Ship `bundle` and its worker environment, run `plan`, fetch record and traces into `folder`, verified.

    A record whose outcome is not PASS is returned like any other. A link that is lost during the run is
    opened again, and the run's result fetched: the agent goes on without us. Raises FleetError when the
    device cannot be used, AgentError when it refuses (its lease is taken) or answers nonsense.
    """
    session = _Session(device, connect)
    try:
        run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        identifier = prepare_environment(session.open(), device, wheels, on_progress)
        manifest = bundle.folder / MANIFEST
        files = {
            blob.sha256: (bundle.blob_path(blob.sha256), blob.size) for blob in bundle.manifest.files.values()
        }
        files[bundle.digest] = (manifest, manifest.stat().st_size)
        sent = ship(session.open(), device, files, on_progress)
        on_progress({"event": "progress", "step": "shipped", "sent_bytes": sent})
        event = session.run(
            {
                "run_id": run_id,
                "bundle": bundle.digest,
                "environment": identifier,
                "owner": owner or f"{getpass.getuser()}@{socket.gethostname()}",
                "plan": dataclasses.asdict(plan),
            },
            on_progress,
            _longest_s(plan),
        )
        return _fetch(session.open(), device, event, run_id, folder)
    finally:
        session.close()


class _Session:
    """A connection that can be opened again, and one run that survives that."""

    def __init__(self, device: Device, connect: Connect) -> None:
        self._device = device
        self._connect = connect
        self._transport: Transport | None = None

    def open(self) -> Transport:
        if self._transport is None:
            self._transport = self._connect(self._device)
        return self._transport

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def run(self, fields: Event, on_progress: OnProgress, timeout_s: float) -> Event:
        try:
            return self._run(fields, on_progress, timeout_s)
        except KeyboardInterrupt:
            # The agent would go on without us, and that is not what the user wants now.
            with suppress(FleetError):
                request(self.open(), self._device, "abort", run_id=fields["run_id"])
            raise

    def _run(self, fields: Event, on_progress: OnProgress, timeout_s: float) -> Event:
        deadline = time.monotonic() + timeout_s
        away_since: float | None = None
        command, lost, repeated = "run", False, False
        while True:
            try:
                event = exchange(
                    self.open(), self._device, command, on_progress=on_progress, timeout_s=timeout_s, **fields
                )
            except TransportLostError as exc:
                self.close()
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now > min(deadline, away_since + RECONNECT_S):
                    raise TransportLostError(
                        f"{exc}; the run {fields['run_id']} may have finished: its record is on the device"
                    ) from exc
                command, lost = "fetch_record", True
                on_progress({"event": "progress", "step": "reconnecting"})
                time.sleep(_POLL_S)
                continue
            if event["event"] == "result":
                return event
            away_since = None
            kind = event.get("kind")
            if command == "fetch_record" and kind == "unknown" and not repeated:
                # The request never arrived. If it still does, the run id is taken: nothing runs twice.
                command, repeated = "run", True
            elif command == "run" and kind in ("lease", "run") and lost:
                command = "fetch_record"  # it did arrive, late: the holder may be our own run
            elif command == "fetch_record" and kind == "running" and time.monotonic() < deadline:
                on_progress({"event": "progress", "step": "waiting"})
                time.sleep(_POLL_S)
            else:
                raise AgentError(f"device {self._device.name!r}: {command}: {kind}: {event.get('message')}")


def _ship_once(
    transport: Transport, device: Device, files: Files, on_progress: OnProgress
) -> tuple[int, dict[str, str]]:
    """Upload what is missing and commit it. Bytes sent, and what was refused: digest -> message."""
    answer = request(transport, device, "missing", digests=sorted(files))
    wanted = sorted(digest for digest in answer["missing"] if digest in files)
    if not wanted:
        return 0, {}
    partial = {digest: int(size) for digest, size in answer["partial"].items()}
    # More than the whole cannot be a beginning of it: start over.
    offsets = {d: partial.get(d, 0) if partial.get(d, 0) <= files[d][1] else 0 for d in wanted}
    total = sum(files[digest][1] - offsets[digest] for digest in wanted)
    done = 0
    for digest in wanted:
        path, offset = files[digest][0], offsets[digest]

        def tell(position: int, before: int = done - offset) -> None:
            on_progress({"event": "progress", "step": "upload", "done": before + position, "of": total})

        transport.upload(path, f"{device.root}/incoming/{digest}.part", offset, tell)
        done += files[digest][1] - offset
    blobs = [{"sha256": digest, "size": files[digest][1]} for digest in wanted]
    committed = request(transport, device, "commit", blobs=blobs)
    return done, {entry["sha256"]: str(entry["message"]) for entry in committed["refused"]}


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


def _fetch_file(transport: Transport, device: Device, described: Any, local: Path, limit: int) -> None:
    try:
        remote = str(described["path"])
        blob = from_data(Blob, {"sha256": described["sha256"], "size": described["size"]})
    except (KeyError, TypeError, RecordError) as exc:
        raise AgentError(
            f"device {device.name!r}: expected path, sha256 and size of {local.name}, got {described!r}"
        ) from exc
    transport.download(remote, local, limit)
    problem = mismatch(local, blob)
    if problem is not None:
        raise AgentError(f"device {device.name!r}: {local.name} came home altered: {problem}")


def _longest_s(plan: Plan) -> float:
    """The time after which a run cannot be going on any more, with room for hashing and start-up."""
    processes = len(plan.passes) + plan.restarts
    return 120.0 + processes * (plan.pass_timeout_s + 15.0) + 2 * plan.idle_s
