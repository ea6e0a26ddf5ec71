"""What the control plane can say about its device, from the standard library and `/proc` and `/sys` alone.

A value that cannot be read says `unavailable: why`; it is never guessed.
"""

import os
import platform
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

from toggle_runtime import PROTOCOL_VERSION, __version__, lease, meters
from toggle_runtime.conditions import texts
from toggle_runtime.deployment import describe
from toggle_runtime.layout import foreign
from toggle_runtime.meters.memory import METHOD, why_unavailable
from toggle_runtime.power_sources import power_sources
from toggle_runtime.records import RECORD_VERSION, Manifest
from toggle_runtime.tree import Tree
from toggle_runtime.trust import revoked_keys, trusted_keys

_SHOWN = 20
"""Names of a root that is somebody's home folder: enough to see that it is."""


def gather(root: Path) -> Dict[str, Any]:
    """Facts about interpreter and machine; free bytes are those of the file system that holds `root`."""
    libc, libc_version = platform.libc_ver()
    facts: Dict[str, Any] = {
        "agent_version": __version__,
        "protocol": PROTOCOL_VERSION,
        "manifest_versions": list(Manifest.READABLE),
        "record_version": RECORD_VERSION,
        "trusted_keys": trusted_keys(root),
        "revoked_keys": revoked_keys(root),
        **describe(root),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "libc": libc,
        "libc_version": libc_version,
        "system": platform.system(),
        "release": platform.release(),
        "hostname": socket.gethostname(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "free_disk_bytes": shutil.disk_usage(_existing(root)).free,
        "conditions": texts(Tree()),
        "board": board(),
        "clock_s": time.time(),
        "lease": _lease(root),
        "root_foreign": _foreign(root),
        "root_writable": os.access(str(_existing(root)), os.W_OK | os.X_OK),
        "root_executable": not os.statvfs(str(_existing(root))).f_flag & getattr(os, "ST_NOEXEC", 0),
        "energy_meters": meters.told(Tree()),
        "memory_meter": _told(METHOD, why_unavailable(Tree())),
        "power_sources": power_sources(),
    }
    modules = foreign_modules()
    if modules is not None:
        facts["modules"] = modules
    return facts


def foreign_modules() -> Optional[List[str]]:
    """Imported top-level modules that are neither standard library nor this package.

    None where the interpreter (before 3.10) cannot name its standard library.
    """
    known = getattr(sys, "stdlib_module_names", None)
    if known is None:
        return None
    names = {name.partition(".")[0] for name in sys.modules}
    return sorted(names - set(known) - {"toggle_runtime", "__main__"})


def cpu_model() -> str:
    """The processor's name as the kernel gives it (x86), or its part number (ARM)."""
    text = _read("/proc/cpuinfo")
    for key in ("model name", "Model", "CPU part"):
        for line in text.splitlines():
            if line.partition(":")[0].strip() == key:
                return line.partition(":")[2].strip()
    return text if text.startswith("unavailable") else "unavailable: no model in /proc/cpuinfo"


def board() -> str:
    """The board's model as its device tree has it (ARM), or its maker's name for it (x86)."""
    for path in ("/proc/device-tree/model", "/sys/class/dmi/id/product_name"):
        text = _read(path).rstrip("\0")
        if text and not text.startswith("unavailable"):
            return text
    return "unavailable: neither a device tree nor DMI names this board"


def _told(method: str, reason: Optional[str]) -> str:
    return method if reason is None else f"unavailable: {reason}"


def _foreign(root: Path) -> List[str]:
    try:
        return foreign(root)[:_SHOWN]
    except OSError as exc:
        return [f"unavailable: {root}: {exc.strerror}"]


def _lease(root: Path) -> Dict[str, str]:
    """Who holds the device, empty when nobody does; `unavailable` is why that cannot be told."""
    try:
        return {key: str(value) for key, value in lease.holder(root).items()}
    except OSError as exc:
        return {"unavailable": f"{root / 'lease'}: {exc.strerror}"}


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as exc:
        return f"unavailable: {path}: {exc.strerror}"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path
