"""Device templates: what is the same on every board of a kind. Data in `devices/templates/`, nothing else."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import DeviceFileError
from toggle_edge.fleet.device import device_folders
from toggle_edge.strict_tables import nearest

HOST_KEY_FOLDER = "/etc/ssh"


@dataclass(frozen=True)
class Template:
    """What `device add` fills in unless it is given. `host_key_folder` is where the board's sshd keeps its host keys,
    `advice` what its owner should know: comments in the device file."""

    name: str
    summary: str
    port: int = 22
    python: str = "python3"
    root: str = "toggle-edge"
    threads: int = 1
    meters: list[str] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    host_key_folder: str = HOST_KEY_FOLDER


def template_names() -> list[str]:
    """The names of all templates, sorted."""
    return sorted(_paths())


def load_template(name: str) -> Template:
    """A template by name. Raises DeviceFileError for an unknown one, and for a file that is not a template."""
    paths = _paths()
    if name not in paths:
        raise DeviceFileError(
            f"template {name!r}: expected one of {', '.join(sorted(paths))}{nearest(name, paths)}"
        )
    path = paths[name]
    try:
        data: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return from_data(Template, {**data, "name": name})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecordError) as exc:
        raise DeviceFileError(f"{path}: expected a device template in TOML: {exc}") from exc


def _paths() -> dict[str, Path]:
    # Reversed: as with devices, the user's own come before those that are shipped.
    folders = [folder / "templates" for folder in reversed(device_folders())]
    return {path.stem: path for folder in folders for path in folder.glob("*.toml")}
