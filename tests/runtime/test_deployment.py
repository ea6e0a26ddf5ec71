"""Switching bundles in and back, by the agent as a real process: what is active is the old one or the new, whole."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted_workers import (
    HONEST,
    archive_with,
    make_bundle,
    make_wheel,
    only,
    prepared,
    start,
    wait_until,
)
from toggle_runtime.collection import collect
from toggle_runtime.deployment import Deployment, read_deployment
from toggle_runtime.layout import foreign
from toggle_runtime.records import from_data
from toggle_runtime.spool import Spool

from toggle_edge.bundle import Bundle
from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet import agent_client, session
from toggle_edge.fleet.active import deployed_on, fetch_tokenizer, roll_back, switch_in, talk
from toggle_edge.fleet.agent_client import exchange, request
from toggle_edge.fleet.deploy import prepare_environment, run_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.environment import WheelFile, environment_id
from toggle_edge.fleet.local import LocalTransport

BROKEN = HONEST.replace("request = json.loads(sys.stdin.readline())", 'sys.exit("no such kernel")')
SLOW = HONEST.replace('answer("progress", step="loaded")', "import time; time.sleep(60)")
TALKING = HONEST.replace(
    'answer("progress", step="loaded")',
    'for at in range(request["tokens"]): answer("progress", step="token", token=5, at=at)',
)


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)


@pytest.fixture
def transport(tmp_path: Path) -> LocalTransport:
    return LocalTransport(tmp_path)


@pytest.fixture
def set_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def replace(worker: str) -> None:
        monkeypatch.undo()
        monkeypatch.setattr(session, "_POLL_S", 0.05)
        archive = archive_with(worker)
        monkeypatch.setattr(agent_client, "agent_archive", lambda: archive)

    return replace


@pytest.fixture
def bundles(tmp_path: Path) -> list[Bundle]:
    return [make_bundle(tmp_path / f"bundle-{n}", f"weights {n}".encode()) for n in range(3)]


@pytest.fixture
def wheels(tmp_path: Path) -> list[WheelFile]:
    (tmp_path / "own").mkdir()
    return [make_wheel(tmp_path / "own")]


@pytest.fixture
def deploy(
    device: Device,
    transport: LocalTransport,
    set_worker: Callable[[str], None],
    wheels: list[WheelFile],
    tmp_path: Path,
) -> Callable[[Bundle], Deployment]:
    set_worker(HONEST)

    def switch(bundle: Bundle) -> Deployment:
        prepared(transport, device, bundle, tmp_path)
        return switch_in(device, bundle, wheels=wheels)

    return switch


def laid_out(device: Device) -> set[str]:
    return {path.name for path in Path(device.root, "deployed").iterdir()}


def weights(device: Device, bundle: Bundle) -> bytes:
    return Path(device.root, "deployed", bundle.digest, "artifact", "weights.bin").read_bytes()


class TestSwitching:
    def test_the_last_one_is_active_and_the_one_before_is_kept(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
    ) -> None:
        assert deployed_on(transport, device) is None
        first = deploy(bundles[0])
        assert (first.active.bundle, first.previous) == (bundles[0].digest, None)
        deploy(bundles[1])
        third = deploy(bundles[2])
        assert third.active.bundle == bundles[2].digest
        assert third.previous is not None
        assert third.previous.bundle == bundles[1].digest
        assert deployed_on(transport, device) == third
        assert laid_out(device) == {bundles[1].digest, bundles[2].digest}
        assert weights(device, bundles[2]) == b"weights 2"

    def test_the_same_one_again_keeps_the_one_before(
        self, deploy: Callable[[Bundle], Deployment], bundles: list[Bundle]
    ) -> None:
        deploy(bundles[0])
        deploy(bundles[1])
        again = deploy(bundles[1])
        assert again.previous is not None
        assert again.previous.bundle == bundles[0].digest

    def test_back_and_forth(
        self, deploy: Callable[[Bundle], Deployment], device: Device, bundles: list[Bundle]
    ) -> None:
        deploy(bundles[0])
        deploy(bundles[1])
        assert roll_back(device).active.bundle == bundles[0].digest
        back = roll_back(device)
        assert back.active.bundle == bundles[1].digest
        assert back.previous is not None
        assert back.previous.bundle == bundles[0].digest

    def test_there_is_nothing_to_go_back_to(
        self, deploy: Callable[[Bundle], Deployment], device: Device, bundles: list[Bundle]
    ) -> None:
        with pytest.raises(AgentError, match="nothing was deployed there before"):
            roll_back(device)
        deploy(bundles[0])
        with pytest.raises(AgentError, match="nothing was deployed there before"):
            roll_back(device)

    def test_asking_twice_to_go_back_goes_back_once(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
    ) -> None:
        deploy(bundles[0])
        deploy(bundles[1])
        for run_id in ("first", "second"):
            event = request(
                transport, device, "rollback", bundle=bundles[0].digest, run_id=run_id, owner="me"
            )
            assert from_data(Deployment, event["deployment"]).active.bundle == bundles[0].digest
        event = exchange(transport, device, "rollback", bundle="0" * 64, run_id="third", owner="me")
        assert event["kind"] == "deployment"
        assert "another host deployed meanwhile" in event["message"]


class TestFailing:
    @pytest.mark.parametrize("worker", [BROKEN, HONEST.replace('"talk": {', '"talk": {"nonsense": 1, ')])
    def test_what_is_not_healthy_is_not_switched_in(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
        set_worker: Callable[[str], None],
        worker: str,
    ) -> None:
        before = deploy(bundles[0])
        set_worker(worker)
        with pytest.raises(AgentError, match="does not answer, nothing was switched"):
            deploy(bundles[1])
        assert deployed_on(transport, device) == before
        assert weights(device, bundles[0]) == b"weights 0"

    def test_a_damaged_blob_is_found_and_the_old_one_stays(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
        wheels: list[WheelFile],
        tmp_path: Path,
    ) -> None:
        before = deploy(bundles[0])
        prepared(transport, device, bundles[1], tmp_path)
        blob = next(iter(bundles[1].manifest.files.values()))
        stored = Path(device.root, "blobs", "sha256", blob.sha256)
        stored.chmod(0o644)
        stored.write_bytes(b"weights X")
        with pytest.raises(AgentError, match="expected sha256"):
            switch_in(device, bundles[1], wheels=wheels)
        assert not stored.exists(), "the next deployment sends it again"
        assert deployed_on(transport, device) == before
        assert deploy(bundles[1]).active.bundle == bundles[1].digest

    def test_a_damaged_state_is_said_and_a_deployment_replaces_it(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
    ) -> None:
        deploy(bundles[0])
        state = Path(device.root, "deployment.json")
        for damaged in (b"", b"{", b'{"version": 2}', b'{"version":1,"active":{"bundle":"../x"}}'):
            state.write_bytes(damaged)
            with pytest.raises(AgentError, match="cannot be read"):
                deployed_on(transport, device)
            with pytest.raises(AgentError, match="cannot be read"):
                talk(device, [1], 1, [], lambda token: None)
        assert deploy(bundles[1]).previous is None

    @pytest.mark.parametrize("after_s", [0.0, 0.1, 0.3, 0.6])
    def test_a_killed_agent_leaves_the_old_one_or_the_new_one(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
        wheels: list[WheelFile],
        tmp_path: Path,
        after_s: float,
    ) -> None:
        before = deploy(bundles[0])
        fields = prepared(transport, device, bundles[1], tmp_path)
        process = start(
            device,
            transport,
            "activate",
            bundle=bundles[1].digest,
            environment=fields["environment"],
            threads=1,
            run_id="killed",
            owner="me",
        )
        time.sleep(after_s)
        process.kill()
        process.communicate()
        found = deployed_on(transport, device)
        assert found is not None
        assert found == before or found.active.bundle == bundles[1].digest
        whole = next(bundle for bundle in bundles if bundle.digest == found.active.bundle)
        assert talk(device, [1], 2, [], lambda token: None).bundle == whole.digest
        assert (
            weights(device, whole)
            == whole.blob_path(whole.manifest.files["artifact/weights.bin"].sha256).read_bytes()
        )
        assert switch_in(device, bundles[1], wheels=wheels).active.bundle == bundles[1].digest

    def test_a_busy_device_is_left_alone(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
        set_worker: Callable[[str], None],
        tmp_path: Path,
    ) -> None:
        deploy(bundles[0])
        set_worker(SLOW)
        fields = prepared(transport, device, bundles[1], tmp_path)
        process = start(device, transport, "run", **fields)
        try:
            wait_until(lambda: bool(Path(device.root, "lease").read_text().strip()), "the run does not begin")
            with pytest.raises(AgentError, match=r"in use by .*somebody@desk"):
                roll_back_over(device, transport, bundles[0])
            with pytest.raises(AgentError, match=r"in use by .*somebody@desk"):
                talk(device, [1], 1, [], lambda token: None)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()

    @pytest.mark.parametrize(
        "fields",
        [
            {"bundle": "../../etc"},
            {"environment": "../x"},
            {"run_id": "a/b"},
            {"threads": "1"},
            {"threads": 0},
            {"bundle": "0" * 64},
        ],
    )
    def test_nonsense_is_refused(
        self, device: Device, transport: LocalTransport, fields: dict[str, Any]
    ) -> None:
        good = {"bundle": "0" * 64, "environment": "0" * 64, "threads": 1, "run_id": "run", "owner": "me"}
        event = exchange(transport, device, "activate", **{**good, **fields})
        assert event["event"] == "error"
        assert event["kind"] in ("request", "system")
        assert deployed_on(transport, device) is None


def roll_back_over(device: Device, transport: LocalTransport, bundle: Bundle) -> None:
    request(transport, device, "rollback", bundle=bundle.digest, run_id="other", owner="another@desk")


class TestTalking:
    def test_every_token_is_told_once_and_in_order(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        bundles: list[Bundle],
        set_worker: Callable[[str], None],
    ) -> None:
        deploy(bundles[0])
        for worker in (HONEST, TALKING):  # one tells nothing on the way, as if all its events were dropped
            set_worker(worker)
            heard: list[int] = []
            said = talk(device, [1, 2], 4, [], heard.append)
            assert said.tokens == heard == [5, 5, 5, 5]
            assert said.bundle == bundles[0].digest
        assert foreign(Path(device.root)) == [], "device remove takes all of it away"

    @pytest.mark.parametrize("tokens", ["[-5] * 4", "[5] * 5", "[]", "[2**40] * 4", "[5] * 3"])
    def test_tokens_that_were_not_asked_for_are_refused(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        bundles: list[Bundle],
        set_worker: Callable[[str], None],
        tokens: str,
    ) -> None:
        deploy(bundles[0])
        talked = '"tokens": [5] * int(request.get("tokens", 0))'
        assert talked in HONEST
        set_worker(HONEST.replace(talked, f'"tokens": {tokens}'))
        heard: list[int] = []
        with pytest.raises(AgentError, match="expected 1 to 4 tokens and a time for each"):
            talk(device, [1, 2], 4, [], heard.append)
        assert heard == []

    def test_nothing_answers_where_nothing_is_deployed(
        self, device: Device, set_worker: Callable[[str], None], tmp_path: Path
    ) -> None:
        set_worker(HONEST)
        with pytest.raises(AgentError, match="nothing is deployed here"):
            talk(device, [1], 1, [], lambda token: None)
        with pytest.raises(FleetError, match="toggle-edge deploy --device here"):
            fetch_tokenizer(device, tmp_path)

    def test_a_bundle_without_a_tokenizer_is_named(
        self, deploy: Callable[[Bundle], Deployment], device: Device, bundles: list[Bundle], tmp_path: Path
    ) -> None:
        deploy(bundles[0])
        with pytest.raises(FleetError, match="has no tokenizer"):
            fetch_tokenizer(device, tmp_path)

    def test_a_manifest_that_a_device_made_up_is_refused(
        self, deploy: Callable[[Bundle], Deployment], device: Device, bundles: list[Bundle], tmp_path: Path
    ) -> None:
        deploy(bundles[0])
        stored = Path(device.root, "blobs", "sha256", bundles[0].digest)
        manifest = json.loads(stored.read_text())
        stored.chmod(0o644)
        stored.write_text(json.dumps({**manifest, "probe_bytes": 1}))
        with pytest.raises(AgentError, match=r"manifest.json: expected sha256"):
            fetch_tokenizer(device, tmp_path)

    def test_two_hosts_take_turns_or_are_told(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        bundles: list[Bundle],
        wheels: list[WheelFile],
    ) -> None:
        deploy(bundles[0])
        deploy(bundles[1])
        ended: list[object] = []

        def other(bundle: Bundle) -> None:
            try:
                ended.append(switch_in(device, bundle, wheels=wheels).active.bundle)
            except AgentError as exc:
                ended.append(str(exc))

        threads = [threading.Thread(target=other, args=(bundle,)) for bundle in bundles[:2]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for each in ended:
            assert each in (bundles[0].digest, bundles[1].digest) or "in use by" in str(each)
        found = deployed_on(LocalTransport(Path.home()), device)
        assert found is not None
        assert found.active.bundle in ended


class TestCollecting:
    """What nothing needs goes, oldest first; what is needed stays, whatever the quota."""

    @pytest.fixture
    def store(
        self, deploy: Callable[[Bundle], Deployment], device: Device, bundles: list[Bundle]
    ) -> Callable[[], set[str]]:
        for bundle in bundles:
            deploy(bundle)
        return lambda: {path.name for path in Path(device.root, "blobs", "sha256").iterdir()}

    def test_what_is_deployed_and_the_one_before_stay_under_any_quota(
        self, store: Callable[[], set[str]], device: Device, bundles: list[Bundle]
    ) -> None:
        root = Path(device.root)
        before = store()
        assert collect(root, 0) == {"removed_bytes": 0, "left_bytes": size_of(root)}, "all of it is young"
        found = collect(root, 0, young_s=-1.0)
        kept = {b.sha256 for bundle in bundles[1:] for b in bundle.manifest.files.values()}
        assert store() == kept | {bundle.digest for bundle in bundles[1:]} < before
        assert found == {"removed_bytes": found["removed_bytes"], "left_bytes": size_of(root)}
        assert found["removed_bytes"] > 0
        assert {path.name for path in (root / "environments").iterdir()} == {
            read_deployment(root).active.environment  # type: ignore[union-attr]
        }
        assert talk(device, [1], 1, [], lambda token: None).bundle == bundles[2].digest
        assert roll_back(device).active.bundle == bundles[1].digest

    def test_a_quota_that_is_kept_removes_nothing_and_the_oldest_goes_first(
        self, store: Callable[[], set[str]], device: Device
    ) -> None:
        root = Path(device.root)
        total = size_of(root)
        for age, name in enumerate(("0" * 64, "1" * 64, "2" * 64)):
            path = root / "blobs" / "sha256" / name
            path.write_bytes(bytes(1000))
            os.utime(path, (0, age))
        assert collect(root, total + 3000, young_s=0.0)["removed_bytes"] == 0
        assert collect(root, total + 1500, young_s=1.0)["removed_bytes"] == 2000
        assert {"0" * 64, "1" * 64, "2" * 64} & store() == {"2" * 64}

    def test_a_run_that_nobody_fetched_stays(self, store: Callable[[], set[str]], device: Device) -> None:
        root = Path(device.root)
        for name in ("home", "away", "unfinished"):
            (root / "runs" / name).mkdir(parents=True)
            Spool(root / "runs" / name).journal("lease")
        for name in ("home", "away"):
            (root / "runs" / name / "record.json").write_text("{}")
        Spool(root / "runs" / "home").mark_fetched()
        collect(root, 0, young_s=-1.0)
        assert {path.name for path in (root / "runs").iterdir()} == {"away", "unfinished"}

    def test_nothing_goes_where_it_is_unknown_what_is_needed(
        self, store: Callable[[], set[str]], device: Device, transport: LocalTransport
    ) -> None:
        before = store()
        Path(device.root, "deployment.json").write_text("{")
        event = exchange(transport, device, "collect", quota_bytes=0, run_id="run", owner="me")
        assert event["kind"] == "deployment"
        assert store() == before

    def test_links_are_not_followed(
        self, store: Callable[[], set[str]], device: Device, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "precious").write_text("x")
        Path(device.root, "environments", "e" * 64).symlink_to(outside)
        Path(device.root, "blobs", "sha256", "b" * 64).symlink_to(outside / "precious")
        collect(Path(device.root), 0, young_s=-1.0)
        assert (outside / "precious").read_text() == "x"

    def test_a_run_that_came_home_may_go_and_its_wheels_are_not_sent_again(
        self,
        deploy: Callable[[Bundle], Deployment],
        device: Device,
        transport: LocalTransport,
        bundles: list[Bundle],
        wheels: list[WheelFile],
        tmp_path: Path,
    ) -> None:
        result = run_bundle(device, bundles[0], only("parity"), tmp_path / "home", wheels=wheels)
        root = Path(device.root)
        assert Spool(root / "runs" / result.record.run_id).was_fetched()
        (root / "blobs" / "sha256" / wheels[0].sha256).unlink()
        assert prepare_environment(transport, device, wheels) == environment_id(wheels)
        assert not (root / "blobs" / "sha256" / wheels[0].sha256).exists()


def size_of(root: Path) -> int:
    folders = [root / name for name in ("blobs/sha256", "incoming", "environments", "runs")]
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())
