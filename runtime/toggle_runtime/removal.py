"""Takes everything of ours off the device, and nothing else: the root may lie in a folder that holds other things.

Under the lease, so no run is under way. Folders are removed by name and symbolic links as links, wherever they lead.
"""

import shutil
import stat
from pathlib import Path
from typing import Any, Dict

from toggle_runtime import lease
from toggle_runtime.layout import LAYOUT, is_ours, require_layout
from toggle_runtime.wire import RequestError


def remove(root: Path, owner: str) -> Dict[str, Any]:
    """Remove what is ours under `root`, and `root` itself if nothing else is in it.

    Returns the names in it that were `removed`, and those `left` since they are not ours. May be repeated when it was
    interrupted. Raises RequestError: kind `layout` for a root without a layout file of ours, kind `lease` while a run
    holds the device.
    """
    if not (root / LAYOUT).is_file() or (root / LAYOUT).is_symlink():
        raise RequestError(
            "layout",
            f"{root} has no `{LAYOUT}` file of ours: expected a root that toggle-edge has used; nothing was removed, "
            "check `root` in the device file",
        )
    require_layout(root)  # another version's root may hold what we do not know
    removed = []
    with lease.hold(root, owner, "remove"):
        for path in sorted(root.iterdir(), key=_last_things_last):
            if is_ours(path.name):
                _remove(path)
                removed.append(path.name)
    left = sorted(path.name for path in root.iterdir())
    if not left and not root.is_symlink():
        root.rmdir()
    return {"removed": sorted(removed), "left": left}


def _last_things_last(path: Path) -> int:
    # Whoever is interrupted must be able to repeat it: our mark goes last, and the lease just before.
    return {LAYOUT: 2, "lease": 1, "fence": 1}.get(path.name, 0)


def _remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path)  # which neither follows links nor takes one for a folder
    else:
        path.unlink()
