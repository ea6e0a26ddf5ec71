"""The version of what lies under the device's root, so that an older agent leaves a newer root alone."""

import re
from pathlib import Path
from typing import List

from toggle_runtime.blobs import write_durably
from toggle_runtime.wire import RequestError

LAYOUT_VERSION = 1
"""Version of the folders and files under ROOT. The first release wrote none, and the same layout."""

LAYOUT = "layout"
OURS = frozenset(
    {
        "agent",
        "blobs",
        "clocks.json",
        "deployed",
        "deployment.json",
        "environments",
        "fence",
        "incoming",
        "keys",
        "lease",
        LAYOUT,
        "limits.json",
        "runs",
        "talk",
    }
)
"""Everything that we put into ROOT: what is added there must be named here, or `device remove` leaves it behind."""

_TEMPORARY = re.compile(r"\.[0-9]+\.tmp$")


def is_ours(name: str) -> bool:
    """Whether an entry of ROOT is one of `OURS`, or what a killed agent left of one that it was writing."""
    return _TEMPORARY.sub("", name) in OURS


def foreign(root: Path) -> List[str]:
    """What lies in ROOT and is not ours, sorted: a root should be a folder of its own."""
    return sorted(path.name for path in root.iterdir() if not is_ours(path.name)) if root.is_dir() else []


def require_layout(root: Path) -> None:
    """Write our version into a root that has none. Raises RequestError, kind `layout`, for a newer or damaged one."""
    path = root / LAYOUT
    try:
        with path.open("rb") as stream:
            text = stream.read(16).decode("ascii", "replace").strip()
    except FileNotFoundError:
        root.mkdir(parents=True, exist_ok=True)
        write_durably(path, f"{LAYOUT_VERSION}\n".encode("ascii"))
        return
    if text != str(LAYOUT_VERSION):
        raise RequestError(
            "layout",
            f"{root} has layout {text[:16]!r}, this agent knows {LAYOUT_VERSION}: it was written by another version "
            "of toggle-edge; upgrade this host, or choose another `root` in the device file",
        )
