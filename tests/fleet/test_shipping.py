"""What an agent says of an upload is believed only as far as it can be so."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from toggle_edge.errors import AgentError, FleetError, TransportLostError
from toggle_edge.fleet import shipping
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.shipping import CHUNK_BYTES, Files, ship

DEVICE = Device(name="fake", transport="local", root="root")
DATA = b"0123456789"
DIGEST = hashlib.sha256(DATA).hexdigest()
STORED = {"event": "result", "stored": [DIGEST], "refused": []}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    (tmp_path / "file").write_bytes(DATA)
    return {DIGEST: (tmp_path / "file", len(DATA))}


def said(*events: dict[str, Any]) -> FakeTransport:
    return FakeTransport(lambda question: list(events))


def missing(entries: Any) -> dict[str, Any]:
    return {"event": "progress", "step": "missing", "missing": entries}


def taken(count: Any, waiting_s: Any = 0.0) -> dict[str, Any]:
    return {"event": "progress", "step": "taken", "bytes": count, "waiting_s": waiting_s}


@pytest.mark.parametrize("at", [0, 4, 10])
def test_from_where_the_device_says_on(files: Files, at: int) -> None:
    transport = said(missing([[DIGEST, at]]), taken(len(DATA) - at), STORED)
    assert ship(transport, DEVICE, files) == len(DATA) - at
    assert transport.fed == DATA[at:]


def test_what_is_there_is_not_sent(files: Files) -> None:
    transport = said(missing([]), STORED)
    assert ship(transport, DEVICE, files) == 0
    assert transport.fed == b""


@pytest.mark.parametrize(
    "entries",
    [
        None,
        "all",
        {},
        [DIGEST],
        [[DIGEST]],
        [[DIGEST, 0, 0]],
        [[DIGEST, -1]],
        [[DIGEST, 11]],
        [[DIGEST, 10**30]],
        [[DIGEST, 0.0]],
        [[DIGEST, "0"]],
        [[DIGEST, 0], [DIGEST, 0]],
        [["../../etc/passwd", 0]],
        [["0" * 64, 0]],
        [[["a"], 0]],
    ],
)
def test_what_cannot_be_missing_is_refused(files: Files, entries: Any) -> None:
    transport = said(missing(entries), STORED)
    with pytest.raises(AgentError, match="expected the blobs that are missing"):
        ship(transport, DEVICE, files)
    assert transport.fed == b""


@pytest.mark.parametrize("count", [None, -1, 11, 10**30, 1.0, "1", True])
def test_more_or_less_than_was_sent_cannot_have_been_taken(files: Files, count: Any) -> None:
    with pytest.raises(AgentError, match="expected how much it took of 10 bytes"):
        ship(said(missing([[DIGEST, 0]]), taken(count), STORED), DEVICE, files)
    with pytest.raises(AgentError, match="expected how much it took of 10 bytes"):
        ship(said(missing([[DIGEST, 0]]), taken(5), taken(4), STORED), DEVICE, files)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"stored": "all", "refused": []},
        {"stored": [3], "refused": []},
        {"stored": [DIGEST], "refused": [], "more": 1},
        {"stored": [], "refused": []},
        {"stored": ["0" * 64], "refused": []},
        {"stored": [DIGEST, "0" * 64], "refused": []},
        {"stored": [], "refused": [{"sha256": "0" * 64, "message": "m"}]},
    ],
)
def test_an_answer_that_does_not_fit_is_refused(files: Files, answer: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match=r"the agent's answer: Received|expected to hear of 1 blobs"):
        ship(said(missing([[DIGEST, 0]]), {"event": "result", **answer}), DEVICE, files)


def test_no_more_than_a_chunk_is_under_way(tmp_path: Path) -> None:
    data = bytes(3 * CHUNK_BYTES)
    (tmp_path / "large").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    seen: list[int] = []

    def answer(question: dict[str, Any]) -> Iterable[dict[str, Any]]:
        yield missing([[digest, 0]])
        count = 0
        while count < len(data):
            seen.append(len(transport.fed) - count)
            count += min(1_000_000, len(transport.fed) - count)
            yield taken(count)
        yield {"event": "result", "stored": [digest], "refused": []}

    transport = FakeTransport(answer)
    assert ship(transport, DEVICE, {digest: (tmp_path / "large", len(data))}) == len(data)
    assert max(seen) == CHUNK_BYTES


def test_a_link_that_is_dead_in_one_direction_is_lost(files: Files) -> None:
    with pytest.raises(TransportLostError, match="waited for 8 s for bytes that were sent"):
        ship(said(missing([[DIGEST, 0]]), taken(3, 8.5), STORED), DEVICE, files)
    # It waits for nothing, or has not for long.
    ship(said(missing([[DIGEST, 0]]), taken(3, 7.0), taken(10, 60.0), STORED), DEVICE, files)


def test_a_file_that_became_shorter_or_went_away_is_named(files: Files, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA[:7])
    with pytest.raises(FleetError, match="file: expected 10 bytes, it ends after 7"):
        ship(said(missing([[DIGEST, 0]]), STORED), DEVICE, files)
    (tmp_path / "file").unlink()
    with pytest.raises(FleetError, match="file: cannot be read: No such file"):
        ship(said(missing([[DIGEST, 0]]), STORED), DEVICE, files)


def test_many_blobs_go_in_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "MOST_BLOBS", 2)
    files = {}
    for number in range(5):
        (tmp_path / str(number)).write_bytes(data := bytes([number]))
        files[hashlib.sha256(data).hexdigest()] = (tmp_path / str(number), 1)

    def answer(question: dict[str, Any]) -> Iterable[dict[str, Any]]:
        digests = [blob["sha256"] for blob in question["blobs"]]
        return [
            missing([[each, 0] for each in digests]),
            {"event": "result", "stored": digests, "refused": []},
        ]

    transport = FakeTransport(answer)
    assert ship(transport, DEVICE, files) == 5
    assert [len(question["blobs"]) for question in transport.requests] == [2, 2, 1]
