"""A device file: who the device is and how to reach it. Pure data; nothing here talks to it."""

from __future__ import annotations

import dataclasses
import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toggle_runtime.meters.external import ExternalMeter
from toggle_runtime.records import RecordError, from_data

from toggle_edge.errors import DeviceFileError

TRANSPORTS = ("local", "ssh")

DEFAULT_QUOTA_BYTES = 8 << 30

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "str": ((str,), "a text"),
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
}
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_ADDRESS = re.compile(r"[^\s-]\S*")
"""A host or user: neither can be taken for an option of the commands that people are told to give."""

_TABLES = ("labels", "budget", "meter", "meters", "capabilities", "jump")
"""Fields that are read by themselves; all others are single values."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A device's hard limits; None is no limit."""

    decode_ms: float | None = None
    memory_bytes: int | None = None
    energy_mj_per_token: float | None = None


@dataclass(frozen=True, slots=True)
class Jump:
    """A host that a device is reached through; its key is pinned as the device's is."""

    host: str = ""
    port: int = 22
    user: str = ""
    host_key: str = ""
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Device:
    """One device. `root` is our folder on it, relative to the login folder unless absolute.

    `host_key` is the pinned fingerprint as `ssh-keygen -lf` prints it (`SHA256:...`), `identity` the private
    key file (empty: the SSH agent's keys), `python` the interpreter that runs the agent, `packages` a folder
    there whose numpy and onnxruntime workers use (empty: wheels that we ship), `quota_bytes` what our files may take
    there beside what is deployed. `meter` is one outside of the device that measures its energy,
    None for what it has itself; `meters` are the energy meters that the board should have,
    `capabilities` what `device add` found there, for people: nothing is decided by it later. Host fields are unused
    by the local transport.
    """

    name: str
    target: str = "onnx-cpu"
    transport: str = "ssh"
    host: str = ""
    port: int = 22
    user: str = ""
    host_key: str = ""
    identity: str = ""
    root: str = "toggle-edge"
    python: str = "python3"
    packages: str = ""
    threads: int = 1
    quota_bytes: int = DEFAULT_QUOTA_BYTES
    labels: Mapping[str, str] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    meter: ExternalMeter | None = None
    meters: tuple[str, ...] = ()
    capabilities: Mapping[str, str | int] = field(default_factory=dict)
    jump: Jump | None = None

    def __post_init__(self) -> None:
        self._require(_NAME.fullmatch(self.name), "name", "a plain name", self.name)
        self._require(self.transport in TRANSPORTS, "transport", f"one of {TRANSPORTS}", self.transport)
        self._require(self.threads > 0, "threads", "at least 1", self.threads)
        self._require(self.quota_bytes >= 0, "quota_bytes", "0 or more", self.quota_bytes)
        self._require(
            self.root and not self.root.startswith("~"),
            "root",
            "a folder, absolute or relative to the login folder (without `~`)",
            self.root,
        )
        self._require(self.python, "python", "an interpreter", self.python)
        self._require(
            not self.packages or (self.packages.startswith("/") and self.packages.isprintable()),
            "packages",
            "an absolute folder of the device that has numpy and onnxruntime, or nothing",
            self.packages,
        )
        self._require(0 < self.port < 65536, "port", "1 to 65535", self.port)
        if self.transport == "ssh":
            self._require_way(self, "")
            if self.jump is not None:
                self._require(0 < self.jump.port < 65536, "jump.port", "1 to 65535", self.jump.port)
                self._require_way(self.jump, "jump.")

    def _require_way(self, end: Device | Jump, prefix: str) -> None:
        for key in ("host", "user"):
            value = getattr(end, key)
            expected = "a value without spaces that does not begin with -, since transport is ssh"
            self._require(_ADDRESS.fullmatch(value), prefix + key, expected, value)
        self._require(
            is_fingerprint(end.host_key),
            f"{prefix}host_key",
            "the pinned fingerprint SHA256:... (on the device: "
            "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub)",
            end.host_key,
        )

    def _require(self, holds: object, key: str, expected: str, value: object) -> None:
        if not holds:
            raise DeviceFileError(f"device {self.name!r}: {key}: expected {expected}, got {value!r}")


def is_plain_name(text: str) -> bool:
    """Whether a device may be called so: letters, digits, dots and dashes, which are safe in paths and commands."""
    return _NAME.fullmatch(text) is not None


def is_fingerprint(text: str) -> bool:
    """Whether it is a SHA-256 fingerprint as OpenSSH prints it."""
    return _FINGERPRINT.fullmatch(text) is not None


def load_device(source: str | Path) -> Device:
    """Read a device by file path, or by name from `devices/`. Raises DeviceFileError."""
    path = device_path(source)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise DeviceFileError(f"{path}: expected a device file in TOML: {exc}") from exc
    try:
        budget = _fields(Budget, _table(data.pop("budget", {}), "budget"), "budget.")
        jump = data.pop("jump", None)
        if jump is not None:
            jump = Jump(**_fields(Jump, _table(jump, "jump"), "jump."))
        meter = data.pop("meter", None)
        if meter is not None:
            meter = from_data(ExternalMeter, _table(meter, "meter"))
        labels = _table(data.pop("labels", {}), "labels")
        for key, value in labels.items():
            _expect(isinstance(value, str), f"labels.{key}", "a text", value)
        meters = data.pop("meters", [])
        texts = isinstance(meters, list) and all(isinstance(meter, str) for meter in meters)
        _expect(texts, "meters", "a list of texts", meters)
        capabilities = _table(data.pop("capabilities", {}), "capabilities")
        for key, value in capabilities.items():
            holds = isinstance(value, str | int) and not isinstance(value, bool)
            _expect(holds, f"capabilities.{key}", "a text or an integer", value)
        return Device(
            **{"name": path.stem, **_fields(Device, data, "")},
            budget=Budget(**budget),
            labels=labels,
            meter=meter,
            meters=tuple(meters),
            capabilities=capabilities,
            jump=jump,
        )
    except (DeviceFileError, RecordError) as exc:
        raise DeviceFileError(f"{path}: {exc}") from None


def device_names() -> list[str]:
    """The names of all device files that `load_device` finds, sorted."""
    return sorted({path.stem for folder in device_folders() for path in folder.glob("*.toml")})


def device_path(source: str | Path) -> Path:
    """The file of a device that is named, or given by path. Raises DeviceFileError when no file has that name."""
    path = Path(source)
    if path.suffix == ".toml" or path.is_file():
        return path
    for folder in device_folders():
        candidate = folder / f"{source}.toml"
        if candidate.is_file():
            return candidate
    nearest = difflib.get_close_matches(str(source), device_names(), 1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(device_names()) or 'none'}"
    raise DeviceFileError(f"device {str(source)!r}: expected a device file or a name in devices/; {hint}")


def device_folders() -> list[Path]:
    """Where device files are looked for, the first that has one wins."""
    package = Path(__file__).parents[1]
    # The user's own files first; then a wheel's data; then a checkout's.
    return [Path("devices"), package / "_data" / "devices", package.parent / "devices"]


def is_shipped(path: Path) -> bool:
    """Whether a device file is part of toggle-edge, rather than the user's."""
    own, *shipped = (folder.resolve() for folder in device_folders())
    return path.parent.resolve() != own and path.parent.resolve() in shipped


def _table(value: Any, key: str) -> dict[str, Any]:
    _expect(isinstance(value, dict), key, "a table", value)
    return dict(value)


def _fields(kind: type, data: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Check keys and types of a table against a dataclass's annotations (texts, since they are deferred)."""
    types = {f.name: str(f.type) for f in dataclasses.fields(kind) if f.name not in _TABLES}
    for key, value in data.items():
        if key not in types:
            nearest = difflib.get_close_matches(key, types, 1)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else f"known: {', '.join(sorted(types))}"
            raise DeviceFileError(f"unknown key {prefix}{key}; {hint}")
        wanted = types[key].removesuffix(" | None")
        allowed, expected = _TYPES[wanted]
        holds = isinstance(value, allowed) and not isinstance(value, bool)
        _expect(holds, prefix + key, expected, value)
        if kind is Budget:
            _expect(value > 0, prefix + key, "more than 0", value)
    return data


def _expect(holds: bool, key: str, expected: str, value: object) -> None:
    if not holds:
        raise DeviceFileError(f"{key}: expected {expected}, got {value!r}")
