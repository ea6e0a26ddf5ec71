"""Probe files that are no text, or more than anybody meant: refused with their place, before they fill the memory."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from toggle_edge.errors import ProbeError
from toggle_edge.probes.files import MAX_FILE_BYTES, MAX_JSON_BYTES, MAX_LINE_BYTES, lines_of, whole


def refusal(path: Path) -> str:
    with pytest.raises(ProbeError) as caught:
        list(lines_of(path))
    assert caught.value.exit_code == 2
    assert str(path) in str(caught.value)
    return str(caught.value)


def sparse(path: Path, size: int) -> Path:
    """A file of NUL bytes that takes no room on the disk."""
    with path.open("wb") as stream:
        stream.truncate(size)
    return path


def test_lines_are_numbered_and_a_mark_at_the_beginning_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\r\n\ntwo \u2028 \x85three".encode())
    assert list(lines_of(path)) == [(1, "one"), (2, ""), (3, "two \u2028 \x85three")]
    assert whole(path) == "one\r\n\ntwo \u2028 \x85three"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("a text\n".encode("utf-16"), 1, "got UTF-16; save it as UTF-8"),
        ("a text\n".encode("utf-16-le"), 1, "got a NUL byte; if it is UTF-16"),
        (b"fine\nnot\0fine\n", 2, "got a NUL byte"),
        ("fine\ncaf\xe9\n".encode("latin-1"), 2, "got byte 0xe9 at 4"),
        (b"fine\n\xed\xa0\x80\n", 2, "got byte 0xed at 1"),  # half of a surrogate pair
        (b"fine\nfine\n" + b"x" * (MAX_LINE_BYTES + 1), 3, f"lines of at most {MAX_LINE_BYTES} bytes"),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_line(
    tmp_path: Path, content: bytes, line: int, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    said = refusal(path)
    assert f"{path}:{line}: " in said
    assert message in said


def test_a_line_may_be_as_long_as_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * (MAX_LINE_BYTES - 1) + b"\ny\n")
    assert [len(text) for _, text in lines_of(path)] == [MAX_LINE_BYTES - 1, 1]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "absent")
    assert "got a folder" in refusal(tmp_path)
    (tmp_path / "empty").touch()
    assert "the file is empty" in refusal(tmp_path / "empty")
    assert "cannot be read" in refusal(tmp_path / "a\0b")
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 5000))
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    assert "expected a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("size", [1 << 30, MAX_FILE_BYTES + 1, MAX_FILE_BYTES])
def test_a_huge_line_is_never_read_as_a_whole(tmp_path: Path, size: int) -> None:
    path = sparse(tmp_path / "huge.jsonl", size)
    tracemalloc.start()
    try:
        said = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert ("lines of at most" in said) == (size <= MAX_FILE_BYTES)
    assert peak < 4 * MAX_LINE_BYTES


def test_a_value_that_is_read_as_a_whole_has_a_lower_limit(tmp_path: Path) -> None:
    path = sparse(tmp_path / "huge.json", MAX_JSON_BYTES + 1)
    with pytest.raises(ProbeError, match=f"at most {MAX_JSON_BYTES} bytes, got {MAX_JSON_BYTES + 1}"):
        whole(path)
