"""SSH on paramiko, with a pinned host key and our own idea of when a link is dead.

paramiko's keepalive does not notice a link that went silent, and a blocked SFTP write may never return. So
every operation is watched: when the socket delivers nothing for `silence_s`, the connection is closed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import paramiko

from toggle_edge.errors import TransportError, TransportLostError
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.shell_words import joined
from toggle_edge.fleet.ssh_links import CONNECT_TIMEOUT_S, AnyLink
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

SILENCE_S = 15.0
"""Longest silence of a live link. An agent at work speaks every 2 s; a server acknowledges every write."""

_WRITE_BYTES = 32 << 10  # larger SFTP writes are split badly and collapse the throughput
_POLL_S = 0.2


def connect(device: Device, silence_s: float = SILENCE_S) -> Transport:
    """Connect, compare the host key with the pinned one before anything is sent, authenticate.

    Raises HostKeyError for another key, TransportError when refused, TransportLostError when unreachable.
    """
    where = f"device {device.name!r} ({device.user}@{device.host}:{device.port})"
    client, link = login(device, where)
    return SshTransport(client, link, where, silence_s)


class SshTransport:
    """One authenticated connection. After TransportLostError it is closed; connect again."""

    def __init__(self, client: paramiko.Transport, link: AnyLink, where: str, silence_s: float) -> None:
        self._client = client
        self._link = link
        self._where = where
        self._silence_s = silence_s
        self._sftp_client: paramiko.SFTPClient | None = None

    def run(self, command: Sequence[str], stdin: bytes, on_line: OnLine, timeout_s: float) -> Completed:
        deadline = time.monotonic() + timeout_s
        try:
            line = joined(command)
        except ValueError as exc:
            raise TransportError(f"{self._where}: {exc}") from exc
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

    @contextmanager
    def _watched(self, doing: str) -> Iterator[None]:
        """Close the link when it is silent for too long; turn what paramiko then raises into our errors."""
        done = threading.Event()
        silent = threading.Event()

        def watch() -> None:
            self._link.heard = time.monotonic()
            while not done.wait(_POLL_S):
                if time.monotonic() - self._link.heard > self._silence_s:
                    silent.set()
                    self._client.close()
                    return

        watchdog = threading.Thread(target=watch, daemon=True)
        watchdog.start()
        try:
            yield
        except TransportError:
            raise
        except FileNotFoundError as exc:
            raise TransportError(f"{self._where}: no such file on the device while {doing}") from exc
        except PermissionError as exc:
            raise TransportError(f"{self._where}: permission denied on the device while {doing}") from exc
        except (EOFError, OSError, paramiko.SSHException) as exc:
            why = f"silent for {self._silence_s:g} s" if silent.is_set() else (str(exc) or type(exc).__name__)
            if not silent.is_set() and self._refused(exc):
                raise TransportError(
                    f"{self._where}: the device answered {why!r} while {doing}; is its disk full?"
                ) from exc
            self._client.close()
            raise TransportLostError(f"{self._where}: the link was lost while {doing}: {why}") from exc
        finally:
            done.set()
            watchdog.join()

    def _refused(self, exc: Exception) -> bool:
        # An SFTP status without errno is all that OpenSSH gives for a full disk and the like.
        return type(exc) is OSError and exc.errno is None and self._client.is_active()
