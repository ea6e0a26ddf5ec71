"""Writes a device file: data with the comments that its owner needs, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from toggle_edge.errors import DeviceFileError
from toggle_edge.fleet.device import Device

_COMMENTS = {
    "target": "inference engine and formats, as bundles name them",
    "host_key": "pinned: another key stops every command before anything is sent",
    "root": "our folder on the device, relative to the login folder unless absolute",
    "python": "3.8 or later",
    "packages": "a folder there whose numpy and onnxruntime are used, in place of wheels that we ship",
    "threads": "of the inference engine",
    "meters": "of energy, that this kind of board should have",
}
_SSH_KEYS = ("host", "port", "user", "host_key", "identity")


def device_text(device: Device, heading: Sequence[str] = ()) -> str:
    """The device as TOML that `load_device` reads back as an equal value, with `heading` as comments on top."""
    keys = ["name", "target", "transport", *(_SSH_KEYS if device.transport == "ssh" else ())]
    agent = None if device.identity else "empty: the keys that the SSH agent holds"
    comments = {**_COMMENTS, "identity": agent}
    lines = [f"# {line}" for line in heading]
    own = ["packages"] if device.packages else []
    for key in [*keys, "root", "python", *own, "threads", "meters"]:
        lines.append(_line(key, getattr(device, key), comments.get(key)))
    limits = {name: getattr(device.budget, name) for name in type(device.budget).__slots__}
    lines += ["", "[labels] # free, for choosing devices", *_entries(device.labels)]
    if any(limit is not None for limit in limits.values()):
        known = {name: limit for name, limit in limits.items() if limit is not None}
        lines += ["", "[budget] # hard limits", *_entries(known)]
    else:
        lines += [
            "",
            "# Hard limits. A candidate that breaks one is not selected for this device.",
            "# [budget]",
        ]
        lines += ["# decode_ms = 50.0", "# memory_bytes = 2_000_000_000", "# energy_mj_per_token = 200.0"]
    if device.jump is not None:
        lines += ["", "[jump] # the host that it is reached through"]
        lines += [_line(key, getattr(device.jump, key), None) for key in _SSH_KEYS]
    if device.meter is not None:
        given = {
            key: value for key, value in dataclasses.asdict(device.meter).items() if value not in (None, [])
        }
        lines += ["", "[meter] # outside of the device, measures its energy", *_entries(given)]
    if device.capabilities:
        lines += ["", f"# What was found there; `toggle-edge device doctor {device.name}` looks again."]
        lines += ["[capabilities]", *_entries(device.capabilities)]
    return "\n".join(lines) + "\n"


def write_device_file(path: Path, text: str, *, replace: bool) -> None:
    """Write it in one step. Raises DeviceFileError for a file that is there already unless `replace`, or when the
    folder cannot be written."""
    # No dot in front: a process that is killed here must leave something that people see.
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            if replace:
                partial.replace(path)
            else:
                _link(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as exc:
        raise DeviceFileError(f"{path}: cannot be written: {exc}") from exc


def require_new(path: Path) -> None:
    """Raises DeviceFileError for a file that is there already: better known before a device is asked anything."""
    if path.exists():
        raise DeviceFileError(f"{path}: is there already; give --replace to write it anew")


def _link(partial: Path, path: Path) -> None:
    # Unlike a rename, this refuses to replace what somebody else wrote meanwhile.
    try:
        os.link(partial, path)
    except FileExistsError:
        require_new(path)
        raise


def _entries(table: Mapping[str, object]) -> list[str]:
    return [_line(_key(key), value, None) for key, value in table.items()]


def _key(key: str) -> str:
    return key if key.replace("_", "").isalnum() and key.isascii() else _toml(key)


def _line(key: str, value: object, comment: str | None) -> str:
    return f"{key} = {_toml(value)}" + (f" # {comment}" if comment else "")


def _toml(value: object) -> str:
    # JSON's texts, numbers and lists are TOML's too, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
