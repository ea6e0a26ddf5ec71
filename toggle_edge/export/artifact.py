"""The exported model as files, ready to be bundled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artifact:
    """A folder with the graphs and one weight file per layer; runs as it is in the target's engine.

    `files` maps each path relative to `folder` to its size in bytes.
    """

    target: str
    folder: Path
    files: dict[str, int]

    @property
    def artifact_bytes(self) -> int:
        """The sum of the files. Weights that two graphs or two nodes share are one file, counted once."""
        return sum(self.files.values())


def artifact_in(target: str, folder: Path) -> Artifact:
    """Describe the files of an exported folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Artifact(
        target, folder, {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    )
