"""The version of what lies under the device's root, so that an older agent leaves a newer root alone."""

from pathlib import Path

from toggle_runtime.blobs import write_durably
from toggle_runtime.wire import RequestError

LAYOUT_VERSION = 1
"""Version of the folders and files under ROOT. The first release wrote none, and the same layout."""


def require_layout(root: Path) -> None:
    """Write our version into a root that has none. Raises RequestError, kind `layout`, for a newer or damaged one."""
    path = root / "layout"
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
