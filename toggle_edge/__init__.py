"""toggle-edge: make language models fit edge devices under a contract that is checked on the device.

Public names are loaded when they are first used, so that importing the package costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toggle_edge.bundle import Bundle as Bundle
    from toggle_edge.bundle import read_bundle as read_bundle
    from toggle_edge.certify import Certificate as Certificate
    from toggle_edge.config import Config as Config
    from toggle_edge.config import Format as Format
    from toggle_edge.errors import ToggleEdgeError as ToggleEdgeError
    from toggle_edge.fleet.deploy import run_bundle as run_bundle
    from toggle_edge.fleet.device import Device as Device
    from toggle_edge.fleet.device import load_device as load_device
    from toggle_edge.model.load import load_model as load_model
    from toggle_edge.profiles import Profile as Profile
    from toggle_edge.profiles import load_profile as load_profile
    from toggle_edge.specification import specification_of as specification_of

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "bundle",
    "Certificate": "certify",
    "Config": "config",
    "Device": "fleet.device",
    "Format": "config",
    "load_device": "fleet.device",
    "load_model": "model.load",
    "load_profile": "profiles",
    "Profile": "profiles",
    "read_bundle": "bundle",
    "run_bundle": "fleet.deploy",
    "specification_of": "specification",
    "ToggleEdgeError": "errors",
}

__all__ = [
    "Bundle",
    "Certificate",
    "Config",
    "Device",
    "Format",
    "Profile",
    "ToggleEdgeError",
    "load_device",
    "load_model",
    "load_profile",
    "read_bundle",
    "run_bundle",
    "specification_of",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'toggle_edge' has no attribute {name!r}")
    return getattr(importlib.import_module(f"toggle_edge.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
