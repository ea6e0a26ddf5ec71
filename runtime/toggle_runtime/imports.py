"""Imports from an environment whose disk may be full.

Python keeps what it compiled beside each module, and most versions do not look whether all was written: a file cut
short by a full disk is then taken for whole, and nothing imports that module ever again.
"""

import os
import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

FOUND = "found"
"""The file of an environment without packages of its own: the folder of the device that has them."""


def packages_of(environment: Path) -> Path:
    """The folder with the packages of a worker environment: itself, or the one of the device that it names."""
    try:
        return Path((environment / FOUND).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return environment


def use_environment(folder: Path) -> None:
    """Let this process import the packages of `folder`, after all else: nothing there may shadow the standard library
    or ourselves. In a folder that is not ours nothing is written."""
    packages = packages_of(folder)
    if packages != folder:
        sys.dont_write_bytecode = True
    hook = FileFinder.path_hook(
        (ExtensionFileLoader, EXTENSION_SUFFIXES),
        (_WholeLoader, SOURCE_SUFFIXES),
        (SourcelessFileLoader, BYTECODE_SUFFIXES),
    )
    sys.path_hooks.insert(0, hook)
    sys.path.append(str(packages))


class _WholeLoader(SourceFileLoader):
    """Keeps what it compiled whole or not at all, and does not trust what was kept otherwise."""

    def get_code(self, fullname: str) -> Any:
        try:
            return super().get_code(fullname)
        except EOFError:  # cut short by an earlier version, or by a loss of power
            Path(cache_from_source(self.path)).unlink()
            return super().get_code(fullname)

    def set_data(self, path: str, data: bytes, **_: Any) -> None:  # type: ignore[override]
        temporary = Path(f"{path}.{os.getpid()}.tmp")
        try:
            temporary.parent.mkdir(exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:  # it is compiled again next time
            try:
                temporary.unlink()
            except OSError:
                return
