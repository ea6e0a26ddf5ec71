"""This machine as a device: the same commands and files, without a link in between."""

from __future__ import annotations

import errno
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from toggle_edge.errors import TransportError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.transport import (
    MAX_STDERR_BYTES,
    Completed,
    Feed,
    LineSplitter,
    OnLine,
    Transport,
    nothing_more,
)


def connect(device: Device) -> Transport:
    return LocalTransport(Path.home())


class LocalTransport:
    """Relative paths start at `home`, as they do after a login over SSH."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def run(
        self,
        command: Sequence[str],
        stdin: bytes,
        on_line: OnLine,
        timeout_s: float,
        feed: Feed = nothing_more,
    ) -> Completed:
        deadline = time.monotonic() + timeout_s
        with _refusals(f"cannot run {command[0]}"):
            process = subprocess.Popen(
                list(command),
                cwd=self._home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        with process:
            try:
                return _converse(process, stdin, on_line, deadline, feed)
            except TimeoutError as exc:
                raise TransportError(f"{command[0]} did not finish within {timeout_s:g} s") from exc
            finally:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)

    def upload(self, local: Path, remote: str) -> None:
        with _refusals(f"cannot write {remote}"):
            shutil.copyfile(local, self._home / remote)

    def download(self, remote: str, local: Path, max_bytes: int) -> None:
        with _refusals(f"cannot read {remote}"):
            size = (self._home / remote).stat().st_size
            if size > max_bytes:
                raise TransportError(f"{remote}: expected at most {max_bytes} bytes, got {size}")
            shutil.copyfile(self._home / remote, local)

    def size(self, remote: str) -> int | None:
        try:
            return (self._home / remote).stat().st_size
        except FileNotFoundError:
            return None

    def mkdirs(self, remote: str) -> None:
        with _refusals(f"cannot make folder {remote}"):
            (self._home / remote).mkdir(parents=True, exist_ok=True)

    def rename(self, source: str, target: str) -> None:
        with _refusals(f"cannot rename {source}"):
            (self._home / source).replace(self._home / target)

    def close(self) -> None:
        """Nothing is held open."""


def _converse(
    process: subprocess.Popen[bytes], stdin: bytes, on_line: OnLine, deadline: float, feed: Feed
) -> Completed:
    if process.stdin is None or process.stdout is None or process.stderr is None:
        raise ValueError("the command needs all three pipes")
    lines, stderr = LineSplitter(on_line), b""
    source = _Stdin(process.stdin, stdin, feed)
    with selectors.DefaultSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map():
            # Neither waits for the other: a command may speak before it has read everything.
            if full := source.fill():
                selector.register(process.stdin, selectors.EVENT_WRITE)
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if full:
                selector.unregister(process.stdin)
            if not ready:
                raise TimeoutError
            for key, events in ready:
                if events & selectors.EVENT_WRITE:
                    continue
                data = os.read(key.fd, 1 << 16)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    lines.feed(data)
                else:
                    stderr = (stderr + data)[-MAX_STDERR_BYTES:]
    lines.end()
    try:
        status = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as exc:
        raise TimeoutError from exc
    return Completed(max(status, -1), stderr.decode("utf-8", "replace"))


class _Stdin:
    """What a command reads, written as far as it takes it."""

    def __init__(self, stream: IO[bytes], first: bytes, feed: Feed) -> None:
        self._stream = stream
        self._rest = memoryview(first)
        self._feed = feed
        os.set_blocking(stream.fileno(), False)

    def fill(self) -> bool:
        """Whether there is more, which does not fit yet."""
        while not self._stream.closed:
            if not self._rest:
                piece = self._feed()
                if piece == b"":
                    return False
                if piece is None:
                    self._stream.close()
                    continue
                self._rest = memoryview(piece)
            try:
                self._rest = self._rest[os.write(self._stream.fileno(), self._rest) :]
            except BlockingIOError:
                return True
            except BrokenPipeError:  # a command that does not read; its exit status tells
                self._stream.close()
        return False


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        full = exc.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space there, or choose another `root` in the device file" if full else ""
        raise TransportError(f"{what}: {exc.strerror or exc}{remedy}") from exc
