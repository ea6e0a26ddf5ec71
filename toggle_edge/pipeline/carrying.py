"""What a person takes to a device that no host can reach."""

from __future__ import annotations

import hashlib
from pathlib import Path

from toggle_runtime.trust import key_line

from toggle_edge.errors import ConfigError
from toggle_edge.fleet.agent_client import agent_archive
from toggle_edge.signing import signing_key


def write_agent(output: Path, key: Path | None) -> dict[str, str | int | None]:
    """Write the agent into a new file, and with `key` this host's public key into another; say where and what.

    Raises ConfigError for a file that exists or cannot be written.
    """
    archive = agent_archive()
    _write(output, archive)
    if key is not None:
        ours = signing_key()
        _write(key, (key_line(ours.public, ours.name) + "\n").encode())
    return {
        "agent": str(output),
        "bytes": len(archive),
        "sha256": hashlib.sha256(archive).hexdigest(),
        "key": None if key is None else str(key),
    }


def _write(path: Path, data: bytes) -> None:
    try:
        with path.open("xb") as stream:
            stream.write(data)
    except FileExistsError as exc:
        raise ConfigError(
            f"{path}: expected a new file, it exists; remove it or choose another name"
        ) from exc
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written: {exc}") from exc
