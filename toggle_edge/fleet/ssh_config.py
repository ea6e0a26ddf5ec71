"""What `~/.ssh/config` says of a host. Read once, when a device is added: afterwards the device file says it all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import paramiko

from toggle_edge.errors import DeviceFileError
from toggle_edge.fleet.ssh_login import private_key


@dataclass(frozen=True, slots=True)
class SshSettings:
    """`host` is the name to connect to; None is what the file does not say. `identity` is the first of its
    IdentityFiles that is a private key without passphrase, `jump` its ProxyJump as it is written."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: str | None = None
    jump: str | None = None


def ssh_settings(host: str, path: Path | None = None) -> SshSettings:
    """What the user's SSH configuration (or the one at `path`) says of `host`. Without such a file: nothing.

    Raises DeviceFileError when it cannot be read, or when it leads through a ProxyCommand, which we cannot follow.
    """
    path = path or Path.home() / ".ssh" / "config"
    if not path.is_file():
        return SshSettings(host)
    try:
        found = paramiko.SSHConfig.from_path(str(path)).lookup(host)
        port = int(found["port"]) if "port" in found else None
    except (OSError, ValueError, paramiko.SSHException) as exc:
        raise DeviceFileError(f"{path}: expected an SSH configuration: {exc}") from exc
    name, user = str(found["hostname"]), found.get("user")
    if found.get("proxycommand", "none") != "none":
        raise DeviceFileError(
            f"{path}: {host} is reached through a ProxyCommand, expected a ProxyJump or nothing; forward a port to it "
            "by other means, and give --host 127.0.0.1 with that --port"
        )
    jump = found.get("proxyjump", "none")
    identities = (each for each in found.get("identityfile", []) if _is_key(Path(each)))
    return SshSettings(name, user, port, next(identities, None), None if jump == "none" else jump)


def _is_key(path: Path) -> bool:
    try:
        private_key(path)
    except ValueError:
        return False
    return True
