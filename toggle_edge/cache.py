"""Where what can be made again is kept between commands: wheels for devices, skeletons of models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$TOGGLE_EDGE_CACHE`, or `~/.cache/toggle-edge`. Its content may be deleted at any time."""
    return Path(os.environ.get("TOGGLE_EDGE_CACHE") or Path.home() / ".cache" / "toggle-edge")
