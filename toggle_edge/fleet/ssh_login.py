"""Logging in over SSH: the host key is compared before anything is sent, then the client's keys are offered."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko

from toggle_edge.errors import HostKeyError, TransportError, TransportLostError
from toggle_edge.fleet.device import Device, Jump
from toggle_edge.fleet.ssh_links import AnyLink, Link, Tunnel, watched
from toggle_edge.fleet.transport import SILENCE_S

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
"""Preferred, where both sides have them: one pass over the data encrypts and authenticates it."""

_LONGEST_S = 60.0
"""Longest login of a device that keeps talking: key exchange takes a small one seconds."""


@dataclass(frozen=True, slots=True)
class OfferedKey:
    """A host key as its device offered it: `kind` such as `ssh-ed25519`, fingerprint as `ssh-keygen -lf` prints it."""

    kind: str
    fingerprint: str


def offered_key(host: str, port: int, jump: Jump | None = None) -> OfferedKey:
    """Exchange keys with the sshd there, and go away before anybody is authenticated (but for `jump`, if it is through
    one: that is logged in to).

    Raises TransportLostError when nobody answers, or not in SSH.
    """
    where = f"{host}:{port}"
    client = _negotiated(where, _opened(where, host, port, jump))
    try:
        key = client.get_remote_server_key()
        return OfferedKey(key.get_name(), key.fingerprint)
    finally:
        client.close()


def login(device: Device, where: str) -> tuple[paramiko.Transport, AnyLink]:
    """An authenticated connection to a device, and what it runs over. `where` begins every error message.

    Raises HostKeyError for another host key, TransportError when refused, TransportLostError when unreachable; all of
    them for the host in between too.
    """
    return _logged_in(device, where, device.jump)


def _logged_in(end: Device | Jump, where: str, jump: Jump | None) -> tuple[paramiko.Transport, AnyLink]:
    with _client_keys(end, where) as keys:
        link = _opened(where, end.host, end.port, jump)
        client = _negotiated(where, link)
        try:
            key = client.get_remote_server_key()
            if key.fingerprint != end.host_key:
                raise HostKeyError(
                    f"{where}: expected host key {end.host_key}, got {key.get_name()} {key.fingerprint}; "
                    "nothing was sent. If the device was set up anew, check the fingerprint on the device itself "
                    "and put it into its device file"
                )
            with watched(link, client.close, SILENCE_S) as silent:
                _authenticate(client, end, keys, where, silent)
        except BaseException:
            client.close()
            raise
    return client, link


def private_key(path: Path) -> paramiko.PKey:
    """The key in that file. Raises ValueError when it cannot be read, is none, or wants a passphrase."""
    try:
        return paramiko.PKey.from_path(path.expanduser())
    except (OSError, ValueError, paramiko.SSHException, paramiko.UnknownKeyType) as exc:
        raise ValueError(f"identity {path}: expected a private key without passphrase: {exc}") from exc


def _opened(where: str, host: str, port: int, jump: Jump | None) -> AnyLink:
    if jump is None:
        try:
            return Link.open(host, port)
        except OSError as exc:
            raise TransportLostError(
                f"{where}: cannot connect: {exc}; is it on, and is sshd running?"
            ) from exc
    through = f"{where}, through {jump.user}@{jump.host}:{jump.port}"
    outer, _ = _logged_in(jump, through, None)
    try:
        return Tunnel.open(outer, host, port)
    except (paramiko.SSHException, EOFError, OSError) as exc:
        outer.close()
        raise TransportLostError(
            f"{through}: cannot connect from there: {exc or type(exc).__name__}; is the device on, and does that host "
            "allow TCP forwarding?"
        ) from exc


def _negotiated(where: str, link: AnyLink) -> paramiko.Transport:
    client = paramiko.Transport(link)
    client.banner_timeout = client.auth_timeout = _LONGEST_S
    options = client.get_security_options()
    options.ciphers = sorted(options.ciphers, key=lambda cipher: cipher not in CIPHERS)
    with watched(link, client.close, SILENCE_S) as silent:
        try:
            client.start_client(timeout=_LONGEST_S)
        except BaseException as exc:
            client.close()
            link.close()  # which paramiko leaves open before keys are exchanged
            if isinstance(exc, (paramiko.SSHException, EOFError, OSError)):
                raise _lost(where, exc, silent.is_set()) from exc
            raise
    return client


@contextmanager
def _client_keys(end: Device | Jump, where: str) -> Iterator[Sequence[paramiko.PKey]]:
    """The key file's key, or without one all that the SSH agent holds; the agent signs until the block ends."""
    if end.identity:
        try:
            key = private_key(Path(end.identity))
        except ValueError as exc:
            raise TransportError(f"{where}: {exc}") from exc
        yield [key]
        return
    agent = paramiko.Agent()
    try:
        keys = agent.get_keys()
        if not keys:
            raise TransportError(
                f"{where}: the device file names no identity, and no SSH agent here holds a key; "
                "run ssh-add, or put a private key's path into `identity`"
            )
        yield keys
    finally:
        agent.close()


def _authenticate(
    client: paramiko.Transport,
    end: Device | Jump,
    keys: Sequence[paramiko.PKey],
    where: str,
    silent: threading.Event,
) -> None:
    named = f"the key {end.identity}" if end.identity else f"all {len(keys)} keys of the SSH agent"
    for tried, key in enumerate(keys, 1):
        try:
            client.auth_publickey(end.user, key)
            return
        except (paramiko.SSHException, EOFError, OSError) as exc:
            if silent.is_set():  # which paramiko takes for a refusal
                raise _lost(where, exc, True) from exc
            if tried > 1 and not client.is_active():
                # A server allows few attempts (six, as OpenSSH comes), and an agent may hold many keys.
                raise TransportError(
                    f"{where}: the device stopped listening at the {tried}. of the SSH agent's {len(keys)} keys; "
                    "put the path of the right one into `identity`"
                ) from exc
            if not isinstance(exc, paramiko.AuthenticationException):
                raise _lost(where, exc) from exc
            if tried == len(keys):
                raise TransportError(
                    f"{where}: the device refused {named}: {exc}; is its public half in the "
                    "device's authorized_keys?"
                ) from exc


def _lost(where: str, exc: Exception, silent: bool = False) -> TransportLostError:
    why = f"silent for {SILENCE_S:g} s" if silent else str(exc) or type(exc).__name__
    return TransportLostError(f"{where}: the connection failed: {why}")
