"""A blob is published when it is what it should be, from whatever was there before, and by whoever comes first."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime import arrivals
from toggle_runtime.arrivals import Arrival, remove_leftovers
from toggle_runtime.manifests import Blob

DATA = bytes(range(256)) * 4
BLOB = Blob(hashlib.sha256(DATA).hexdigest(), len(DATA))


def part_of(tmp_path: Path) -> Path:
    return tmp_path / "incoming" / f"{BLOB.sha256}.part"


def stored(tmp_path: Path) -> bytes | None:
    path = tmp_path / "blobs" / "sha256" / BLOB.sha256
    return path.read_bytes() if path.exists() else None


@contextmanager
def arriving(tmp_path: Path) -> Iterator[Arrival]:
    with closing(Arrival(tmp_path, BLOB)) as arrival:
        yield arrival


@settings(max_examples=100, deadline=None)
@given(
    before=st.integers(0, len(DATA)),
    cuts=st.lists(st.integers(0, len(DATA)), max_size=5),
    flipped=st.integers(-1, len(DATA) - 1),
)
def test_only_the_whole_and_only_the_truth_is_published(before: int, cuts: list[int], flipped: int) -> None:
    came = bytearray(DATA)
    if flipped >= 0:
        came[flipped] ^= 1
    with tempfile.TemporaryDirectory() as folder:
        tmp_path = Path(folder)
        (tmp_path / "incoming").mkdir()
        part_of(tmp_path).write_bytes(came[:before])
        places = sorted({before, *(cut for cut in cuts if cut > before), len(DATA)})
        with arriving(tmp_path) as arrival:
            assert arrival.at == before
            for start, end in itertools.pairwise(places):
                arrival.write(bytes(came[start:end]))
            problem = arrival.finish()
        assert (problem is None) == (flipped < 0)
        assert stored(tmp_path) == (DATA if flipped < 0 else None)
        assert list((tmp_path / "incoming").iterdir()) == [], "what is wrong does not stay"


def test_less_than_all_is_not_published(tmp_path: Path) -> None:
    with arriving(tmp_path) as arrival:
        arrival.write(DATA[:-1])
        assert "got sha256" in str(arrival.finish())
    assert stored(tmp_path) is None


def test_what_has_arrived_stays_and_a_part_of_nothing_does_not(tmp_path: Path) -> None:
    with arriving(tmp_path) as arrival:
        assert part_of(tmp_path).exists()
    assert not part_of(tmp_path).exists()
    with arriving(tmp_path) as arrival:
        arrival.write(DATA[:100])
    assert part_of(tmp_path).read_bytes() == DATA[:100]


def test_more_than_the_whole_is_no_beginning_of_it(tmp_path: Path) -> None:
    part_of(tmp_path).parent.mkdir()
    part_of(tmp_path).write_bytes(DATA + b"x")
    with arriving(tmp_path) as arrival:
        assert arrival.at == 0
        arrival.write(DATA)
        assert arrival.finish() is None
    assert stored(tmp_path) == DATA


def test_what_is_published_cannot_be_changed_by_who_shares_it(tmp_path: Path) -> None:
    with arriving(tmp_path) as arrival:
        arrival.write(DATA)
        arrival.finish()
    assert (tmp_path / "blobs" / "sha256" / BLOB.sha256).stat().st_mode & 0o777 == 0o444


def test_a_part_that_somebody_holds_is_copied_not_shared(tmp_path: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(arriving(tmp_path))
        first.write(DATA[:300])
        second = stack.enter_context(arriving(tmp_path))
        assert second.at == 300
        first.write(b"something else")
        second.write(DATA[300:])
        assert second.finish() is None
        assert stored(tmp_path) == DATA
        first.write(DATA[314:])
        assert first.finish() is not None, "and the first finds its own mistake"
    assert stored(tmp_path) == DATA
    assert list((tmp_path / "incoming").iterdir()) == []


def test_who_comes_too_late_takes_its_part_along(tmp_path: Path) -> None:
    first = Arrival(tmp_path, BLOB)
    first.write(DATA[:300])
    with arriving(tmp_path) as second:
        second.write(DATA[300:])
        second.finish()
    assert part_of(tmp_path).exists()
    first.close()
    assert not part_of(tmp_path).exists()


def test_leftovers_go_but_for_those_in_use(tmp_path: Path) -> None:
    with arriving(tmp_path) as arrival:
        arrival.write(DATA[:10])
        remove_leftovers(tmp_path / "incoming", BLOB.sha256)
        assert part_of(tmp_path).exists()
    remove_leftovers(tmp_path / "incoming", BLOB.sha256)
    assert not part_of(tmp_path).exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_is_no_file_is_replaced_not_followed(tmp_path: Path, kind: str) -> None:
    part_of(tmp_path).parent.mkdir()
    other = tmp_path / "other"
    other.write_bytes(b"theirs")
    if kind == "pipe":
        os.mkfifo(part_of(tmp_path))
    else:
        part_of(tmp_path).symlink_to(other if kind == "link" else tmp_path / "nowhere")
    with arriving(tmp_path) as arrival:
        arrival.write(DATA)
        assert arrival.finish() is None
    assert (stored(tmp_path), other.read_bytes(), (tmp_path / "nowhere").exists()) == (DATA, b"theirs", False)


def test_a_folder_in_its_place_is_an_error(tmp_path: Path) -> None:
    part_of(tmp_path).mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        Arrival(tmp_path, BLOB)


def test_a_failure_of_writing_out_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once, to whoever syncs first, and that is not who publishes."""

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(arrivals, "_SYNC_BYTES", 100)
    monkeypatch.setattr(os, "fdatasync", broken)
    with arriving(tmp_path) as arrival:
        with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012
            arrival.write(DATA)
            arrival.finish()
        arrival.discard()
    assert stored(tmp_path) is None
    assert not part_of(tmp_path).exists()
