"""Which wheels a device gets: decided by its facts, taken from the cache, refused with a remedy."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from toggle_edge.errors import FleetError
from toggle_edge.fleet.environment import PINS, environment_id, worker_wheels
from toggle_edge.fleet.facts import DeviceFacts

FACTS = DeviceFacts(
    agent_version="0.1.0",
    protocol=2,
    manifest_versions=[1, 2],
    record_version=2,
    trusted_keys={},
    python="3.11.7",
    implementation="CPython",
    machine="x86_64",
    libc="glibc",
    libc_version="2.36",
    system="Linux",
    release="6.1",
    hostname="here",
    cpus=2,
    memory_bytes=1 << 30,
    free_disk_bytes=1 << 30,
)
TAG = "manylinux_2_27_x86_64.manylinux_2_28_x86_64"


def fill(cache: Path, folder: str = "cp311-x86_64", tag: str = TAG, version: str = "3.11") -> None:
    (cache / folder).mkdir(parents=True)
    for pin in PINS[version]:
        name = pin.replace("==", "-")
        (cache / folder / f"{name}-cp311-cp311-{tag}.whl").write_bytes(name.encode())


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index: what is not in the cache cannot be fetched."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_cached_wheels_need_no_network(tmp_path: Path) -> None:
    fill(tmp_path)
    wheels = worker_wheels(FACTS, tmp_path)
    assert [wheel.name.split("-")[0] for wheel in wheels] == ["onnxruntime", "numpy"]
    assert [wheel.size for wheel in wheels] == [wheel.path.stat().st_size for wheel in wheels]


def test_the_identifier_names_the_content(tmp_path: Path) -> None:
    fill(tmp_path)
    wheels = worker_wheels(FACTS, tmp_path)
    assert environment_id(wheels) == environment_id(wheels[::-1])
    assert environment_id(wheels) != environment_id(wheels[:1])
    assert re.fullmatch("[0-9a-f]{64}", environment_id(wheels))


@pytest.mark.parametrize(
    "change", [{"machine": "aarch64"}, {"python": "3.12.1"}, {"libc_version": "2.26"}, {"python": "3.8.18"}]
)
def test_wheels_of_another_platform_are_not_taken(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path)
    with pytest.raises(FleetError, match=r"cannot fetch onnxruntime==.*copy the wheels into"):
        worker_wheels(dataclasses.replace(FACTS, **change), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"python": "3.7.1"}, r"expected CPython 3.8, .*got CPython 3.7.1.*set `python` in the device file"),
        ({"implementation": "PyPy"}, "expected CPython"),
        ({"libc": ""}, "Linux with glibc 2 only"),
        ({"system": "Darwin"}, "Linux with glibc 2 only"),
        ({"libc_version": "2.36; rm"}, "Linux with glibc 2 only"),
        ({"machine": "../../x"}, "an architecture such as aarch64"),
    ],
)
def test_a_device_without_wheels_is_told_so(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError, match=message):
        worker_wheels(dataclasses.replace(FACTS, **change), tmp_path)


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path))
    fill(tmp_path / "wheels")
    assert len(worker_wheels(FACTS)) == 2
