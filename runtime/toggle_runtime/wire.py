"""JSON lines from the agent to the host, on a descriptor that may stall or vanish at any moment.

A host that is gone, or a link that stopped, must never hold up a run: progress is dropped when the pipe is
full, and the last event gives up after a while. What matters is on disk before it is told.
"""

import json
import os
import select
import sys
import threading
import time
from typing import Any, Dict, Protocol

HEARTBEAT_S = 2.0
"""Longest silence of a busy agent. The host takes much more than this for a lost link."""

HEARTBEAT = "alive"
"""The step of the progress event that says no more than that."""

FINAL_WAIT_S = 20.0


class RequestError(Exception):
    """A request that is answered with an error event of this kind and message, and with `data`'s fields."""

    def __init__(self, kind: str, message: str, **data: Any) -> None:
        super().__init__(message)
        self.kind = kind
        self.data = data


class Listener(Protocol):
    """Who is told how far things are."""

    def progress(self, **fields: Any) -> None: ...


class Wire:
    """The protocol's output. Safe to use from several threads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._pending = b""
        self._gone = False
        self._lock = threading.Lock()
        os.set_blocking(descriptor, False)

    @classmethod
    def take_stdout(cls) -> "Wire":
        """Claim the real stdout; whatever else prints goes to stderr and cannot corrupt the protocol."""
        sys.stdout.flush()
        descriptor = os.dup(1)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether the host's end is known to be closed: nothing will be heard there any more."""
        return self._gone

    def progress(self, **fields: Any) -> None:
        """Tell the host how far things are. Dropped when the host does not keep up."""
        line = _line(dict(fields, event="progress"))
        with self._lock:
            self._flush()
            if not self._pending:
                self._pending = line
                self._flush()

    def announce(self, **fields: Any) -> None:
        """Tell the host what it waits for: kept until it can be written, as what comes after it is not."""
        with self._lock:
            self._pending += _line(dict(fields, event="progress"))
            self._flush()

    def final(self, event: Dict[str, Any]) -> None:
        """Send the result or the error, waiting up to FINAL_WAIT_S for a slow host."""
        deadline = time.monotonic() + FINAL_WAIT_S
        with self._lock:
            self._pending += _line(event)
            self._flush()
            while self._pending and not self._gone and time.monotonic() < deadline:
                select.select([], [self._descriptor], [], 0.5)
                self._flush()

    def close(self) -> None:
        # The flag belongs to the terminal or socket that others may share, not to our descriptor.
        os.set_blocking(self._descriptor, True)
        os.close(self._descriptor)

    def _flush(self) -> None:
        while self._pending and not self._gone:
            try:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
            except BlockingIOError:
                return
            except OSError:
                self._gone = True
        if self._gone:
            self._pending = b""


class Heartbeat:
    """While open, says that the agent is alive, however long its work takes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self._wire.progress(step=HEARTBEAT)


def _line(event: Dict[str, Any]) -> bytes:
    return (json.dumps(event, allow_nan=False, separators=(",", ":")) + "\n").encode("utf-8")
