"""Whoever answers may lie: each way in which a device, a file or a name could harm the host or another device is
refused with a clear error, and in bounded memory.

Refused elsewhere too, beside what they belong to: carried runs (`pipeline/test_importing.py`), records and manifests as
such (`test_formats.py`), facts (`fleet/test_facts.py`), wheels that escape (`runtime/test_agent.py`), keys
(`runtime/test_trust.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from kept_runs import keep
from rich.console import Console
from scripted_workers import (
    HONEST,
    PLAN,
    archive_with,
    make_bundle,
    make_wheel,
    new_run_id,
    only,
    prepared,
)
from toggle_runtime.records import (
    ParitySample,
    RunRecord,
    Signature,
    digest_of,
    from_json,
    signed_bytes,
    to_json,
)
from toggle_runtime.trust import key_id

from toggle_edge.bundle import probes_of, read_bundle, read_contract
from toggle_edge.errors import AgentError, BundleError, DeviceFileError, FleetError, ToggleEdgeError
from toggle_edge.fleet import agent_client
from toggle_edge.fleet.active import fetch_tokenizer, switch_in, talk
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import run_bundle
from toggle_edge.fleet.device import Device, load_device
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.pipeline.judging import judge_run
from toggle_edge.report.cells import print_entry, print_outcome

DEVICE = Device(name="fake", transport="local", root="root")
MIB = 1 << 20

Event = dict[str, Any]


class Liar:
    """An agent that does all that a run needs, and then tells of it what `lie` makes of the truth."""

    def __init__(self, lie: Callable[[Event, dict[str, bytes]], Event]) -> None:
        self.lie = lie
        self.transport = FakeTransport(self.answer)

    def answer(self, question: Event) -> Iterable[Event | bytes]:
        if question["command"] == "receive":
            stored = [blob["sha256"] for blob in question["blobs"]]
            return [{"event": "result", "stored": stored, "refused": []}]
        if question["command"] != "run":
            return [{"event": "result"}]
        record = RunRecord(3, question["run_id"], question["bundle"], "PASS")
        text = to_json(record).encode()
        files = {"there/record.json": text}
        told = {"path": "there/record.json", "sha256": hashlib.sha256(text).hexdigest(), "size": len(text)}
        event = self.lie({"event": "result", "record": told}, files)
        self.transport.files.update(files)
        return [event]


def told_of(event: Event, files: dict[str, bytes], text: str) -> Event:
    """The event of a run whose record is `text`, told with its true digest."""
    data = text.encode()
    files["there/record.json"] = data
    record = {"path": "there/record.json", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return {**event, "record": record}


def with_path(path: str) -> Callable[[Event, dict[str, bytes]], Event]:
    def lie(event: Event, files: dict[str, bytes]) -> Event:
        files[path] = files["there/record.json"]
        return {**event, "record": {**event["record"], "path": path}}

    return lie


def with_text(change: Callable[[str], str]) -> Callable[[Event, dict[str, bytes]], Event]:
    return lambda event, files: told_of(event, files, change(files["there/record.json"].decode()))


RUN_LIES: Mapping[str, tuple[Callable[[Event, dict[str, bytes]], Event], str]] = {
    "a path of another file": (with_path("/etc/passwd"), "expected the path of a record.json"),
    "a path that climbs": (with_path("../../root/record.json"), "without `..`"),
    "a path that is no path": (with_path(""), "expected the path of a record.json"),
    "a wrong digest": (
        lambda event, files: {**event, "record": {**event["record"], "sha256": "0" * 64}},
        "came home altered: expected sha256 0000",
    ),
    "a wrong size": (
        lambda event, files: {**event, "record": {**event["record"], "size": 1}},
        "came home altered",
    ),
    "a negative size": (
        lambda event, files: {**event, "record": {**event["record"], "size": -1}},
        "expected path, sha256 and size",
    ),
    "no record": (lambda event, files: {"event": "result"}, "expected path, sha256 and size of record.json"),
    "a record of another version": (
        with_text(lambda text: text.replace('"version":3', '"version":99')),
        "upgrade this side",
    ),
    "a record of another run": (
        with_text(lambda text: text.replace('"run_id":"', '"run_id":"x')),
        "expected the record of",
    ),
    "NaN": (
        with_text(lambda text: text.replace('"noise_floor":{}', '"noise_floor":{"a":NaN}')),
        "NaN is not a finite number",
    ),
    "infinity": (
        with_text(lambda text: text.replace('"noise_floor":{}', '"noise_floor":{"a":1e999}')),
        "expected a finite number",
    ),
    "deep JSON": (with_text(lambda text: "[" * 200_000), "cannot be read"),
    "an unknown key": (with_text(lambda text: '{"evil":1,' + text[1:]), "unknown key 'evil'"),
    "half a surrogate pair": (
        with_text(lambda text: text.replace('"reason":null', '"reason":"\\ud800"')),
        "expected text that is UTF-8",
    ),
    "bytes that are no text": (
        lambda event, files: told_of(event, files, "") | {"record": bytes_told(files, b"\xff\xfe\x00")},
        "cannot be read",
    ),
    "traces that lead elsewhere": (
        lambda event, files: {
            **told_of(
                event,
                files,
                files["there/record.json"]
                .decode()
                .replace('"traces":null', f'"traces":{{"sha256":"{"0" * 64}","size":3}}'),
            ),
            "traces": {"path": "/etc/../etc/shadow"},
        },
        "expected the path of a traces.npz",
    ),
}


def bytes_told(files: dict[str, bytes], data: bytes) -> Event:
    files["there/record.json"] = data
    return {"path": "there/record.json", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}


class TestAnswers:
    @pytest.mark.parametrize("name", RUN_LIES)
    def test_a_lie_about_a_run_is_refused(self, name: str, tmp_path: Path) -> None:
        lie, told = RUN_LIES[name]
        liar = Liar(lie)
        with pytest.raises(FleetError) as refused:
            run_bundle(
                DEVICE,
                make_bundle(tmp_path / "bundle"),
                PLAN,
                tmp_path / "home",
                wheels=[make_wheel(tmp_path)],
                connect=lambda device: liar.transport,
            )
        assert told in str(refused.value)
        assert "'fake'" in str(refused.value), "it says which device"
        assert sorted(path.name for path in tmp_path.glob("home/*")) in ([], ["record.json"])

    @pytest.mark.parametrize(
        ("printed", "told"),
        [
            (b"[" * 500_000 + b"\n", "expected a JSON event"),
            (b'{"event":"result","facts":' + b'{"a":' * 200_000 + b"1" + b"}" * 200_001 + b"\n", "expected"),
            (b'{"event":"result","facts":NaN}\n', "facts: expected an object"),
            (b'{"event":"result","facts":{"clock_s":NaN}}\n', "facts: "),
            (b"\xff\xfe\n", "expected a JSON event"),
            (b"\x00" * 4096 + b"\n", "expected a JSON event"),
            (b'"event"\n', "expected a JSON event"),
            (
                b'{"event":"error","kind":"protocol","protocol":99,"agent_version":"9"}\n',
                "this host speaks protocol",
            ),
            (b'{"event":"error","kind":["x"],"message":{"a":1}}\n', "facts: "),
        ],
        ids=range(9),
    )
    def test_what_is_no_answer_is_refused(self, printed: bytes, told: str) -> None:
        with pytest.raises(AgentError, match="device 'fake': ") as refused:
            facts_of(FakeTransport(lambda question: [printed]), DEVICE)
        assert told in str(refused.value)
        assert len(str(refused.value)) < 2000, "what a device says does not flood the terminal"

    def test_a_message_commands_no_terminal_and_floods_none(self) -> None:
        evil = "\x1b]0;owned\x07\x9b2J" + "x" * 100_000
        transport = FakeTransport(lambda question: [{"event": "error", "kind": "system", "message": evil}])
        with pytest.raises(AgentError, match="facts: system: ") as refused:
            facts_of(transport, DEVICE)
        assert str(refused.value).isprintable()
        assert len(str(refused.value)) < 10_000
        shown = io.StringIO()
        print_entry(Console(file=shown, width=100), "run", evil[:60])
        print_outcome(Console(file=shown, width=100), "ERROR", evil[:60])
        assert "owned" in shown.getvalue()
        assert not {"\x1b", "\x07", "\x9b"} & set(shown.getvalue())

    @pytest.mark.parametrize(
        "change",
        [
            {"tokens": [2**40]},
            {"tokens": [-1]},
            {"tokens": [1.5]},
            {"tokens": [float("nan")]},
            {"tokens": []},
            {"tokens": [1] * 9, "token_ns": [1] * 9},
            {"tokens": "evil"},
            {"more": 1},
        ],
    )
    def test_tokens_that_cannot_be_are_refused(self, change: Event) -> None:
        told = {
            "event": "result",
            "tokens": [5],
            "token_ns": [1],
            "load_ns": 1,
            "stopped": False,
            "modules": [],
        }
        transport = FakeTransport(lambda question: [{**told, "bundle": "b" * 64, **change}])
        with pytest.raises(AgentError, match="talk: "):
            talk(DEVICE, [1], 4, [], lambda token: None, connect=lambda device: transport)


class TestClaims:
    """What a record claims counts only as far as its traces give it."""

    def judged(self, tmp_path: Path, **claimed: Any) -> tuple[str, str]:
        folder = tmp_path / "run"
        record = dataclasses.replace(from_json(RunRecord, (folder / "record.json").read_text()), **claimed)
        contract = read_contract(folder / "bundle")
        judged = judge_run(record, folder / "traces.npz", contract, probes_of(contract), candidates=1)
        return judged.outcome, str(judged.reason)

    def test_a_forged_verdict_is_an_error(self, tmp_path: Path) -> None:
        folder = keep(tmp_path, 0.2)
        record = from_json(RunRecord, (folder / "record.json").read_text())
        assert self.judged(tmp_path)[0] == "ERROR", "undecided as it is"
        modes = [
            dataclasses.replace(mode, verdict="SATISFIED", robustness=0.5, reason=None)
            for mode in record.modes
        ]
        assert self.judged(tmp_path, outcome="PASS", modes=modes)[1].startswith("device and RTAMT disagree: ")
        assert self.judged(tmp_path, outcome="PASS", modes=[])[0] == "ERROR"

    def test_a_replayed_record_of_another_bundle_is_an_error(self, tmp_path: Path) -> None:
        keep(tmp_path, 0.01)
        assert self.judged(tmp_path)[0] == "PASS"
        assert "expected the record of bundle" in self.judged(tmp_path, bundle="a" * 64)[1]
        assert "no parity pass" in self.judged(tmp_path, parity=None)[1]
        # Less than the bundle's kernels can do is no parity, however it is called.
        for lax in (ParitySample(5e-5, 1e-4, 99, share=0.25), ParitySample(0.2, 0.25, 99)):
            outcome, reason = self.judged(tmp_path, outcome="PASS", parity=lax)
            assert (outcome, "against the canary" in reason) == ("ERROR", True), reason
        assert self.judged(tmp_path, outcome="FAIL")[0] == "ERROR"


class TestBundles:
    def test_one_signed_again_by_a_stranger_is_refused_by_host_and_device(self, tmp_path: Path) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        bundle, stranger = make_bundle(tmp_path / "bundle"), Ed25519PrivateKey.generate()
        public = stranger.public_key().public_bytes_raw().hex()
        signature = Signature(public, stranger.sign(signed_bytes(bundle.manifest)).hex())
        resigned = dataclasses.replace(bundle.manifest, signature=signature)
        (bundle.folder / "manifest.json").write_text(to_json(resigned))
        with pytest.raises(BundleError, match=rf"signed by the unknown key {key_id(public)}"):
            read_bundle(bundle.folder, allow_unsigned=True)
        device = Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)
        fields = prepared(
            LocalTransport(tmp_path), device, make_bundle(tmp_path / "honest", b"ours"), tmp_path
        )
        shipped = dataclasses.replace(bundle, digest=digest_of(to_json(resigned)), manifest=resigned)
        with pytest.raises(AgentError, match="this device trusts bundles signed by"):
            prepared(LocalTransport(tmp_path), device, shipped, tmp_path)
        event = request(LocalTransport(tmp_path), device, "run", **{**fields, "bundle": shipped.digest})
        assert (event["outcome"], str(event["reason"])[:41]) == (
            "ERROR",
            "signature: the bundle is signed by key " + key_id(public)[:2],
        )

    @pytest.mark.parametrize(
        "name", ["../../x", "/etc/passwd", "a/../b", ".ssh/authorized_keys", "a//b", "a\\..\\b"]
    )
    def test_a_manifest_that_leaves_the_bundle_is_refused(self, tmp_path: Path, name: str) -> None:
        bundle = make_bundle(tmp_path / "bundle", signed=False)
        text = to_json(bundle.manifest).replace("artifact/weights.bin", name.replace("\\", "\\\\"))
        (bundle.folder / "manifest.json").write_text(text)
        with pytest.raises(BundleError, match="path: expected a relative path of plain names"):
            read_bundle(bundle.folder, allow_unsigned=True)

    def test_a_device_cannot_hand_over_a_tokenizer_of_its_own(self, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle", signed=False)
        text = to_json(bundle.manifest).replace("artifact/weights.bin", "tokenizer/tokenizer.json")
        digest = digest_of(text)
        facts = {
            "deployed": {
                "version": 1,
                "previous": None,
                "active": {
                    "bundle": digest,
                    "environment": "0" * 8,
                    "threads": 1,
                    "since": 0.0,
                    "allow_unsigned": False,
                },
            }
        }
        from toggle_runtime.facts import gather

        honest = gather(tmp_path)
        transport = FakeTransport(lambda question: [{"event": "result", "facts": {**honest, **facts}}])
        transport.files[f"root/blobs/sha256/{digest}"] = text.encode()
        (tmp_path / "tokenizer").mkdir()
        with pytest.raises(BundleError, match="expected a signed bundle"):
            fetch_tokenizer(DEVICE, tmp_path / "tokenizer", connect=lambda device: transport)
        transport.files[f"root/blobs/sha256/{digest}"] = text.encode() + b" "
        with pytest.raises(AgentError, match=f"expected sha256 {digest}"):
            fetch_tokenizer(DEVICE, tmp_path / "tokenizer", connect=lambda device: transport)

    @pytest.mark.parametrize("what", ["blob", "manifest"])
    @pytest.mark.parametrize("leads_to", ["pipe", "/dev/zero"])
    def test_a_bundle_with_something_endless_in_it_is_refused(
        self, tmp_path: Path, what: str, leads_to: str
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        [blob] = (bundle.folder / "blobs" / "sha256").iterdir()
        path = blob if what == "blob" else bundle.folder / "manifest.json"
        path.unlink()
        if leads_to == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to(leads_to)
        with pytest.raises(BundleError, match="plain file"):
            read_bundle(bundle.folder)


class TestStore:
    """What another user of the device may have put into its store."""

    @pytest.fixture
    def device(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
        archive = archive_with(HONEST)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)
        return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)

    @pytest.mark.parametrize("what", ["weights", "manifest"])
    @pytest.mark.parametrize("content", ["the same", "another"])
    def test_a_link_in_place_of_a_blob_is_not_followed(
        self, device: Device, tmp_path: Path, what: str, content: str
    ) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        transport = LocalTransport(tmp_path)
        fields = prepared(transport, device, bundle, tmp_path)
        [blob] = bundle.manifest.files.values()
        stored = Path(device.root, "blobs", "sha256", bundle.digest if what == "manifest" else blob.sha256)
        target = tmp_path / "theirs"
        target.write_bytes(stored.read_bytes() if content == "the same" else b"x")
        stored.unlink()
        stored.symlink_to(target)
        event = request(transport, device, "run", **{**fields, "plan": dataclasses.asdict(only("memory"))})
        assert (event["outcome"], "plain file" in event["reason"]) == ("ERROR", True), event["reason"]
        assert target.exists()
        assert not stored.is_symlink(), "the next deployment sends it again"
        again = run_bundle(device, bundle, only("memory"), tmp_path / "home", wheels=[make_wheel(tmp_path)])
        assert again.record.outcome == "PASS"

    def test_a_link_in_place_of_a_part_is_not_followed(self, device: Device, tmp_path: Path) -> None:
        transport, secret, file = LocalTransport(tmp_path), tmp_path / "secret", tmp_path / "file"
        request(transport, device, "receive", blobs=[])
        secret.write_bytes(b"secret")
        file.write_bytes(b"secrets")
        digest = hashlib.sha256(b"secrets").hexdigest()
        part = Path(device.root, "incoming", f"{digest}.part")
        for lay in (
            lambda: part.symlink_to(secret),
            lambda: part.symlink_to("nowhere"),
            lambda: os.mkfifo(part),
        ):
            lay()
            assert ship(transport, device, {digest: (file, 7)}) == 7, "nothing of it was there"
            stored = Path(device.root, "blobs", "sha256", digest)
            assert (stored.is_symlink(), stored.read_bytes(), secret.read_bytes()) == (
                False,
                b"secrets",
                b"secret",
            )
            assert not part.exists()
            stored.unlink()

    @pytest.mark.parametrize(
        "fields",
        [
            {"run_id": "../../x"},
            {"run_id": "a/b"},
            {"bundle": "../../etc/passwd"},
            {"environment": "../x"},
            {"environment": "0" * 7},
            {"owner": "x" * 100_000},
        ],
    )
    def test_a_request_that_leaves_the_root_is_refused(
        self, device: Device, tmp_path: Path, fields: Event
    ) -> None:
        transport = LocalTransport(tmp_path)
        honest = {"run_id": new_run_id(), "bundle": "b" * 64, "environment": "0" * 8, "owner": "me"}
        Path(device.root, "environments", "0" * 8).mkdir(parents=True)
        asked = {**honest, "plan": dataclasses.asdict(PLAN), **fields}
        event = exchange(transport, device, "run", **asked)
        assert (event["event"], event["kind"]) == ("error", "request")
        assert not list(Path(device.root).glob("runs/*"))

    def test_nothing_unhealthy_is_switched_in_by_a_link(self, device: Device, tmp_path: Path) -> None:
        bundle = make_bundle(tmp_path / "bundle")
        prepared(LocalTransport(tmp_path), device, bundle, tmp_path)
        [blob] = bundle.manifest.files.values()
        stored = Path(device.root, "blobs", "sha256", blob.sha256)
        stored.unlink()
        stored.symlink_to("/dev/zero")
        with pytest.raises(AgentError, match=r"digest: file artifact/weights\.bin: .* plain file"):
            switch_in(device, bundle, wheels=[make_wheel(tmp_path)])
        assert not Path(device.root, "deployment.json").exists()


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "x; rm -rf ~",
            "$(reboot)",
            "`reboot`",
            "a b",
            "../etc",
            "-oProxyCommand=x",
            "a\nb",
            "a|b",
            "a&b",
            "*",
            "",
            "\x00",
        ],
    )
    def test_a_device_name_for_a_shell_is_no_name(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(DeviceFileError, match="name: expected a plain name"):
            Device(name=name, transport="local")
        with pytest.raises(ToggleEdgeError):
            load_device(name)

    @pytest.mark.parametrize("field", ["host", "user"])
    @pytest.mark.parametrize("value", ["-oProxyCommand=touch /tmp/x", "a b", "", "a\tb"])
    def test_a_host_or_user_that_is_an_option_is_refused(self, field: str, value: str) -> None:
        honest = {"host": "h", "user": "u", "host_key": "SHA256:" + "A" * 43}
        with pytest.raises(DeviceFileError, match=f"{field}: expected a value without spaces"):
            Device(name="d", **{**honest, field: value})

    def test_a_root_with_shell_characters_is_a_folder_of_that_name(self, tmp_path: Path) -> None:
        root = tmp_path / "a b;touch pwned;$(touch pwned)'`touch pwned`"
        device = Device(name="odd", transport="local", root=str(root), python=sys.executable)
        request(LocalTransport(tmp_path), device, "receive", blobs=[])
        assert (root / "incoming").is_dir()
        assert not list(tmp_path.rglob("pwned"))


MEMORY = """
import os, sys
from pathlib import Path
from toggle_edge.errors import AgentError, ToggleEdgeError
from toggle_edge.fleet.agent_client import request
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.shipping import ship
from toggle_edge.fleet import agent_client
from toggle_edge.pipeline.carried import unpack_carried

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) >> 10

kind, folder = sys.argv[1], Path(sys.argv[2])
device = Device(name="fake", transport="local", root=str(folder / "device"), python=str(folder / "python"))
agent_client.agent_archive()
before = peak()
try:
    if kind == "fake line":
        chunk = b"x" * (1 << 20)
        request(FakeTransport(lambda question: (chunk for _ in range(1024))), device, "facts")
    elif kind == "endless progress":
        event = b'{"event":"progress","step":"' + b"x" * 1000 + b'"}' + bytes([10])
        request(FakeTransport(lambda question: (event for _ in range(100_000))), device, "facts")
    elif kind == "zip":
        unpack_carried(folder / "run.zip", folder / "unpacked")
    else:
        request(LocalTransport(folder), device, "facts")
except ToggleEdgeError as exc:
    print(peak() - before, str(exc)[:300])
"""


@pytest.mark.parametrize(
    ("kind", "script", "told"),
    [
        ("fake line", "", "expected lines of at most 16777216 bytes"),
        ("endless progress", "", "expected a result from the agent"),
        ("real line", "head -c 1073741824 /dev/zero", "expected lines of at most 16777216 bytes"),
        ("real stderr", "head -c 1073741824 /dev/zero >&2", "expected a result from the agent"),
        ("zip", "", "expected at most 67108864 bytes, got more"),
    ],
)
def test_memory_stays_bounded_whatever_a_gigabyte_is_sent_as(
    tmp_path: Path, kind: str, script: str, told: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\ncat > /dev/null\n{script}\n")
    python.chmod(0o755)
    if kind == "zip":
        import zipfile

        with (
            zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("record.json", "w", force_zip64=True) as stream,
        ):
            for _ in range(1024):
                stream.write(b"0" * MIB)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert told in done.stdout, done.stdout + done.stderr
    assert int(done.stdout.split()[0]) < 64, "MiB more than before"
    assert not (tmp_path / "unpacked").exists()
