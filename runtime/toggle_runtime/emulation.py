"""Whether this process runs on the processor that it believes in.

Under user-mode emulation (qemu-user, Rosetta, box64) `/proc` is the host's: peak memory counts the emulator, CPU times
are of its translation, sensors are another machine's. A fake `/proc/cpuinfo` may hide it, and the emulator answers for
`/proc/self/exe`; what it does not answer for is the program of a thread, so the two are compared.
"""

import os
import sys
from typing import Optional

from toggle_runtime.tree import Tree

_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64", 22: "s390x", 21: "ppc64"}
_HEADER_BYTES = 20


def emulated(tree: Tree) -> Optional[str]:
    """Why figures of memory, processor and power are not this device's; None where the processor runs us itself, or
    where the kernel does not let us look."""
    believed = elf_machine(tree.head(sys.executable.lstrip("/"), _HEADER_BYTES))
    running = elf_machine(tree.head(f"proc/self/task/{os.getpid()}/exe", _HEADER_BYTES))
    if believed is None or running is None or believed == running:
        return None
    return (
        f"emulated: this Python is for {_name(believed)}, what runs it is a program for {_name(running)}, so memory, "
        "CPU and power figures are the emulator's and its host's"
    )


def elf_machine(header: bytes) -> Optional[int]:
    """The processor that a program is for (`e_machine`); None for what is no ELF file."""
    if len(header) < _HEADER_BYTES or header[:4] != b"\x7fELF":
        return None
    return int.from_bytes(header[18:20], "little" if header[5] == 1 else "big")


def _name(machine: int) -> str:
    return _MACHINES.get(machine, f"machine {machine}")
