"""What an SSH connection runs over: a TCP socket, or a channel through a host in between.

Both know when they last heard from the other side, which is how a dead link is told from a slow command.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import paramiko

from toggle_edge.fleet.transport import SILENCE_S

CONNECT_TIMEOUT_S = SILENCE_S
"""How long a machine may take to accept a connection, or a channel."""

_POLL_S = 0.2

_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)
"""Linux: acknowledge at once. An sshd waits for that between small packets, which would be 40 ms a time."""


class Link(socket.socket):
    """A TCP socket."""

    heard = 0.0

    @classmethod
    def open(cls, host: str, port: int) -> Link:
        """Raises OSError where nobody listens."""
        plain = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        link = cls(plain.family, plain.type, plain.proto, plain.detach())
        link.settimeout(CONNECT_TIMEOUT_S)
        # A request is several small packets: each would wait for the answer to the one before, 40 ms a time.
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return link

    def recv(self, *args: int) -> bytes:
        data = super().recv(*args)
        if data:
            self.heard = time.monotonic()
            if _QUICKACK is not None:
                self.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        return data


class Tunnel:
    """A channel of `outer`, an authenticated connection to a host in between, which ends with it: as much of a socket
    as paramiko needs."""

    def __init__(self, outer: paramiko.Transport, channel: paramiko.Channel) -> None:
        self.heard = 0.0
        self._closed = False  # paramiko looks at this name
        self._outer = outer
        self._channel = channel

    @classmethod
    def open(cls, outer: paramiko.Transport, host: str, port: int) -> Tunnel:
        """Raises paramiko's SSHException, EOFError or OSError where the host in between cannot or may not connect."""
        origin = ("127.0.0.1", 0)
        return cls(outer, outer.open_channel("direct-tcpip", (host, port), origin, timeout=CONNECT_TIMEOUT_S))

    def send(self, data: bytes) -> int:
        sent: int = self._channel.send(data)
        return sent

    def recv(self, size: int) -> bytes:
        data: bytes = self._channel.recv(size)
        if data:
            self.heard = time.monotonic()
        return data

    def settimeout(self, seconds: float | None) -> None:
        self._channel.settimeout(seconds)

    def close(self) -> None:
        self._closed = True
        self._outer.close()  # and its channels with it: closing one by itself would send, and may find nobody there


AnyLink = Link | Tunnel


@contextmanager
def watched(link: AnyLink, close: Callable[[], None], silence_s: float) -> Iterator[threading.Event]:
    """Call `close` when nothing is heard over `link` for so long during the block; the event tells that it was.

    paramiko's keepalive does not notice a link that went silent, and a blocked write may never return.
    """
    done, silent = threading.Event(), threading.Event()

    def watch() -> None:
        while not done.wait(_POLL_S):
            if time.monotonic() - link.heard > silence_s:
                silent.set()
                close()
                return

    link.heard = time.monotonic()
    watchdog = threading.Thread(target=watch, daemon=True)
    watchdog.start()
    try:
        yield silent
    finally:
        done.set()
        watchdog.join()
