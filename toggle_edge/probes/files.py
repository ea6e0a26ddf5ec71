"""Text files that nobody vouches for: read line by line within limits, UTF-8 only."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from toggle_edge.errors import ProbeError

__all__ = ["MAX_FILE_BYTES", "MAX_JSON_BYTES", "MAX_LINE_BYTES", "check_file", "lines_of", "whole"]

MAX_FILE_BYTES = 256 << 20
MAX_JSON_BYTES = 32 << 20
"""Of a file that is one JSON value, which is read as a whole."""
MAX_LINE_BYTES = 1 << 20

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """The file's lines without their ends, numbered from 1. A byte order mark of UTF-8 is dropped.

    Raises ProbeError for what is not a regular file, an empty or too large one, a line that is too long, NUL bytes
    and anything but UTF-8.
    """
    check_file(path)
    try:
        with path.open("rb") as stream:
            number = 0
            # With a limit: a line may be as long as the file.
            while line := stream.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise ProbeError(
                        f"{path}:{number}: expected lines of at most {MAX_LINE_BYTES} bytes, got a longer one; "
                        "is this text, with one passage a line?"
                    )
                yield number, _decoded(line, f"{path}:{number}", first=number == 1).rstrip("\r\n")
    except OSError as exc:
        raise ProbeError(f"probes {path}: cannot be read: {exc.strerror}; pass another --probes") from exc


def whole(path: Path) -> str:
    """All of a small file's text. Raises ProbeError as `lines_of` does."""
    check_file(path, MAX_JSON_BYTES)
    try:
        content = path.read_bytes()
    except OSError as exc:
        raise ProbeError(f"probes {path}: cannot be read: {exc.strerror}; pass another --probes") from exc
    return _decoded(content, f"probes {path}", first=True)


def check_file(path: Path, most: int = MAX_FILE_BYTES) -> None:
    """Raises ProbeError for what is not a regular file, and for one that is empty or larger than `most` bytes."""
    try:
        if path.is_dir():
            raise ProbeError(f"probes {path}: expected a file, got a folder; name the file in it")
        size = path.stat().st_size
        regular = path.is_file()
    except (OSError, ValueError) as exc:  # a name with a NUL is a ValueError
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise ProbeError(f"probes {path}: cannot be read: {reason}; pass another --probes") from exc
    if not regular:
        raise ProbeError(f"probes {path}: expected a regular file; copy it to one")
    if not size:
        raise ProbeError(f"probes {path}: expected texts, the file is empty; pass another --probes")
    if size > most:
        raise ProbeError(f"probes {path}: expected at most {most} bytes, got {size}; use a part of it")


def _decoded(content: bytes, where: str, *, first: bool) -> str:
    if first and content.startswith(_UTF16):
        raise ProbeError(f"{where}: expected UTF-8, got UTF-16; save it as UTF-8")
    if b"\0" in content:
        raise ProbeError(
            f"{where}: expected UTF-8 text, got a NUL byte; if it is UTF-16, save it as UTF-8, else it is no text"
        )
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ProbeError(
            f"{where}: expected UTF-8, got byte 0x{content[exc.start]:02x} at {exc.start + 1} "
            f"({exc.reason}); save it as UTF-8"
        ) from exc
    return text.removeprefix("\ufeff") if first else text
