"""SSH on paramiko, with a pinned host key and our own idea of when a link is dead.

Every operation is watched: when the socket delivers nothing for `silence_s`, the connection is closed. What is large
goes to the stdin of the agent, which says how far it is: SFTP asks for an answer to every 32 KiB.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import paramiko

from toggle_edge.errors import TransportError, TransportLostError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.shell_words import joined
from toggle_edge.fleet.ssh_links import CONNECT_TIMEOUT_S, AnyLink, watched
from toggle_edge.fleet.ssh_login import login
from toggle_edge.fleet.transport import (
    MAX_STDERR_BYTES,
    SILENCE_S,
    Completed,
    Feed,
    LineSplitter,
    OnLine,
    Transport,
    nothing_more,
)

_WRITE_BYTES = 32 << 10  # larger SFTP writes are split badly and collapse the throughput
_POLL_S = 0.2


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

    def run(
        self,
        command: Sequence[str],
        stdin: bytes,
        on_line: OnLine,
        timeout_s: float,
        feed: Feed = nothing_more,
    ) -> Completed:
        patience = _Patience(timeout_s, time.monotonic() + timeout_s)
        line = self._line(command)
        with self._watched(f"{command[0]} was running"):
            channel = self._client.open_session(timeout=CONNECT_TIMEOUT_S)
            try:
                channel.exec_command(line)
                lines = LineSplitter(on_line)
                # A command that does not read, or ends before it has read all: its exit status tells.
                if _sent(channel, stdin) and self._feed(channel, feed, lines, patience):
                    with suppress(OSError):
                        channel.shutdown_write()
                return self._collect(channel, lines, patience)
            finally:
                channel.close()

    def upload(self, local: Path, remote: str) -> None:
        with (
            self._watched(f"{remote} was being written"),
            local.open("rb") as source,
            self._sftp().open(remote, "wb") as target,
        ):
            target.set_pipelined(True)
            while chunk := source.read(_WRITE_BYTES):
                target.write(chunk)
            # Nobody waits for the answers to pipelined writes, so that one that was refused shows only here.
            kept = target.stat().st_size or 0
            if kept < source.tell():
                raise TransportError(
                    f"{self._where}: the device kept {kept} of {source.tell()} bytes of {remote}; is its disk full?"
                )

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

    def _collect(self, channel: paramiko.Channel, lines: LineSplitter, patience: _Patience) -> Completed:
        stderr = b""
        data: bytes | None = None
        while data != b"":
            try:
                data = _heard(channel)
                lines.feed(data)
            except TimeoutError:
                data = None
            while channel.recv_stderr_ready():
                stderr = (stderr + channel.recv_stderr(1 << 16))[-MAX_STDERR_BYTES:]
            patience.require(self._where)
        lines.end()
        status = channel.recv_exit_status()
        if status == -1 and not self._client.is_active():
            raise EOFError("the connection was closed")
        return Completed(status, stderr.decode("utf-8", "replace"))

    def _feed(self, channel: paramiko.Channel, feed: Feed, lines: LineSplitter, patience: _Patience) -> bool:
        """Send what `feed` gives, hearing what comes in between. Whether the command was there to the end of it."""
        while (piece := feed()) is not None:
            if not _sent(channel, piece):
                return False
            heard = bool(piece)
            while not heard or channel.recv_ready():
                try:
                    data = _heard(channel)
                except TimeoutError:
                    patience.require(self._where)
                    continue
                if not data:
                    return False
                lines.feed(data)
                heard = True
        return True

    def _line(self, command: Sequence[str]) -> str:
        try:
            return joined(command)
        except ValueError as exc:
            raise TransportError(f"{self._where}: {exc}") from exc

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


@dataclass(frozen=True, slots=True)
class _Patience:
    """How long a command may take, in seconds, and until when, on the monotonic clock."""

    seconds: float
    until: float

    def require(self, where: str) -> None:
        if time.monotonic() > self.until:
            raise TransportError(f"{where}: the command did not finish within {self.seconds:g} s")


def _sent(channel: paramiko.Channel, data: bytes) -> bool:
    """Send all of it. Whether there was somebody to send it to."""
    channel.settimeout(None)  # a full pipe is waited for; the watchdog knows a dead link
    try:
        channel.sendall(memoryview(data))
    except OSError:
        return False
    return True


def _heard(channel: paramiko.Channel) -> bytes:
    """Some of a command's stdout, nothing at its end. Raises TimeoutError after a while without any."""
    channel.settimeout(_POLL_S)
    data: bytes = channel.recv(1 << 16)
    return data
