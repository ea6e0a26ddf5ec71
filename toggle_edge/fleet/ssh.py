"""SSH on paramiko, with a pinned host key and our own idea of when a link is dead.

Every operation is watched: when the socket delivers nothing for `silence_s`, the connection is closed. Large files are
streamed to a small program there, which says how far it has written: SFTP asks for an answer to every 32 KiB.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import paramiko

from toggle_edge.errors import TransportError, TransportLostError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.shell_words import joined
from toggle_edge.fleet.ssh_links import CONNECT_TIMEOUT_S, SILENCE_S, AnyLink, watched
from toggle_edge.fleet.ssh_login import login
from toggle_edge.fleet.transport import (
    MAX_STDERR_BYTES,
    Completed,
    LineSplitter,
    OnBytes,
    OnLine,
    Transport,
    ignore_bytes,
)

CHUNK_BYTES = 4 << 20
"""What may be under way to the device at most, not yet written there: what a lost link can cost to send again."""

_STREAMED_BYTES = 1 << 18  # smaller files do not gain
_WRITE_BYTES = 32 << 10  # larger SFTP writes are split badly and collapse the throughput
_POLL_S = 0.2

# It writes at positions, so that one that is still at work after its link was lost does no harm to its successor; and
# to the disk as data arrives, since the commit that follows would wait for all of it.
_RECEIVER = """\
import json, os, sys, threading, time
def heading():
    text = b""
    while text[-1:] != b"\\n":
        byte = os.read(0, 1)
        if not byte:
            sys.exit()
        text += byte
    return json.loads(text.decode("utf-8"))
try:
    while True:
        path, at, end = heading()
        target = os.open(path, os.O_WRONLY | (0 if at else os.O_CREAT | os.O_TRUNC), 0o644)
        os.lseek(target, at, 0)
        print(at, flush=True)
        told, spoke, synced, syncing = at, time.monotonic(), at, None
        while at < end:
            rest = os.read(0, min(1 << 20, end - at))
            if not rest:
                sys.exit("the file ended early")
            while rest:
                written = os.write(target, rest)
                at, rest = at + written, rest[written:]
            if at - told >= 1 << 20 or time.monotonic() - spoke > 1 or at == end:
                told, spoke = at, time.monotonic()
                print(at, flush=True)
            if at - synced >= 1 << 25 and not (syncing and syncing.is_alive()):
                synced, syncing = at, threading.Thread(target=os.fdatasync, args=(target,))
                syncing.start()
        if syncing:
            syncing.join()
        os.close(target)
except OSError as exc:
    sys.exit(exc.strerror)
"""


def connect(device: Device, silence_s: float = SILENCE_S) -> Transport:
    """Connect, compare the host key with the pinned one before anything is sent, authenticate.

    Raises HostKeyError for another key, TransportError when refused, TransportLostError when unreachable.
    """
    where = f"device {device.name!r} ({device.user}@{device.host}:{device.port})"
    client, link = login(device, where)
    return SshTransport(client, link, where, device.python, silence_s)


class SshTransport:
    """One authenticated connection. After TransportLostError it is closed; connect again."""

    def __init__(
        self, client: paramiko.Transport, link: AnyLink, where: str, python: str, silence_s: float
    ) -> None:
        self._client = client
        self._python = python
        self._link = link
        self._where = where
        self._silence_s = silence_s
        self._sftp_client: paramiko.SFTPClient | None = None
        self._receiver: paramiko.Channel | None = None

    def run(self, command: Sequence[str], stdin: bytes, on_line: OnLine, timeout_s: float) -> Completed:
        deadline = time.monotonic() + timeout_s
        line = self._line(command)
        with self._watched(f"{command[0]} was running"):
            channel = self._client.open_session(timeout=CONNECT_TIMEOUT_S)
            try:
                channel.exec_command(line)
                with suppress(OSError):  # a command that does not read; its exit status tells
                    channel.sendall(stdin)
                    channel.shutdown_write()
                return self._collect(channel, LineSplitter(on_line), deadline, timeout_s)
            finally:
                channel.close()

    def upload(self, local: Path, remote: str, offset: int = 0, on_bytes: OnBytes = ignore_bytes) -> None:
        with self._watched(f"{remote} was being written"), local.open("rb") as source:
            source.seek(offset)
            if local.stat().st_size - offset >= _STREAMED_BYTES:
                self._stream(source, remote, offset, on_bytes)
                return
            with self._sftp().open(remote, "r+b" if offset else "wb") as target:
                target.seek(offset)
                target.set_pipelined(True)
                while chunk := source.read(_WRITE_BYTES):
                    target.write(chunk)
                    on_bytes(source.tell())

    def download(self, remote: str, local: Path, max_bytes: int) -> None:
        part = local.with_name(local.name + ".part")
        try:
            with self._watched(f"{remote} was being read"), self._sftp().open(remote, "rb") as source:
                size = source.stat().st_size
                if size is None or size > max_bytes:
                    raise TransportError(
                        f"{self._where}: {remote}: expected at most {max_bytes} bytes, got {size}"
                    )
                source.prefetch(size)
                with part.open("wb") as target:
                    # Counted, not trusted: the file may grow, or the server lie, after the stat.
                    while chunk := source.read(min(_WRITE_BYTES, size - target.tell())):
                        target.write(chunk)
            part.replace(local)
        finally:
            part.unlink(missing_ok=True)

    def size(self, remote: str) -> int | None:
        with self._watched(f"{remote} was being looked up"):
            try:
                size: int | None = self._sftp().stat(remote).st_size
                return size
            except FileNotFoundError:
                return None

    def mkdirs(self, remote: str) -> None:
        with self._watched(f"{remote} was being made"):
            sftp = self._sftp()
            path = ""
            for segment in remote.split("/"):
                path = f"{path}{segment}/"
                try:
                    sftp.stat(path)
                except FileNotFoundError:
                    with suppress(OSError):  # made by somebody else meanwhile; if not, the next step fails
                        sftp.mkdir(path)

    def rename(self, source: str, target: str) -> None:
        with self._watched(f"{source} was being renamed"):
            self._sftp().posix_rename(source, target)

    def close(self) -> None:
        self._client.close()

    def _sftp(self) -> paramiko.SFTPClient:
        if self._sftp_client is None:
            self._sftp_client = paramiko.SFTPClient.from_transport(self._client)
        if self._sftp_client is None:
            raise EOFError("no SFTP channel")
        return self._sftp_client

    def _collect(
        self, channel: paramiko.Channel, lines: LineSplitter, deadline: float, timeout_s: float
    ) -> Completed:
        channel.settimeout(_POLL_S)
        stderr = b""
        data: bytes | None = None
        while data != b"":
            try:
                data = channel.recv(1 << 16)
                lines.feed(data)
            except TimeoutError:
                data = None
            while channel.recv_stderr_ready():
                stderr = (stderr + channel.recv_stderr(1 << 16))[-MAX_STDERR_BYTES:]
            if time.monotonic() > deadline:
                raise TransportError(f"{self._where}: the command did not finish within {timeout_s:g} s")
        lines.end()
        status = channel.recv_exit_status()
        if status == -1 and not self._client.is_active():
            raise EOFError("the connection was closed")
        return Completed(status, stderr.decode("utf-8", "replace"))

    def _stream(self, source: BinaryIO, remote: str, offset: int, on_bytes: OnBytes) -> None:
        end = source.seek(0, os.SEEK_END)
        source.seek(offset)
        channel = self._receiving()
        sent, written = offset, -1  # until it is ready: what a link loses before would have to be sent again

        def take(line: bytes) -> None:
            nonlocal written
            text = line.strip()
            if text.isdigit() and max(written, offset) <= int(text) <= sent:
                written = int(text)
                on_bytes(written)

        def hear() -> None:
            answer = channel.recv(1 << 12)
            lines.feed(answer)
            if not answer:
                self._refuse(channel, remote, max(0, written))

        def send(data: bytes) -> None:
            with suppress(OSError):  # it ended, and its last words, which are heard next, say why
                channel.sendall(data)

        lines = LineSplitter(take)
        send((json.dumps([remote, offset, end]) + "\n").encode())
        while written < 0:
            hear()
        while chunk := source.read(min(_WRITE_BYTES, end - sent)):
            while channel.recv_ready() or sent + len(chunk) - written > CHUNK_BYTES:
                hear()
            send(chunk)
            sent += len(chunk)
        while written < end:
            hear()

    def _line(self, command: Sequence[str]) -> str:
        try:
            return joined(command)
        except ValueError as exc:
            raise TransportError(f"{self._where}: {exc}") from exc

    def _receiving(self) -> paramiko.Channel:
        """The channel to a program on the device that writes what it is sent: one for all files."""
        if self._receiver is None:
            self._receiver = self._client.open_session(timeout=CONNECT_TIMEOUT_S)
            program = f"exec({json.dumps(_RECEIVER)})"
            self._receiver.exec_command(self._line([self._python, "-I", "-S", "-c", program]))
        return self._receiver

    def _refuse(self, channel: paramiko.Channel, remote: str, written: int) -> None:
        self._receiver = None
        ended = self._collect(channel, LineSplitter(lambda line: None), time.monotonic() + 10.0, 10.0)
        channel.close()
        words = ended.stderr.strip()[-200:] or f"status {ended.status}"
        raise TransportError(
            f"{self._where}: the device answered {words!r} while {remote} was being written (bytes there: {written}); "
            f"is its disk full, and is {self._python!r} a Python 3.8 or later?"
        )

    @contextmanager
    def _watched(self, doing: str) -> Iterator[None]:
        """Close the link when it is silent for too long; turn what paramiko then raises into our errors."""
        with watched(self._link, self._client.close, self._silence_s) as silent:
            try:
                yield
            except TransportError:
                raise
            except FileNotFoundError as exc:
                raise TransportError(f"{self._where}: no such file on the device while {doing}") from exc
            except PermissionError as exc:
                raise TransportError(f"{self._where}: permission denied on the device while {doing}") from exc
            except (EOFError, OSError, paramiko.SSHException) as exc:
                why = (
                    f"silent for {self._silence_s:g} s" if silent.is_set() else str(exc) or type(exc).__name__
                )
                if not silent.is_set() and self._refused(exc):
                    raise TransportError(
                        f"{self._where}: the device answered {why!r} while {doing}; is its disk full?"
                    ) from exc
                self._client.close()
                raise TransportLostError(f"{self._where}: the link was lost while {doing}: {why}") from exc

    def _refused(self, exc: Exception) -> bool:
        # An SFTP status without errno is all that OpenSSH gives for a full disk and the like.
        return type(exc) is OSError and exc.errno is None and self._client.is_active()
