"""A device's own numpy and onnxruntime in place of wheels that we ship: added, examined, deployed to, spoken with."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from commands import Call

from toggle_edge.errors import AgentError, FleetError
from toggle_edge.fleet.device import Device, load_device
from toggle_edge.fleet.fake import FakeTransport
from toggle_edge.fleet.local import LocalTransport
from toggle_edge.fleet.packages import adopt_packages, look_at_packages, require_packages
from toggle_edge.pipeline.inputs import demo_folder

DEMO = demo_folder()
PROFILE = (Path(__file__).parents[2] / "profiles" / "default.toml").read_text()
OURS = Path(str(np.__file__)).parents[1]
VERSIONS = {"numpy": np.__version__, "onnxruntime": onnxruntime.__version__}


def fake(folder: Path, onnxruntime: str = "1.23.2", numpy: str = "2.2.6") -> Path:
    """Packages that can be imported and do nothing."""
    for name, text in (
        ("numpy", f"__version__ = {numpy!r}\n"),
        ("onnxruntime", f"__version__ = {onnxruntime!r}\nInferenceSession = object\n"),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "__init__.py").write_text(text)
    return folder


@pytest.fixture
def device(tmp_path: Path) -> Device:
    found = Device(name="here", transport="local", root=str(tmp_path / "root"), python=sys.executable)
    return dataclasses.replace(found, packages=str(fake(tmp_path / "vendor")))


def environments(device: Device) -> list[Path]:
    return sorted((Path(device.root) / "environments").glob("*"))


def test_a_bundle_is_deployed_to_them_and_answers(call: Call, tmp_path: Path) -> None:
    profile = tmp_path / "one.toml"
    profile.write_text(
        PROFILE.replace("search = 59", "search = 1").replace("certificate = 59", "certificate = 1")
    )
    root = tmp_path / "device"
    added = call("device", "add", "here", "--local", "--root", root, "--packages", OURS, "--json")
    assert added.code == 0, added.err
    assert json.loads(added.out)["wheels"] == VERSIONS
    assert load_device(tmp_path / "cwd" / "devices" / "here.toml").packages == str(OURS)
    model = [
        "export",
        DEMO / "model",
        "--config",
        "int8-g64",
        "--profile",
        profile,
        "-o",
        tmp_path / "bundle",
    ]
    assert call(*model).code == 0
    deployed = call(
        "deploy", "--bundle", tmp_path / "bundle", "--device", "here", "--restarts", "1", "--json"
    )
    assert deployed.code == 0, deployed.err
    said = call("run", "--device", "here", "Once upon a time", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["tokens"]
    (environment,) = (root / "environments").iterdir()
    assert [path.name for path in environment.iterdir()] == ["found"], "nothing was unpacked"
    sizes = [path.stat().st_size for path in (root / "blobs" / "sha256").iterdir()]
    assert max(sizes) < 8e6, "no wheel travelled"
    healthy = call("device", "doctor", "here", "--json")
    assert healthy.code == 0, healthy.out
    (wheels,) = (each for each in json.loads(healthy.out)["findings"] if each["name"] == "wheels")
    told = f"the device's own numpy {np.__version__} and onnxruntime {onnxruntime.__version__} in {OURS}"
    assert (wheels["state"], wheels["found"]) == ("OK", told)


def test_looking_leaves_nothing_there(device: Device) -> None:
    found = look_at_packages(LocalTransport(Path.home()), device)
    assert found == {"numpy": "2.2.6", "onnxruntime": "1.23.2"}
    assert [path.name for path in Path(device.root).iterdir()] == ["agent"]
    assert not list(Path(device.packages).rglob("*.pyc")), "nor in a folder that is not ours"


def test_other_versions_are_another_environment(device: Device) -> None:
    first = adopt_packages(LocalTransport(Path.home()), device, "onnx-cpu-1.23")
    assert adopt_packages(LocalTransport(Path.home()), device, "onnx-cpu-1.23") == first
    assert [path.name for path in environments(device)] == [first]
    (environments(device)[0] / "found").unlink()  # killed before it was written
    assert adopt_packages(LocalTransport(Path.home()), device, "onnx-cpu-1.23") == first
    assert (environments(device)[0] / "found").read_text() == device.packages
    fake(Path(device.packages), numpy="2.3.0")
    assert adopt_packages(LocalTransport(Path.home()), device, "onnx-cpu-1.23") != first


def broken(folder: Path) -> None:
    (folder / "onnxruntime" / "__init__.py").write_text("raise ImportError('libcublas.so.12')")


def absent(folder: Path) -> None:
    (folder / "numpy" / "__init__.py").unlink()


def too_old(folder: Path) -> None:
    fake(folder, onnxruntime="1.16.0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (broken, r"packages: \S+vendor: it cannot be imported \(ImportError: libcublas\.so\.12\)"),
        (absent, r"packages: expected numpy and onnxruntime in \S+vendor, found no numpy"),
        (too_old, r"onnxruntime 1\.16\.0 in \S+ is what no target is for, not onnx-cpu; install a newer one"),
        (
            lambda folder: None,
            r"onnxruntime 1\.23\.2 in \S+ is what onnx-cpu-1\.23 is for, not onnx-cpu; export",
        ),
    ],
)
def test_what_does_not_fit_is_refused(damage, message: str, device: Device) -> None:  # type: ignore[no-untyped-def]
    damage(Path(device.packages))
    with pytest.raises((AgentError, FleetError), match=message):
        adopt_packages(LocalTransport(Path.home()), device, "onnx-cpu")


def test_a_relative_folder_is_refused_by_the_device_too(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Device, "__post_init__", lambda self: None)
    with pytest.raises(AgentError, match="packages: expected an absolute folder of the device, got 'vendor'"):
        look_at_packages(LocalTransport(Path.home()), dataclasses.replace(device, packages="vendor"))


def test_lowered_bundles_have_an_engine_of_their_own(device: Device) -> None:
    with pytest.raises(FleetError, match="bring their own runner; leave `packages` out"):
        require_packages(device, "executorch-xnnpack", VERSIONS)
    require_packages(device, "onnx-cuda", VERSIONS)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"versions": None},
        {"versions": {"numpy": "2.0"}},
        {"versions": {"numpy": "2.0", "onnxruntime": 1}},
        {"versions": {"numpy": "2.0", "onnxruntime": "1.23; rm"}},
        {"versions": {"numpy": "2.0", "onnxruntime": "1.31", "extra": "1"}},
        {"versions": {"numpy": "2.0", "onnxruntime": "1.31"}},
        {"versions": {"numpy": "2.0", "onnxruntime": "1.31"}, "id": "../../etc"},
    ],
)
def test_a_device_is_not_believed_without_looking(answer: dict[str, object], device: Device) -> None:
    link = FakeTransport(lambda question: [{"event": "result", **answer}])
    with pytest.raises(AgentError, match=r"packages: expected versions|environment: expected an id"):
        adopt_packages(link, device, "onnx-cpu")


def test_added_by_its_own_runtime_and_kept_when_added_again(
    call: Call, device: Device, tmp_path: Path
) -> None:
    options = ["device", "add", "here", "--local", "--root", device.root, "--json"]
    first = call(*options, "--packages", device.packages)
    assert first.code == 0, first.err
    assert json.loads(first.out)["target"] == "onnx-cpu-1.23"
    assert "its own onnxruntime is 1.23.2: fewer formats" in json.loads(first.out)["note"]
    again = call(*options, "--replace")
    assert again.code == 0, again.err
    assert load_device(tmp_path / "cwd" / "devices" / "here.toml").packages == device.packages
    absent(Path(device.packages))
    examined = call("device", "doctor", "here", "--json")
    assert examined.code == 3
    (wheels,) = (each for each in json.loads(examined.out)["findings"] if each["name"] == "wheels")
    assert wheels["state"] == "BROKEN"
    assert wheels["fix"]["command"].startswith("ls -d ")
    refused = call(*options, "--replace", "--packages", "somewhere")
    assert refused.code == 2
    assert "packages: expected an absolute folder of the device" in refused.err
