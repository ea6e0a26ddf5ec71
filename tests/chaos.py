"""A TCP link that misbehaves on purpose, between a client and a real sshd. No privileges needed."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Self


class Chaos:
    """Forwards to `port` on loopback. After `cut_after` bytes from the client the link is cut; after
    `stall_after` bytes nothing passes any more, in either direction, with both sides still open. Connections
    that are opened later are left alone, unless `always`.
    """

    def __init__(
        self, port: int, cut_after: int | None = None, stall_after: int | None = None, always: bool = False
    ) -> None:
        self._target = port
        self._cut, self._stall, self._always = cut_after, stall_after, always
        self.passed = 0
        self.connections = 0
        self._stalled = threading.Event()
        self._links: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.1)
        self._done = threading.Event()

    @property
    def port(self) -> int:
        return int(self._server.getsockname()[1])

    def cut(self) -> None:
        """Break every open connection now: a reset for the client; the device keeps what has arrived."""
        for client, device in self._links:
            with suppress(OSError):
                # Lingering for zero seconds makes close() send a reset.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.shutdown(socket.SHUT_RD)
            with suppress(OSError):
                device.shutdown(socket.SHUT_WR)
        self._links.clear()

    def __enter__(self) -> Self:
        self._spawn(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self.cut()
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
            device = socket.create_connection(("127.0.0.1", self._target))
            self._links.append((client, device))
            self.connections += 1
            evil = self._always or self.connections == 1
            self._spawn(self._pump, client, device, evil, True)
            self._spawn(self._pump, device, client, evil, False)

    def _pump(self, source: socket.socket, target: socket.socket, evil: bool, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                while evil and self._stalled.is_set() and not self._done.is_set():
                    time.sleep(0.05)
                if counted and evil:
                    self.passed += len(data)
                    if self._cut is not None and self.passed > self._cut:
                        self.cut()
                        break
                    if self._stall is not None and self.passed > self._stall:
                        self._stalled.set()
                        continue
                target.sendall(data)
        for sock in (source, target):
            sock.close()
