"""Memory of a worker and its children, as Linux counts it: the peak, and what is resident at the end.

The peak is the kernel's own (`VmHWM`), so no moment is missed. While there are children, a thread adds up what is the
family's: the worker's resident pages and those that only a child holds, or each one's share of all (PSS). Neither
counts a page twice, so neither is more than the family holds, and the larger one is nearer.
"""

import os
import threading
from typing import Any, Dict, List, Optional

from toggle_runtime.emulation import emulated
from toggle_runtime.meters.cgroups import peak_of_group
from toggle_runtime.records import MemorySample
from toggle_runtime.tree import Tree

METHOD = "VmHWM of the worker process"
FAMILY_METHOD = (
    "the worker and what only its children hold, or the PSS of all, whichever is more, read every 20 ms"
)
INTERVAL_S = 0.02

_RESET_PEAK = "5"


class Watch:
    """Open it before the model is loaded, tell it when it is `loaded`, and ask for the `sample` at the end.

    `pid` is the process to watch, this one unless given: only its own process can tell its phases apart.
    """

    def __init__(self, tree: Optional[Tree] = None, pid: Optional[int] = None) -> None:
        self._tree = tree or Tree()
        self._pid = pid or os.getpid()
        self._group = peak_of_group(self._tree)
        self._loading: Optional[int] = None
        self._family = 0
        self._children = 0
        self._unread: Optional[str] = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()

    def loaded(self) -> None:
        """From here on a peak of its own counts, where the kernel lets us begin one."""
        loading = self._kilobytes("status").get("VmHWM")
        try:
            self._tree.write(f"proc/{self._pid}/clear_refs", _RESET_PEAK)
        except OSError:
            return  # the peak since the start is still right; that of generating alone is not known
        self._loading = loading

    def sample(self) -> MemorySample:
        """What there is to say now. Without a peak there is no number, and the reason."""
        reason = emulated(self._tree)
        if reason is not None:
            return MemorySample(None, METHOD, reason)
        self._look()
        status = self._kilobytes("status")
        if "VmHWM" not in status:
            return MemorySample(None, METHOD, f"/proc/{self._pid}/status has no VmHWM line in kB")
        own = max(status["VmHWM"], self._loading or 0)
        flags = [] if self._unread is None else [f"a child's memory could not be read: {self._unread}"]
        if status.get("VmSwap"):
            flags.append(f"{status['VmSwap'] / 1e6:.1f} MB were swapped out, and are not in the peak")
        group = peak_of_group(self._tree)
        return MemorySample(
            peak_bytes=max(own, self._family),
            method=FAMILY_METHOD if self._family > own else METHOD,
            generation_peak_bytes=None if self._loading is None else status["VmHWM"],
            steady_bytes=status.get("VmRSS"),
            anonymous_bytes=status.get("RssAnon"),
            file_bytes=status.get("RssFile"),
            shared_bytes=status.get("RssShmem"),
            pss_bytes=self._kilobytes("smaps_rollup").get("Pss"),
            children=self._children,
            # A peak that did not move is of something before.
            cgroup_peak_bytes=group if group is not None and group != self._group else None,
            flags=flags,
        )

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self._look()

    def _look(self) -> None:
        family = self._descendants()
        if not family:
            return
        maps = {pid: self._kilobytes("smaps_rollup", pid) for pid in (self._pid, *family)}
        # One that ended meanwhile holds nothing; one that may not be read is another matter.
        unread = [pid for pid, held in maps.items() if "Pss" not in held and self._alive(pid)]
        if unread:
            self._unread = f"/proc/{unread[0]}/smaps_rollup"
        shares = sum(held.get("Pss", 0) for held in maps.values())
        alone = maps[self._pid].get("Rss", 0) + sum(
            maps[pid].get("Private_Clean", 0) + maps[pid].get("Private_Dirty", 0) for pid in family
        )
        self._children = max(self._children, len(family))
        self._family = max(self._family, shares, alone)

    def _descendants(self) -> List[int]:
        found: List[int] = []
        waiting = [self._pid]
        while waiting:
            for path in self._tree.glob(f"proc/{waiting.pop()}/task/*/children"):
                children = [int(word) for word in (self._tree.known(path) or "").split()]
                found += children
                waiting += children
        return found

    def _alive(self, pid: int) -> bool:
        state = (self._tree.known(f"proc/{pid}/stat") or "").rpartition(")")[2].split()
        return bool(state) and state[0] not in ("Z", "X")

    def _kilobytes(self, name: str, pid: Optional[int] = None) -> Dict[str, int]:
        return kilobytes(self._tree.known(f"proc/{pid or self._pid}/{name}") or "")


def kilobytes(text: str) -> Dict[str, int]:
    """The lines `Name: N kB` of a status file, in bytes. What is not such a line is left out."""
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[0].isdigit() and words[1] == "kB":
            found[key] = int(words[0]) * 1024
    return found


def why_unavailable(tree: Tree) -> Optional[str]:
    """Why the memory of a worker could not be told here; None where it could."""
    reason = emulated(tree)
    if reason is None and "VmHWM" not in kilobytes(tree.known("proc/self/status") or ""):
        return "/proc/self/status has no VmHWM line in kB"
    return reason
