"""Shipping and running against a device in memory that misbehaves on cue."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_workers import PLAN, make_bundle, make_wheel
from toggle_runtime.records import Blob, RunRecord, to_json

from toggle_edge.errors import AgentError, FleetError, TransportLostError
from toggle_edge.fleet import session
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.deploy import RunResult, _longest_s, run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.fleet.transport import MAX_LINE_BYTES, LineSplitter

DEVICE = Device(name="fake", transport="local", root="root")
TRACES = b"traces"


class Store:
    """An agent that keeps blobs honestly, and answers `run` and `fetch_record` from a script."""

    def __init__(self, script: list[Any] | None = None) -> None:
        self.stored: set[str] = set()
        self.parts: dict[str, bytes] = {}
        self.refuse: list[str] = []
        self.script = script or []
        self.transport = FakeTransport(self.answer)
        self.record: dict[str, Any] = {}

    def answer(self, question: dict[str, Any]) -> Iterable[Any]:
        command = question["command"]
        if command == "receive":
            wanted = {
                blob["sha256"]: blob["size"]
                for blob in question["blobs"]
                if blob["sha256"] not in self.stored
            }
            missing = [[digest, len(self.parts.get(digest, b""))] for digest in wanted]
            refused = []
            try:
                yield {"event": "progress", "step": "missing", "missing": missing}
            finally:  # the link may be lost while it is fed
                fed = self.transport.fed
                for digest, at in missing:
                    more, fed = fed[: wanted[digest] - at], fed[wanted[digest] - at :]
                    self.parts[digest] = self.parts.get(digest, b"") + more
            for digest in wanted:
                data = self.parts.pop(digest)
                if hashlib.sha256(data).hexdigest() == digest and not self.refuse:
                    self.stored.add(digest)
                else:
                    refused.append({"sha256": digest, "message": "expected this, got that"})
            self.refuse = self.refuse[1:]
            stored = [blob["sha256"] for blob in question["blobs"] if blob["sha256"] in self.stored]
            yield {"event": "result", "stored": stored, "refused": refused}
        elif command in ("environment", "trust", "abort", "fetched", "collect"):
            yield {"event": "result", "path": "x"}
        else:
            step = self.script.pop(0)
            if isinstance(step, Exception):
                raise step
            yield {"event": "progress", "step": "alive"}
            yield self.finished(question) if step == "finished" else step

    def finished(self, question: dict[str, Any]) -> dict[str, Any]:
        files = self.transport.files
        traces = Blob(hashlib.sha256(TRACES).hexdigest(), len(TRACES))
        record = RunRecord(2, question["run_id"], question["bundle"], "PASS", traces=traces)
        text = to_json(record).encode()
        files["r/record.json"], files["r/traces.npz"] = text, TRACES
        self.record = {
            "event": "result",
            "record": {
                "path": "r/record.json",
                "sha256": hashlib.sha256(text).hexdigest(),
                "size": len(text),
            },
            "traces": {"path": "r/traces.npz"},
        }
        return self.record


def error(kind: str) -> dict[str, Any]:
    return {"event": "error", "kind": kind, "message": "so it is"}


LOST = TransportLostError("gone")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_POLL_S", 0.0)


def make_file(folder: Path, data: bytes) -> dict[str, tuple[Path, int]]:
    path = folder / "file"
    path.write_bytes(data)
    return {hashlib.sha256(data).hexdigest(): (path, len(data))}


def run(store: Store, folder: Path) -> RunResult:
    return run_bundle(
        DEVICE,
        make_bundle(folder / "bundle"),
        PLAN,
        folder / "home",
        wheels=[make_wheel(folder)],
        connect=lambda device: store.transport,
    )


class TestShip:
    def test_progress_ends_at_the_total(self, tmp_path: Path) -> None:
        store, seen = Store(), []
        assert ship(store.transport, DEVICE, make_file(tmp_path, b"x" * 500), seen.append) == 500
        assert seen[-1] == {"event": "progress", "step": "upload", "done": 500, "of": 500}

    @settings(max_examples=50, deadline=None)
    @given(data=st.binary(min_size=2, max_size=300), cut=st.integers(0, 299))
    def test_wherever_the_link_is_cut_no_byte_goes_twice(
        self, data: bytes, cut: int, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        files = make_file(tmp_path_factory.mktemp("cut"), data)
        store = Store()
        store.transport.cut_after = cut % len(data)
        with pytest.raises(TransportLostError):
            ship(store.transport, DEVICE, files)
        assert ship(store.transport, DEVICE, files) == len(data) - cut % len(data)
        assert store.stored == set(files)

    def test_damage_on_the_way_is_repaired_once(self, tmp_path: Path) -> None:
        files = make_file(tmp_path, b"x" * 10)
        store = Store()
        store.refuse = ["once"]
        assert ship(store.transport, DEVICE, files) == 20
        store = Store()
        store.refuse = ["once", "twice"]
        with pytest.raises(FleetError, match=r"expected this, got that \(sent twice\)"):
            ship(store.transport, DEVICE, files)


@pytest.mark.usefixtures("quick")
class TestRun:
    @pytest.mark.parametrize(
        "script",
        [
            ["finished"],
            [LOST, "finished"],
            [LOST, LOST, error("running"), error("running"), "finished"],
            [LOST, error("unknown"), "finished"],
            [LOST, error("unknown"), error("lease"), error("running"), "finished"],
            [LOST, error("unknown"), error("run"), "finished"],
        ],
    )
    def test_a_lost_link_does_not_lose_the_run(self, tmp_path: Path, script: list[Any]) -> None:
        store = Store(list(script))
        result = run(store, tmp_path)
        assert result.record.outcome == "PASS"
        assert result.traces is not None
        assert result.traces.read_bytes() == TRACES
        asked = [q for q in store.transport.requests if q["command"] in ("run", "fetch_record")]
        assert len({q["run_id"] for q in asked}) == 1
        again = [q["command"] for q in asked].count("run")
        assert again == (2 if error("unknown") in script else 1), "run twice only if it never began"

    @pytest.mark.parametrize(
        "script",
        [
            [error("lease")],
            [LOST, error("system")],
            [error("running")],
            [LOST, error("unknown"), error("lease"), error("unknown")],
        ],
    )
    def test_a_refusal_is_an_error_with_its_kind(self, tmp_path: Path, script: list[Any]) -> None:
        with pytest.raises(AgentError, match=f"{script[-1]['kind']}: so it is"):
            run(Store(list(script)), tmp_path)

    def test_only_the_time_away_counts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(session, "RECONNECT_S", 0.3)
        store = Store([LOST, "finished"])
        honest = store.answer

        def answer(question: dict[str, Any]) -> Iterable[Any]:
            if question["command"] == "run":
                time.sleep(0.4)  # longer than the device may be away, and then the link is lost
                raise LOST
            return honest(question)

        monkeypatch.setattr(store.transport, "_answer", answer)
        assert run(store, tmp_path).record.outcome == "PASS"

    def test_a_device_that_stays_away_is_given_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session, "RECONNECT_S", 0.0)
        with pytest.raises(TransportLostError, match="its record is on the device"):
            run(Store([LOST, LOST, LOST]), tmp_path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"record": None}, "expected path, sha256 and size of record.json"),
            ({"record": {"path": "r/record.json", "sha256": "0" * 64, "size": 3}}, "came home altered"),
            ({"record": {"path": "r/record.json", "sha256": "zz", "size": 3}}, "expected path, sha256"),
            ({"traces": None}, "expected path, sha256 and size of traces.npz"),
        ],
    )
    def test_an_event_that_does_not_fit_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
    ) -> None:
        store = Store(["finished"])
        honest = store.finished
        monkeypatch.setattr(store, "finished", lambda question: {**honest(question), **change})
        with pytest.raises(AgentError, match=message):
            run(store, tmp_path)

    def test_altered_traces_are_noticed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = Store(["finished"])
        honest = store.finished

        def altered(question: dict[str, Any]) -> dict[str, Any]:
            event = honest(question)
            store.transport.files["r/traces.npz"] = b"tracez"
            return event

        monkeypatch.setattr(store, "finished", altered)
        with pytest.raises(AgentError, match=r"traces.npz came home altered"):
            run(store, tmp_path)

    def test_the_record_of_another_run_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = Store(["finished"])
        honest = store.finished
        monkeypatch.setattr(store, "finished", lambda question: honest({**question, "run_id": "other"}))
        with pytest.raises(AgentError, match=r"expected the record of .*got 'other'"):
            run(store, tmp_path)


class TestProtocol:
    @pytest.mark.parametrize(
        ("printed", "message"),
        [
            ([b"Welcome!\n"], "got b'Welcome!'"),
            ([b"{}\n"], "expected a JSON event"),
            ([b"[" * 100_000 + b"\n"], "expected a JSON event"),
            ([b'{"event": "resu'], "expected a JSON event"),
            ([{"event": "progress"}], "expected a result from the agent, but it ended with status 0"),
            ([{"event": "result"}, {"event": "result"}], "went on after its final event"),
            ([{"event": "error", "kind": "lease", "message": "busy"}], "facts: lease: busy"),
        ],
    )
    def test_what_is_not_the_protocol_is_refused(self, printed: list[Any], message: str) -> None:
        with pytest.raises(AgentError, match=message):
            request(FakeTransport(lambda question: printed), DEVICE, "facts")

    def test_the_agent_is_installed_once_and_by_digest(self) -> None:
        transport = FakeTransport(lambda question: [{"event": "result"}])
        for _ in range(2):
            request(transport, DEVICE, "facts")
        [(path, data)] = transport.files.items()
        assert path == f"root/agent/{hashlib.sha256(data).hexdigest()}.pyz"
        assert transport.uploaded == len(data)

    def test_an_agent_that_reads_back_differently_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        transport = FakeTransport(lambda question: [{"event": "result"}])
        honest = transport.upload

        def damaged(local: Path, remote: str, offset: int = 0, on_bytes: Any = lambda done: None) -> None:
            honest(local, remote, offset, on_bytes)
            transport.files[remote] = transport.files[remote][:-1] + b"?"

        monkeypatch.setattr(transport, "upload", damaged)
        with pytest.raises(AgentError, match="reads back differently"):
            request(transport, DEVICE, "facts")
        assert transport.requests == []

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=20), max_size=8), st.data())
    def test_lines_do_not_depend_on_how_the_bytes_arrive(
        self, lines: list[bytes], data: st.DataObject
    ) -> None:
        text = b"\n".join(line.replace(b"\n", b"") for line in lines)
        seen: list[bytes] = []
        splitter = LineSplitter(seen.append)
        rest = text
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            splitter.feed(rest[:size])
            rest = rest[size:]
        splitter.end()
        assert seen == text.split(b"\n")[: len(seen)]
        assert b"\n".join(seen) == text.removesuffix(b"\n")

    def test_a_line_may_not_grow_without_end(self) -> None:
        splitter = LineSplitter(lambda line: None)
        for _ in range(16):
            splitter.feed(b"x" * (MAX_LINE_BYTES // 16))
        with pytest.raises(AgentError, match="lines of at most"):
            splitter.feed(b"x")


def test_the_longest_run_covers_every_pass() -> None:
    plan = dataclasses.replace(PLAN, pass_timeout_s=100.0, restarts=3)
    assert _longest_s(plan) > 100.0 * (3 + 3)
