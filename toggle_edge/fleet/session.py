"""A connection to a device that may be lost and opened again, and what is asked over it until it is answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from toggle_edge.errors import AgentError, FleetError, TransportLostError
from toggle_edge.fleet.agent_client import (
    DEFAULT_TIMEOUT_S,
    Event,
    OnProgress,
    exchange,
    ignore_progress,
    request,
)
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.owner import is_gone, this_process
from toggle_edge.fleet.transport import Transport

RECONNECT_S = 120.0
"""How long a device may be unreachable before what is asked of it is given up."""

AWAY_S = 30.0
"""The same where nothing is under way on the device yet, or any more."""

MOST_LOSSES = 10
"""A link that breaks so often in one step is given up: it may well break at the same place each time."""

ORPHAN_S = 60.0
"""How long the aborted run of a host that was killed may take to give the device back."""

_POLL_S = 2.0

Connect = Callable[[Device], Transport]
Answer = TypeVar("Answer")


class Session:
    """A connection that can be opened again, and requests that survive that."""

    def __init__(self, device: Device, connect: Connect) -> None:
        self._device = device
        self._connect = connect
        self._transport: Transport | None = None
        self._met = False

    def open(self) -> Transport:
        if self._transport is None:
            self._transport = self._connect(self._device)
            self._met = True
        return self._transport

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def through(
        self, work: Callable[[Transport], Answer], on_progress: OnProgress = ignore_progress
    ) -> Answer:
        """Do what may be done twice, over a new connection whenever one is lost; return what it returns.

        Raises TransportLostError for a device that was never reached, or stays away, or whose link breaks at every try.
        """
        losses = 0
        away_since: float | None = None
        while True:
            try:
                transport = self.open()
                away_since = None
                return work(transport)
            except TransportLostError:
                self.close()
                losses += 1
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if not self._met or losses > MOST_LOSSES or now > away_since + AWAY_S:
                    raise
                on_progress({"event": "progress", "step": "reconnecting"})
                time.sleep(_POLL_S)

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
        orphaned_until: float | None = None
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
            elif command == "run" and kind == "lease" and _is_orphan(event):
                orphaned_until = self._end_orphan(event, orphaned_until, on_progress)
            elif command == "fetch_record" and kind == "running" and time.monotonic() < deadline:
                on_progress({"event": "progress", "step": "waiting"})
                time.sleep(_POLL_S)
            else:
                raise AgentError(f"device {self._device.name!r}: {command}: {kind}: {event.get('message')}")

    def ask(
        self,
        command: str,
        fields: Mapping[str, object],
        *,
        on_progress: OnProgress = ignore_progress,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Event:
        """Ask for what may be asked twice, until there is an answer; return the result event.

        Where an earlier attempt of ours still holds the device it is waited for, and that of a killed process of this
        host is ended. Raises AgentError where the device refuses,
        TransportLostError where it stays away.
        """
        run_id = new_run_id()
        asked: Event = {**fields, "run_id": run_id, "owner": this_process()}
        away_since: float | None = None
        deadline = time.monotonic() + timeout_s
        orphaned_until: float | None = None
        while True:
            try:
                event = exchange(
                    self.open(), self._device, command, on_progress=on_progress, timeout_s=timeout_s, **asked
                )
            except TransportLostError:
                self.close()
                away_since = time.monotonic() if away_since is None else away_since
                if time.monotonic() > min(deadline, away_since + RECONNECT_S):
                    raise
                on_progress({"event": "progress", "step": "reconnecting"})
                time.sleep(_POLL_S)
                continue
            if event["event"] == "result":
                return event
            away_since = None
            holder = event.get("holder")
            ours = isinstance(holder, dict) and holder.get("run_id") == run_id
            if event.get("kind") == "lease" and ours and time.monotonic() < deadline:
                time.sleep(_POLL_S)
            elif event.get("kind") == "lease" and _is_orphan(event):
                orphaned_until = self._end_orphan(event, orphaned_until, on_progress)
            else:
                raise AgentError(
                    f"device {self._device.name!r}: {command}: {event.get('kind')}: {event.get('message')}"
                )

    def _end_orphan(self, event: Event, until: float | None, on_progress: OnProgress) -> float:
        """Have the run of a host that is gone aborted; by when it must have ended."""
        now = time.monotonic()
        until = now + ORPHAN_S if until is None else until
        if now > until:
            raise AgentError(f"device {self._device.name!r}: an aborted run does not end: {event['message']}")
        on_progress({"event": "progress", "step": "ending the run of a host that is gone"})
        # Refused where it has just ended by itself, which is as good.
        exchange(self.open(), self._device, "abort", run_id=str(event["holder"].get("run_id")))
        time.sleep(_POLL_S)
        return until


def new_run_id() -> str:
    """A name for what is done on a device under its lease: when it was asked for, and by chance."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"


def _is_orphan(event: Event) -> bool:
    holder = event.get("holder")
    return isinstance(holder, dict) and isinstance(holder.get("owner"), str) and is_gone(holder["owner"])
