"""The way to a device: run a command, move a file. Paths on the device are relative to the login folder."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from toggle_edge.errors import AgentError
from toggle_edge.fleet.device import Device

SILENCE_S = 8.0
"""Longest silence of a live link. An agent at work speaks every 2 s; a server acknowledges what it is sent."""

MAX_LINE_BYTES = 16 << 20
MAX_STDERR_BYTES = 64 << 10

OnLine = Callable[[bytes], None]
Feed = Callable[[], bytes | None]
"""What goes to a command's stdin next: `b""` for nothing until its next line has come, None for no more."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its exit status (-1: killed by a signal) and the end of its stderr."""

    status: int
    stderr: str


def nothing_more() -> None:
    """The feed of a command that reads no more than its stdin."""


class Transport(Protocol):
    """Every method raises TransportError when the device refuses, TransportLostError without a link."""

    def run(
        self,
        command: Sequence[str],
        stdin: bytes,
        on_line: OnLine,
        timeout_s: float,
        feed: Feed = nothing_more,
    ) -> Completed:
        """Run a command that reads `stdin` and then what `feed` gives, handing over its stdout line by line. AgentError
        for a huge line."""

    def upload(self, local: Path, remote: str) -> None:
        """Write a small file. What is large goes through `feed`, where it can be continued."""

    def download(self, remote: str, local: Path, max_bytes: int) -> None:
        """Fetch a file. Refuses one larger than `max_bytes` and leaves nothing behind."""

    def size(self, remote: str) -> int | None:
        """A file's size in bytes; None where there is none."""

    def mkdirs(self, remote: str) -> None:
        """Make a folder and its parents; an existing one is fine."""

    def rename(self, source: str, target: str) -> None:
        """Move a file in one step, replacing `target`."""

    def close(self) -> None: ...


_MODULES = {"local": "toggle_edge.fleet.local", "ssh": "toggle_edge.fleet.ssh"}


def connect(device: Device) -> Transport:
    """Open the transport that the device file names. Raises TransportError (HostKeyError for a wrong key)."""
    # Imported on use: the SSH library takes a while to load, and a local device does without.
    module = importlib.import_module(_MODULES[device.transport])
    transport: Transport = module.connect(device)
    return transport


class LineSplitter:
    """Cuts a byte stream into lines and hands them on; refuses to hold more than MAX_LINE_BYTES of one."""

    def __init__(self, on_line: OnLine) -> None:
        self._on_line = on_line
        self._rest = bytearray()

    def feed(self, data: bytes) -> None:
        first, *others = data.split(b"\n")
        self._rest += first
        if len(self._rest) > MAX_LINE_BYTES:
            raise AgentError(
                f"expected lines of at most {MAX_LINE_BYTES} bytes from the device, got a longer one"
            )
        for following in others:
            line, self._rest = bytes(self._rest), bytearray(following)
            self._on_line(line)

    def end(self) -> None:
        """The stream is over: what has no line end is the last line."""
        if self._rest:
            self._on_line(bytes(self._rest))
            self._rest.clear()
