"""Whose bundles a device runs: first use, additions on purpose, and every manifest that must not run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_workers import (
    HONEST,
    archive_with,
    journal,
    make_bundle,
    make_wheel,
    new_run_id,
    only,
    prepared,
)
from toggle_runtime import trust
from toggle_runtime.records import (
    Manifest,
    RecordError,
    RunRecord,
    Signature,
    digest_of,
    from_json,
    to_json,
)
from toggle_runtime.wire import RequestError

from toggle_edge import keyring
from toggle_edge.bundle import Bundle
from toggle_edge.errors import AgentError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.active import switch_in, talk
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import run_bundle, trust_key
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.signing import sign, signing_key

OURS, THEIRS = "11" * 32, "22" * 32


class TestKeys:
    def test_the_first_key_is_taken_a_second_one_only_on_purpose(self, tmp_path: Path) -> None:
        assert trust.trusted_keys(tmp_path) == {}
        assert trust.trust(tmp_path, OURS, "ann@desk", False) == {"trusted_keys": {OURS: "ann@desk"}}
        with pytest.raises(
            RequestError, match=rf"{trust.key_id(OURS)} \(ann@desk\) only.*device trust"
        ) as info:
            trust.trust(tmp_path, THEIRS, "bob@desk", False)
        assert info.value.kind == "trust"
        assert trust.trusted_keys(tmp_path) == {OURS: "ann@desk"}
        trust.trust(tmp_path, THEIRS, "bob@desk", True)
        assert trust.trusted_keys(tmp_path) == {OURS: "ann@desk", THEIRS: "bob@desk"}

    def test_trusting_a_known_key_again_changes_nothing(self, tmp_path: Path) -> None:
        trust.trust(tmp_path, OURS, "ann@desk", False)
        [path] = (tmp_path / "keys").iterdir()
        before = path.read_bytes()
        trust.trust(tmp_path, OURS, "somebody-else", False)
        assert path.read_bytes() == before == f"ed25519 {OURS} ann@desk\n".encode()
        assert path.name == hashlib.sha256(bytes.fromhex(OURS)).hexdigest()[:16] + ".pub"

    @pytest.mark.parametrize(
        ("key", "name"),
        [
            ("11" * 31, "ann"),
            ("11" * 33, "ann"),
            ("AA" * 32, "ann"),
            ("zz" * 32, "ann"),
            (OURS, ""),
            (OURS, "../x"),
            (OURS, "a b"),
            (OURS, "a\nb"),
            (OURS, "x" * 81),
        ],
    )
    def test_a_malformed_key_or_name_is_refused(self, tmp_path: Path, key: str, name: str) -> None:
        with pytest.raises(RecordError, match="expected 64 lower-case hex digits and a plain name"):
            trust.trust(tmp_path, key, name, True)
        assert trust.trusted_keys(tmp_path) == {}

    @pytest.mark.parametrize(
        "content", [b"", b"\xff" * 90, b"rsa 11 ann", f"ed25519 {OURS}".encode(), b"x" * 9999]
    )
    def test_a_damaged_key_file_trusts_nobody(self, tmp_path: Path, content: bytes) -> None:
        trust.trust(tmp_path, OURS, "ann@desk", False)
        (tmp_path / "keys" / "0000000000000000.pub").write_bytes(content)
        assert trust.trusted_keys(tmp_path) == {OURS: "ann@desk"}
        with pytest.raises(RecordError, match=r"expected one line .*; remove the file"):
            trust.read_key(tmp_path / "keys" / "0000000000000000.pub")

    def test_of_many_hosts_that_come_at_once_one_is_the_first(self, tmp_path: Path) -> None:
        gate, refused = threading.Barrier(8), []

        def come(number: int) -> None:
            gate.wait()
            try:
                trust.trust(tmp_path, f"{number:02x}" * 32, f"host{number}", False)
            except RequestError as exc:
                refused.append(exc.kind)

        threads = [threading.Thread(target=come, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(trust.trusted_keys(tmp_path)) == 1
        assert refused == ["trust"] * 7


class TestRevoked:
    def test_it_is_trusted_no_more_and_never_again(self, tmp_path: Path) -> None:
        trust.trust(tmp_path, OURS, "ann@desk", False)
        trust.trust(tmp_path, THEIRS, "bob@desk", True)
        told = trust.revoke(tmp_path, OURS, "whoever")
        assert told == {
            "trusted_keys": {THEIRS: "bob@desk"},
            "revoked_keys": {trust.key_id(OURS): "ann@desk"},
        }
        assert trust.revoke(tmp_path, OURS, "again") == told
        for force in (False, True):
            with pytest.raises(
                RequestError, match=r"\(ann@desk\) was revoked on this device, which is for good"
            ):
                trust.trust(tmp_path, OURS, "ann@desk", force)

    def test_where_a_key_was_revoked_nobody_is_the_first_again(self, tmp_path: Path) -> None:
        trust.revoke(tmp_path, OURS, "ann@desk")
        with pytest.raises(RequestError, match="trusts bundles signed by nobody only"):
            trust.trust(tmp_path, THEIRS, "bob@desk", False)
        trust.trust(tmp_path, THEIRS, "bob@desk", True)
        assert trust.trusted_keys(tmp_path) == {THEIRS: "bob@desk"}

    @pytest.mark.parametrize("content", [b"", b"\xff" * 90, b"x" * 9999])
    def test_a_damaged_file_revokes_all_the_same(self, tmp_path: Path, content: bytes) -> None:
        trust.trust(tmp_path, OURS, "ann@desk", False)
        (tmp_path / "keys" / f"{trust.key_id(OURS)}.revoked").write_bytes(content)
        assert trust.trusted_keys(tmp_path) == {}
        assert trust.revoked_keys(tmp_path) == {trust.key_id(OURS): "unknown"}

    def test_its_bundle_is_refused_whatever_is_allowed(self, tmp_path: Path) -> None:
        manifest = make_bundle(tmp_path / "bundle").manifest
        trust.trust(tmp_path, signing_key().public, "me", False)
        trust.revoke(tmp_path, signing_key().public, "me")
        for allowed in (False, True):
            with pytest.raises(RecordError, match=r"signature: .* \(me\), which was revoked on this device"):
                trust.require_signature(tmp_path, manifest, allow_unsigned=allowed)

    def test_a_successor_of_a_revoked_key_is_not_taken_and_one_of_a_trusted_key_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "home"))
        old = signing_key()
        new = keyring.rotate()[1]
        chain = keyring.successions()
        trust.trust(tmp_path, old.public, old.name, False)
        with pytest.raises(RequestError, match="trusts bundles signed by"):
            trust.trust(tmp_path, new.public, new.name, False)
        trust.revoke(tmp_path / "other", old.public, old.name)
        with pytest.raises(RequestError, match="trusts bundles signed by nobody only"):
            trust.trust(tmp_path / "other", new.public, new.name, False, chain)
        trust.trust(tmp_path, new.public, new.name, False, chain)
        assert trust.trusted_keys(tmp_path) == {old.public: old.name, new.public: new.name}

    def test_a_revoked_key_vouches_for_nobody_even_where_a_trusted_one_vouches_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "home"))
        first = signing_key()
        stolen, last = keyring.rotate()[1], keyring.rotate()[1]
        chain = keyring.successions()
        trust.trust(tmp_path / "fine", first.public, first.name, False)
        trust.trust(tmp_path / "fine", last.public, last.name, False, chain)
        trust.trust(tmp_path, first.public, first.name, False)
        trust.revoke(tmp_path, stolen.public, stolen.name)
        with pytest.raises(RequestError, match="trusts bundles signed by"):
            trust.trust(tmp_path, last.public, last.name, False, chain)
        assert trust.trusted_keys(tmp_path) == {first.public: first.name}


class TestSignature:
    @pytest.fixture
    def manifest(self, tmp_path: Path) -> Manifest:
        return make_bundle(tmp_path / "bundle").manifest

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        trust.trust(tmp_path / "device", signing_key().public, "me", False)
        return tmp_path / "device"

    def test_a_signature_by_a_trusted_key_is_named(self, root: Path, manifest: Manifest) -> None:
        assert trust.require_signature(root, manifest, allow_unsigned=False) == signing_key().public

    def test_every_field_is_signed(self, root: Path, manifest: Manifest) -> None:
        changes: dict[str, Any] = {
            "target": "onnx-gpu",
            "config": {"layer": "int4"},
            "model": dataclasses.replace(manifest.model, end_token=3),
            "default_mode": "optimal2",
            "specification": {},
            "files": {},
            "probe_bytes": 1,
            "environment": {"numpy": "0"},
            "version": 1,
        }
        changes["specification"] = {"optimal2": manifest.specification["optimal"], **manifest.specification}
        assert set(changes) | {"signature"} == {each.name for each in dataclasses.fields(Manifest)}
        for name, value in changes.items():
            extra = {"specification": changes["specification"]} if name == "default_mode" else {}
            altered = dataclasses.replace(manifest, **{name: value}, **extra)
            with pytest.raises(RecordError, match=r"signature: .* altered after it was signed"):
                trust.require_signature(root, altered, allow_unsigned=True)

    def test_an_unknown_signer_is_refused_even_where_unsigned_bundles_are_allowed(
        self, tmp_path: Path, manifest: Manifest
    ) -> None:
        with pytest.raises(RecordError, match=r"this device trusts nobody; .*run `toggle-edge device trust`"):
            trust.require_signature(tmp_path, manifest, allow_unsigned=True)
        trust.trust(tmp_path, OURS, "ann", False)
        with pytest.raises(RecordError, match=rf"trusts {trust.key_id(OURS)} \(ann\)"):
            trust.require_signature(tmp_path, manifest, allow_unsigned=True)

    def test_a_trusted_key_with_another_keys_signature_is_refused(
        self, root: Path, manifest: Manifest
    ) -> None:
        trust.trust(root, OURS, "ann", True)
        assert manifest.signature is not None
        forged = dataclasses.replace(manifest, signature=Signature(OURS, manifest.signature.signature))
        with pytest.raises(RecordError, match="by ann does not fit"):
            trust.require_signature(root, forged, allow_unsigned=False)

    @pytest.mark.parametrize(
        ("version", "why"), [(1, "made by a toggle-edge without"), (2, "was not signed")]
    )
    def test_no_signature(self, root: Path, manifest: Manifest, version: int, why: str) -> None:
        bare = dataclasses.replace(manifest, version=version, signature=None)
        assert trust.require_signature(root, bare, allow_unsigned=True) is None
        with pytest.raises(RecordError, match=f"signature: .*{why}.*; export it again"):
            trust.require_signature(root, bare, allow_unsigned=False)


class TestOnTheDevice:
    @pytest.fixture
    def device(self, tmp_path: Path) -> Device:
        return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)

    @pytest.fixture
    def transport(self, tmp_path: Path) -> LocalTransport:
        return LocalTransport(tmp_path)

    @pytest.fixture(autouse=True)
    def _worker(self, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = archive_with(HONEST)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    def run(self, transport: LocalTransport, device: Device, fields: Any, **changed: Any) -> RunRecord:
        plan = dataclasses.asdict(only("memory"))
        fields = {**fields, "run_id": new_run_id(), "plan": plan, **changed}
        event = request(transport, device, "run", **fields)
        return from_json(RunRecord, Path(event["record"]["path"]).read_text(encoding="utf-8"))

    def ship_text(self, transport: LocalTransport, device: Device, text: str, folder: Path) -> str:
        path = folder / "changed.json"
        path.write_text(text, encoding="utf-8")
        digest = digest_of(text)
        ship(transport, device, {digest: (path, path.stat().st_size)})
        return digest

    def test_facts_list_the_keys_and_force_adds_one(self, device: Device, transport: LocalTransport) -> None:
        trust_key(transport, device, OURS, "ann")
        assert facts_of(transport, device).trusted_keys == {OURS: "ann"}
        with pytest.raises(AgentError, match=r"trust: this device trusts .* \(ann\) only"):
            trust_key(transport, device, THEIRS, "bob")
        trust_key(transport, device, THEIRS, "bob", force=True)
        assert facts_of(transport, device).trusted_keys == {OURS: "ann", THEIRS: "bob"}
        assert exchange(transport, device, "trust", key=OURS, name="a", force="yes")["kind"] == "request"
        assert exchange(transport, device, "trust", key="x", name="a")["kind"] == "request"

    def test_nothing_is_read_or_run_before_the_signature_holds(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        fields = prepared(transport, device, bundle, tmp_path)
        altered = dataclasses.replace(bundle.manifest, probe_bytes=5)
        digest = self.ship_text(transport, device, to_json(altered), tmp_path)
        [blob] = bundle.manifest.files.values()
        Path(device.root, "blobs", "sha256", blob.sha256).unlink()  # would be noticed, were it looked at
        record = self.run(transport, device, fields, bundle=digest)
        assert (record.outcome, record.signed_by, record.memory) == ("ERROR", None, None)
        assert str(record.reason).startswith("signature: the signature by ")
        assert journal(device, record.run_id) == ["lease", "record"]

    @pytest.mark.parametrize("form", ["indented", "reordered"])
    def test_a_manifest_that_is_not_canonical_is_refused(
        self, device: Device, transport: LocalTransport, tmp_path: Path, form: str
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        fields = prepared(transport, device, bundle, tmp_path)
        data = json.loads(to_json(bundle.manifest))
        text = json.dumps(data, indent=1) if form == "indented" else json.dumps(dict(reversed(data.items())))
        record = self.run(transport, device, fields, bundle=self.ship_text(transport, device, text, tmp_path))
        assert record.outcome == "ERROR"
        assert "manifest: expected canonical JSON" in str(record.reason)

    def test_a_manifest_of_the_first_version_counts_as_unsigned(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        fields = prepared(transport, device, bundle, tmp_path)
        data = json.loads(to_json(dataclasses.replace(bundle.manifest, version=1, signature=None)))
        del data["signature"]  # as the first release wrote it
        digest = self.ship_text(transport, device, json.dumps(data), tmp_path)
        record = self.run(transport, device, fields, bundle=digest)
        assert "made by a toggle-edge without signatures; export it again" in str(record.reason)
        assert self.run(transport, device, fields, bundle=digest, allow_unsigned=True).outcome == "PASS"

    def test_a_newer_manifest_says_which_side_to_upgrade(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        fields = prepared(transport, device, bundle, tmp_path)
        text = to_json(bundle.manifest).replace('"version":4', '"version":5')
        record = self.run(transport, device, fields, bundle=self.ship_text(transport, device, text, tmp_path))
        assert record.outcome == "ERROR"
        assert "this side reads 1, 2, 3 and 4, got 5; it was written by a newer toggle-edge" in str(
            record.reason
        )

    def test_a_bundle_signed_by_a_key_added_later_runs(
        self, device: Device, transport: LocalTransport, tmp_path: Path
    ) -> None:
        trust_key(transport, device, OURS, "ann")
        unsigned = make_bundle(tmp_path / "bundle", signed=False)
        fields = prepared(transport, device, unsigned, tmp_path)
        signed: Bundle = dataclasses.replace(unsigned, manifest=sign(signing_key(), unsigned.manifest))
        digest = self.ship_text(transport, device, to_json(signed.manifest), tmp_path)
        assert "trusts" in str(self.run(transport, device, fields, bundle=digest).reason)
        trust_key(transport, device, signing_key().public, "me", force=True)
        record = self.run(transport, device, fields, bundle=digest)
        assert (record.outcome, record.signed_by) == ("PASS", signing_key().public)


class TestDeployment:
    """The same through the host's whole way of deploying a bundle."""

    @pytest.fixture
    def device(self, tmp_path: Path) -> Device:
        return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)

    @pytest.fixture
    def run(
        self, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., RunRecord]:
        archive = archive_with(HONEST)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

        def go(bundle: Bundle) -> RunRecord:
            home = tmp_path / "home" / new_run_id()
            return run_bundle(device, bundle, only("memory"), home, wheels=[make_wheel(tmp_path)]).record

        return go

    def test_a_strangers_bundle_is_refused_before_anything_is_sent(
        self, run: Callable[..., RunRecord], device: Device, tmp_path: Path
    ) -> None:
        trust.trust(Path(device.root), OURS, "ann", False)
        with pytest.raises(AgentError, match="trust: this device trusts bundles signed by"):
            run(make_bundle(tmp_path / "bundle"))
        assert sorted(path.name for path in Path(device.root).iterdir()) == ["agent", "keys", "layout"]

    def test_a_key_that_is_no_longer_trusted_is_refused(
        self, run: Callable[..., RunRecord], device: Device, tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        assert run(bundle).outcome == "PASS"
        trust.trust(Path(device.root), OURS, "ann", True)
        Path(device.root, "keys", f"{trust.key_id(signing_key().public)}.pub").unlink()
        with pytest.raises(AgentError, match="trust: this device trusts bundles signed by"):
            run(bundle)

    def test_signing_again_makes_a_changed_manifest_good(
        self, run: Callable[..., RunRecord], tmp_path: Path
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        text = to_json(sign(signing_key(), dataclasses.replace(bundle.manifest, probe_bytes=7)))
        (bundle.folder / "manifest.json").write_text(text, encoding="utf-8")
        record = run(dataclasses.replace(bundle, digest=digest_of(text)))
        assert (record.outcome, record.signed_by) == ("PASS", signing_key().public)

    def test_a_rotated_key_is_taken_without_force_and_the_old_one_can_be_revoked(
        self,
        run: Callable[..., RunRecord],
        device: Device,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "keys of mine"))
        old = signing_key()
        bundle = make_bundle(tmp_path / "old")
        assert run(bundle).outcome == "PASS"
        assert switch_in(device, bundle, wheels=[make_wheel(tmp_path)]).active.bundle == bundle.digest
        new = keyring.rotate()[1]
        record = run(make_bundle(tmp_path / "new"))
        assert (record.outcome, record.signed_by) == ("PASS", new.public)
        assert talk(device, [1], 2, [], lambda token: None).tokens == [5, 5]
        request(LocalTransport(tmp_path), device, "revoke", key=old.public, name=old.name)
        with pytest.raises(AgentError, match="which is for good"):
            run(bundle)
        for attempt in (
            lambda: talk(device, [1], 2, [], lambda token: None),
            lambda: switch_in(device, bundle, wheels=[make_wheel(tmp_path)]),
        ):
            with pytest.raises(
                AgentError, match=rf"signature: .* \({old.name}\), which was revoked on this device"
            ):
                attempt()
        assert run(make_bundle(tmp_path / "newer", b"more weights")).outcome == "PASS"
