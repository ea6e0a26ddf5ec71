"""`toggle-edge device add`, `doctor` and `remove`: what the command line calls of the fleet."""

from __future__ import annotations

from toggle_edge.fleet.registration import Added, AddOptions, Offer, add_device

__all__ = ["AddOptions", "Added", "Offer", "add_device"]
