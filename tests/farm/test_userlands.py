"""Two boards with another processor, an older glibc and an older Python: registered, deployed to and validated."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from travels import MODEL, Journey, deployed_and_validated, exported, registered

from toggle_edge.errors import FleetError
from toggle_edge.fleet import ssh, ssh_links, ssh_login
from toggle_edge.fleet.environment import PINS, worker_wheels
from toggle_edge.fleet.namespaces import EMULATOR, why_not_foreign
from toggle_edge.fleet.sshd import LoopbackSshd
from toggle_edge.fleet.userlands import RELEASES, board, userland
from toggle_edge.model.load import load_model

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(why_not_foreign() is not None, reason=f"no emulated boards here: {why_not_foreign()}"),
]

PATIENCE_S = 90.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where device files, bundles and runs lie: one bundle for each of the two menus."""
    folder = tmp_path_factory.mktemp("boards")
    # All of it in 4 bits would break the contract of so small a model: one block has to do, to run that kernel too.
    names = [layer.name for layer in load_model(MODEL).layers]
    config = {name: "int4-g32" if ".3." in name else "fp16" for name in names}
    assert set(config.values()) == {"int4-g32", "fp16"}
    (folder / "config.json").write_text(json.dumps(config))
    before = Path.cwd()
    os.chdir(folder)
    exported(folder, "config.json", "onnx-cpu-1.19")
    exported(folder, "int8-g64", "onnx-cpu")
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def patience() -> Iterator[None]:
    """Emulated on a busy machine, what takes a board a second takes many: silence is looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssh, "CONNECT_TIMEOUT_S", PATIENCE_S)
        patch.setattr(ssh_links, "CONNECT_TIMEOUT_S", PATIENCE_S)
        patch.setattr(ssh_login, "SILENCE_S", PATIENCE_S)
        patch.setattr(ssh, "connect", partial(ssh.connect, silence_s=PATIENCE_S))
        yield


@pytest.fixture(scope="module")
def journeys(folder: Path, patience: None) -> Mapping[str, Journey]:
    """Both boards at once: registered, then given the bundle of whatever target registering them chose."""

    def travel(release: str) -> Journey:
        try:
            userland(release)
        except FleetError as exc:
            pytest.skip(str(exc))
        with LoopbackSshd(folder / release, release, board(folder / release, release, release)) as server:
            added = registered(server)
            try:
                worker_wheels(added.facts)
            except FleetError as exc:
                pytest.skip(str(exc))
            return deployed_and_validated(added, folder / added.device.target)

    with ThreadPoolExecutor(len(RELEASES)) as pool:
        return dict(zip(RELEASES, pool.map(travel, RELEASES), strict=True))


@pytest.mark.parametrize(
    ("release", "python", "libc", "target", "formats"),
    [
        ("bullseye", "3.9", "glibc 2.31", "onnx-cpu-1.19", "int4-g32, int4-g128, fp16"),
        ("bookworm", "3.11", "glibc 2.36", "onnx-cpu", "int2-g64, int4-g32, int8-g64, fp16"),
    ],
)
def test_what_was_found_there_decides_the_menu(
    journeys: Mapping[str, Journey], release: str, python: str, libc: str, target: str, formats: str
) -> None:
    added = journeys[release].added
    assert (added.facts.machine, added.facts.hostname) == ("aarch64", release)
    assert added.device.labels == {"arch": "aarch64", "libc": libc, "python": python}
    assert added.device.target == target
    assert added.device.capabilities["formats"] == formats
    engine = f"onnxruntime=={added.device.capabilities['onnxruntime']}"
    assert engine in PINS[python]
    few = f"Python {python} ends at {engine.replace('==', ' ')}: fewer formats than newer ones have"
    assert (few in added.path.read_text()) == (target == "onnx-cpu-1.19")


@pytest.mark.parametrize("release", RELEASES)
def test_a_bundle_is_deployed_and_validated_there(journeys: Mapping[str, Journey], release: str) -> None:
    journeys[release].require_success()


@pytest.mark.parametrize("release", RELEASES)
def test_the_engine_that_was_chosen_is_the_one_that_ran(
    journeys: Mapping[str, Journey], release: str
) -> None:
    journey = journeys[release]
    record, wheels = journey.record, journey.added.choice.wheels
    assert record.environment["onnxruntime"] == wheels["onnxruntime"]
    assert record.environment["numpy"] == wheels["numpy"]
    assert record.conditions["cpu_model"] == "0xd42"
    assert record.conditions["temperature_millicelsius_before"] == "41000"
    measured = journey.deployed.validation.measured
    assert (measured["ttft_ms"].status, measured["decode_ms_p50"].status) == ("ok", "ok")
    assert (measured["memory_bytes"].value, measured["memory_bytes"].status) == (None, "unavailable")
    assert "emulated: this Python is for aarch64" in str(measured["memory_bytes"].reason)
    # What `/proc` tells there is the emulator's, however ARM the board looks.
    assert all(each.others_share is None for each in record.passes)
    assert all(any(why.startswith("emulated: ") for why in each.unknown) for each in record.passes)


def test_boards_need_an_emulator_of_their_processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    older = tmp_path / EMULATOR
    older.write_text("#!/bin/sh\necho '  cortex-a53'\n")
    older.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "knows no cortex-a76: install qemu-user-static 7.1 or later" in str(why_not_foreign())


def test_boards_need_an_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert why_not_foreign() == "no qemu-aarch64-static: install qemu-user-static"
