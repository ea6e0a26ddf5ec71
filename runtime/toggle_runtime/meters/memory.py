"""Peak resident memory of a process, as Linux counts it (`VmHWM` in `/proc/PID/status`)."""

from pathlib import Path
from typing import Optional

from toggle_runtime.records import MemorySample

METHOD = "VmHWM of the worker process"


def peak_bytes(status: str) -> Optional[int]:
    """The peak in the text of a `/proc/PID/status`, in bytes. None when the text does not tell."""
    for line in status.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if key == "VmHWM" and len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            return int(words[0]) * 1024
    return None


def peak_of_this_process(path: Path = Path("/proc/self/status")) -> MemorySample:
    """Its peak since it started, memory-mapped weights included."""
    try:
        peak = peak_bytes(path.read_text(encoding="ascii", errors="replace"))
    except OSError as exc:
        return MemorySample(None, METHOD, f"{path}: {exc.strerror}")
    if peak is None:
        return MemorySample(None, METHOD, f"{path} has no VmHWM line in kB")
    return MemorySample(peak, METHOD)
