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


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    return tmp_path


def part_of(root: Path) -> Path:
    return root / "incoming" / f"{BLOB.sha256}.part"


def stored(root: Path) -> bytes | None:
    path = root / "blobs" / "sha256" / BLOB.sha256
    return path.read_bytes() if path.exists() else None


@contextmanager
def arriving(root: Path) -> Iterator[Arrival]:
    with closing(Arrival(root, BLOB)) as arrival:
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
        root = Path(folder)
        (root / "blobs" / "sha256").mkdir(parents=True)
        (root / "incoming").mkdir()
        part_of(root).write_bytes(came[:before])
        places = sorted({before, *(cut for cut in cuts if cut > before), len(DATA)})
        with arriving(root) as arrival:
            assert arrival.at == before
            for start, end in itertools.pairwise(places):
                arrival.write(bytes(came[start:end]))
            problem = arrival.finish()
        assert (problem is None) == (flipped < 0)
        assert stored(root) == (DATA if flipped < 0 else None)
        assert list((root / "incoming").iterdir()) == [], "what is wrong does not stay"


def test_less_than_all_is_not_published(root: Path) -> None:
    with arriving(root) as arrival:
        arrival.write(DATA[:-1])
        assert "got sha256" in str(arrival.finish())
    assert stored(root) is None


def test_what_has_arrived_stays_and_a_part_of_nothing_does_not(root: Path) -> None:
    with arriving(root) as arrival:
        assert part_of(root).exists()
    assert not part_of(root).exists()
    with arriving(root) as arrival:
        arrival.write(DATA[:100])
    assert part_of(root).read_bytes() == DATA[:100]


def test_more_than_the_whole_is_no_beginning_of_it(root: Path) -> None:
    part_of(root).parent.mkdir()
    part_of(root).write_bytes(DATA + b"x")
    with arriving(root) as arrival:
        assert arrival.at == 0
        arrival.write(DATA)
        assert arrival.finish() is None
    assert stored(root) == DATA


def test_what_is_published_cannot_be_changed_by_who_shares_it(root: Path) -> None:
    with arriving(root) as arrival:
        arrival.write(DATA)
        arrival.finish()
    assert (root / "blobs" / "sha256" / BLOB.sha256).stat().st_mode & 0o777 == 0o444


def test_a_part_that_somebody_holds_is_copied_not_shared(root: Path) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(arriving(root))
        first.write(DATA[:300])
        second = stack.enter_context(arriving(root))
        assert second.at == 300
        first.write(b"something else")
        second.write(DATA[300:])
        assert second.finish() is None
        assert stored(root) == DATA
        first.write(DATA[314:])
        assert first.finish() is not None, "and the first finds its own mistake"
    assert stored(root) == DATA
    assert list((root / "incoming").iterdir()) == []


def test_leftovers_go_but_for_those_in_use(root: Path) -> None:
    with arriving(root) as arrival:
        arrival.write(DATA[:10])
        remove_leftovers(root / "incoming", BLOB.sha256)
        assert part_of(root).exists()
    remove_leftovers(root / "incoming", BLOB.sha256)
    assert not part_of(root).exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_is_no_file_is_replaced_not_followed(root: Path, kind: str) -> None:
    part_of(root).parent.mkdir()
    other = root / "other"
    other.write_bytes(b"theirs")
    if kind == "pipe":
        os.mkfifo(part_of(root))
    else:
        part_of(root).symlink_to(other if kind == "link" else root / "nowhere")
    with arriving(root) as arrival:
        arrival.write(DATA)
        assert arrival.finish() is None
    assert (stored(root), other.read_bytes(), (root / "nowhere").exists()) == (DATA, b"theirs", False)


def test_a_folder_in_its_place_is_an_error(root: Path) -> None:
    part_of(root).mkdir(parents=True)
    with pytest.raises(OSError, match="Is a directory"):
        Arrival(root, BLOB)


def test_a_failure_of_writing_out_is_not_lost(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells it once, to whoever syncs first, and that is not who publishes."""

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(arrivals, "_SYNC_BYTES", 100)
    monkeypatch.setattr(os, "fdatasync", broken)
    with arriving(root) as arrival:
        with pytest.raises(OSError, match="Input/output error"):  # noqa: PT012
            arrival.write(DATA)
            arrival.finish()
        arrival.discard()
    assert stored(root) is None
    assert not part_of(root).exists()
