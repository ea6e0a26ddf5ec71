"""A TCP link that misbehaves on purpose, between a client and a real sshd: to try what a bad link does.

No privileges needed. Bytes are counted in both directions, so it also tells what a transfer costs on the wire.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Pair:
    """The two sockets of one connection."""

    client: socket.socket
    device: socket.socket
    stalled: threading.Event = field(default_factory=threading.Event)


class Chaos:
    """Context manager: forwards to `port` on loopback, on a port of its own.

    After exactly `cut_after` bytes all connections are cut; after `stall_after` nothing passes any more on the one that
    reached it, in either direction, with both sides still open. Counted are the bytes that have passed from the client
    to the device; with `from_device`, those that came back. It happens once, unless `always`.
    """

    def __init__(
        self,
        port: int,
        cut_after: int | None = None,
        stall_after: int | None = None,
        always: bool = False,
        from_device: bool = False,
    ) -> None:
        self._target = port
        self._cut_after, self._stall_after, self._always = cut_after, stall_after, always
        self._from_device = from_device
        self.passed = 0
        self.returned = 0
        self.connections = 0
        self.fired = threading.Event()
        self._down = threading.Event()
        self._lock = threading.Lock()
        self._pairs: list[_Pair] = []
        self._threads: list[threading.Thread] = []
        self._done = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._server.settimeout(_POLL_S)

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def cut(self) -> None:
        """Break every open connection now: a reset for the client; the device keeps what has arrived."""
        self.fired.set()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            with suppress(OSError):
                # Lingering for zero seconds makes close() send a reset.
                pair.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                pair.client.shutdown(socket.SHUT_RD)
            with suppress(OSError):
                pair.device.shutdown(socket.SHUT_WR)

    def stall(self) -> None:
        """Let nothing pass on the open connections any more, and leave them open."""
        self.fired.set()
        with self._lock:
            for pair in self._pairs:
                pair.stalled.set()

    def go_down(self) -> None:
        """Cut what is open, and close what is opened from now on, as a machine does that restarts."""
        self._down.set()
        self.cut()

    def come_up(self) -> None:
        """Connect again."""
        self._down.clear()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        with self._lock:
            pairs = list(self._pairs)
        self.cut()
        for pair in pairs:
            with suppress(OSError):
                pair.device.shutdown(socket.SHUT_RD)
        for thread in self._threads:
            thread.join(5)
        self._server.close()

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._done.is_set():
            try:
                client, _ = self._server.accept()
            except TimeoutError:
                continue
            if self._down.is_set():
                client.close()
                continue
            try:
                device = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            pair = _Pair(client, device)
            with self._lock:
                self._pairs.append(pair)
                self.connections += 1
            self._spawn(self._pump, pair, False)
            self._spawn(self._pump, pair, True)

    def _pump(self, pair: _Pair, back: bool) -> None:
        source, target = (pair.device, pair.client) if back else (pair.client, pair.device)
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                while pair.stalled.is_set() and not self._done.wait(_POLL_S):
                    continue
                room = self._room() if back == self._from_device else None
                passing = data if room is None else data[:room]
                target.sendall(passing)
                self._count(len(passing), back)
                if len(passing) < len(data):
                    self._break(pair)
        # That one side has gone does not pass either.
        while pair.stalled.is_set() and not self._done.wait(_POLL_S):
            continue
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # the other pump waits there, and holds it open
            end.close()

    def _room(self) -> int | None:
        """How many bytes may still pass before something happens; None when nothing is to happen (any more)."""
        limit = self._stall_after if self._cut_after is None else self._cut_after
        if limit is None or (self.fired.is_set() and not self._always):
            return None
        return max(0, limit - (self.returned if self._from_device else self.passed))

    def _count(self, number: int, back: bool) -> None:
        with self._lock:
            if back:
                self.returned += number
            else:
                self.passed += number

    def _break(self, pair: _Pair) -> None:
        if self._cut_after is not None:
            self.cut()
        else:
            self.fired.set()
            pair.stalled.set()
