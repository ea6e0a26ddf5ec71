"""Whom a device trusts, what it says to others, and what it makes of a bundle's signature before anything runs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_workers import HONEST, PLAN, archive_with, make_bundle, make_wheel, new_run_id
from toggle_runtime.layout import LAYOUT_VERSION
from toggle_runtime.records import RecordError, RunRecord, digest_of, from_json, to_json
from toggle_runtime.trust import key_id, key_line, trusted_keys

from toggle_edge.bundle import Bundle
from toggle_edge.errors import AgentError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.deploy import run_bundle, trust_key
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.signing import sign, signing_key

KEYS = [character * 64 for character in "abc"]
ONLY = dataclasses.replace(PLAN, passes=["memory"])

Run = Callable[..., RunRecord]


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)


@pytest.fixture
def transport(tmp_path: Path) -> LocalTransport:
    return LocalTransport(tmp_path)


@pytest.fixture
def run(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    archive = archive_with(HONEST)
    monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    def go(bundle: Bundle, *, allow_unsigned: bool = False) -> RunRecord:
        home = tmp_path / "home" / new_run_id()
        return run_bundle(
            device, bundle, ONLY, home, wheels=[make_wheel(tmp_path)], allow_unsigned=allow_unsigned
        ).record

    return go


def spawned(device: Device, record: RunRecord) -> bool:
    return "spawn" in Path(device.root, "runs", record.run_id, "journal.jsonl").read_text()


def rewritten(bundle: Bundle, change: Callable[[dict[str, object]], None]) -> Bundle:
    """The bundle with another manifest, digest and all."""
    data = json.loads(to_json(bundle.manifest))
    change(data)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    (bundle.folder / "manifest.json").write_text(text, encoding="utf-8")
    return dataclasses.replace(bundle, digest=digest_of(text))


class TestKeys:
    def test_the_first_key_is_trusted_and_others_on_purpose_only(
        self, device: Device, transport: LocalTransport
    ) -> None:
        trust_key(transport, device, KEYS[0], "first@desk")
        trust_key(transport, device, KEYS[0], "first@desk")
        with pytest.raises(AgentError, match=rf"trust: .*{key_id(KEYS[0])} \(first@desk\).*device trust"):
            trust_key(transport, device, KEYS[1], "second")
        trust_key(transport, device, KEYS[1], "second", force=True)
        known = {KEYS[0]: "first@desk", KEYS[1]: "second"}
        assert trusted_keys(Path(device.root)) == known
        assert request(transport, device, "facts")["facts"]["trusted_keys"] == known

    @pytest.mark.parametrize(
        ("key", "name"),
        [("x" * 64, "a"), ("a" * 63, "a"), ("a" * 64, "../a"), ("a" * 64, ""), ("a" * 64, "a b")],
    )
    def test_a_malformed_key_is_refused(
        self, device: Device, transport: LocalTransport, key: str, name: str
    ) -> None:
        with pytest.raises(AgentError, match="request: key: expected"):
            trust_key(transport, device, key, name)
        with pytest.raises(RecordError, match="key: expected"):
            key_line(key, name)

    @pytest.mark.parametrize("text", ["", "ed25519", "ed25519 " + "a" * 64, "x" * 10_000, "\xff"])
    def test_a_damaged_key_file_trusts_nobody(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "odd.pub").write_text(text)
        assert trusted_keys(tmp_path) == {}


class TestSignature:
    def test_a_run_says_whose_bundle_it_was(self, run: Run, tmp_path: Path) -> None:
        record = run(make_bundle(tmp_path / "bundle"))
        assert (record.outcome, record.signed_by) == ("PASS", signing_key().public)

    def test_an_unsigned_bundle_runs_only_where_it_is_allowed(
        self, run: Run, device: Device, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle", signed=False)
        record = run(bundle)
        assert record.outcome == "ERROR"
        assert "signature: expected a signed bundle, this one was not signed" in str(record.reason)
        assert not spawned(device, record)
        allowed = run(bundle, allow_unsigned=True)
        assert (allowed.outcome, allowed.signed_by) == ("PASS", None)

    def test_a_bundle_of_the_first_version_counts_as_unsigned(self, run: Run, tmp_path: Path) -> None:
        def older(data: dict[str, object]) -> None:
            data.update(version=1)
            del data["signature"]

        bundle = rewritten(make_bundle(tmp_path / "bundle", signed=False), older)
        assert "made by a toggle-edge without signatures" in str(run(bundle).reason)
        assert run(bundle, allow_unsigned=True).outcome == "PASS"

    def test_a_strangers_bundle_is_refused_before_anything_runs(
        self, run: Run, device: Device, tmp_path: Path, transport: LocalTransport
    ) -> None:
        trust_key(transport, device, KEYS[0], "first")
        with pytest.raises(AgentError, match="trust: this device trusts bundles signed by"):
            run(make_bundle(tmp_path / "bundle"))
        assert not Path(device.root, "runs").exists()

    @pytest.mark.parametrize("allow_unsigned", [False, True])
    def test_a_manifest_changed_after_signing_is_refused_even_where_unsigned_ones_are_not(
        self, run: Run, device: Device, tmp_path: Path, allow_unsigned: bool
    ) -> None:
        bundle = rewritten(make_bundle(tmp_path / "bundle"), lambda data: data.update(probe_bytes=1))
        record = run(bundle, allow_unsigned=allow_unsigned)
        assert "signature: the signature by" in str(record.reason)
        assert "altered after it was signed" in str(record.reason)
        assert not spawned(device, record)

    def test_a_key_that_is_no_longer_trusted_is_refused(
        self, run: Run, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        assert run(bundle).outcome == "PASS"
        trust_key(transport, device, KEYS[0], "other", force=True)
        Path(device.root, "keys", f"{key_id(signing_key().public)}.pub").unlink()
        with pytest.raises(AgentError, match="trust: this device trusts bundles signed by"):
            run(bundle)

    def test_a_manifest_that_is_not_canonical_is_refused(self, run: Run, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        text = json.dumps(json.loads(to_json(bundle.manifest)), indent=1)
        (bundle.folder / "manifest.json").write_text(text)
        record = run(dataclasses.replace(bundle, digest=digest_of(text)))
        assert "manifest: expected canonical JSON" in str(record.reason)

    def test_signing_again_makes_a_changed_manifest_good(self, run: Run, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        changed = dataclasses.replace(bundle.manifest, probe_bytes=7)
        text = to_json(sign(signing_key(), changed))
        (bundle.folder / "manifest.json").write_text(text)
        assert run(dataclasses.replace(bundle, digest=digest_of(text))).outcome == "PASS"


class TestLayout:
    def test_the_layouts_version_is_written_by_what_changes_the_device(
        self, device: Device, transport: LocalTransport
    ) -> None:
        request(transport, device, "facts")
        assert not Path(device.root, "layout").exists(), "looking at a device leaves nothing there"
        request(transport, device, "missing", digests=[])
        assert Path(device.root, "layout").read_text() == f"{LAYOUT_VERSION}\n"
        request(transport, device, "missing", digests=[])

    @pytest.mark.parametrize("text", [f"{LAYOUT_VERSION + 1}\n", "", "one", "9" * 100])
    def test_a_newer_or_damaged_layout_is_left_alone(
        self, device: Device, transport: LocalTransport, text: str
    ) -> None:
        Path(device.root).mkdir()
        Path(device.root, "layout").write_text(text)
        with pytest.raises(AgentError, match=r"layout: .*upgrade this host"):
            request(transport, device, "missing", digests=[])
        assert Path(device.root, "layout").read_text() == text

    def test_a_record_of_the_first_version_is_still_fetched(
        self, device: Device, transport: LocalTransport
    ) -> None:
        record = json.loads(to_json(RunRecord(1, "old", "0" * 64, "PASS")))
        del record["parity"], record["signed_by"]
        folder = Path(device.root, "runs", "old")
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record))
        event = request(transport, device, "fetch_record", run_id="old", bundle="0" * 64)
        assert event["outcome"] == "PASS"
        assert from_json(RunRecord, Path(event["record"]["path"]).read_text()).parity is None
