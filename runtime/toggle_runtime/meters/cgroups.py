"""The peak of a process's control group, where it has one of its own: version 2 (`memory.peak`) or 1."""

from typing import Optional

from toggle_runtime.tree import Tree


def peak_of_group(tree: Tree) -> Optional[int]:
    """Bytes, of all processes of the group and with their page cache. None for the root group, which is the whole
    machine, and where the kernel does not tell."""
    for line in (tree.known("proc/self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if path == "/":
            continue
        if "memory" in controllers.split(","):
            files = [f"sys/fs/cgroup/memory{path}/memory.max_usage_in_bytes"]
        elif number == "0":
            files = [f"sys/fs/cgroup{path}/memory.peak", f"sys/fs/cgroup/unified{path}/memory.peak"]
        else:
            continue
        for file in files:
            text = tree.known(file)
            if text is not None and text.isdigit():
                return int(text)
    return None
