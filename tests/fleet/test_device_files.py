"""Device files that are written read back as the same device, and templates are data that fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toggle_runtime.meters.external import ExternalMeter

from toggle_edge.errors import DeviceFileError
from toggle_edge.fleet.device import Budget, Device, Jump, device_names, load_device
from toggle_edge.fleet.device_files import device_text, write_device_file
from toggle_edge.fleet.templates import load_template, template_names
from toggle_edge.targets import TARGETS

FULL = Device(
    name="pi",
    host="10.0.0.2",
    port=2222,
    user="pi",
    host_key="SHA256:" + "a" * 43,
    root="edge",
    python="/opt/python3",
    threads=4,
    labels={"room": "lab", "two words": "x"},
    budget=Budget(decode_ms=12.5, memory_bytes=1000),
    meters=("rapl", "ina3221"),
    capabilities={"cpus": 4, "energy": "unavailable: no meter"},
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def read(folder: Path, text: str) -> Device:
    path = folder / "device.toml"
    path.write_text(text, encoding="utf-8")
    return load_device(path)


@pytest.mark.parametrize(
    "device",
    [
        FULL,
        dataclasses.replace(FULL, identity="~/.ssh/id", budget=Budget(), capabilities={}),
        Device(name="here", transport="local"),
        dataclasses.replace(FULL, meter=ExternalMeter("W", "plug", command=["read", "it"], step=0.5)),
        dataclasses.replace(FULL, meter=ExternalMeter("Wh", "plug", csv="/var/log/power.csv", period_s=2.0)),
        dataclasses.replace(FULL, packages="/opt/vendor's own/site-packages"),
        dataclasses.replace(FULL, jump=Jump("gate", 2222, "me", FULL.host_key, "~/.ssh/gate")),
    ],
    ids=["agent", "identity", "local", "command", "csv", "packages", "jump"],
)
def test_what_is_written_reads_back_equal(tmp_path: Path, device: Device) -> None:
    text = device_text(device, ["Written by a test.", "With two lines."])
    assert read(tmp_path, text) == device
    assert text.startswith("# Written by a test.\n# With two lines.\n")
    assert ("the SSH agent holds" in text) == (device.transport == "ssh" and not device.identity)


@settings(max_examples=100, deadline=None)
@given(labels=st.dictionaries(TEXTS, TEXTS, max_size=4), root=TEXTS.filter(lambda t: t and t[0] != "~"))
def test_any_text_survives(
    tmp_path_factory: pytest.TempPathFactory, labels: dict[str, str], root: str
) -> None:
    device = dataclasses.replace(FULL, labels=labels, capabilities=labels, root=root)
    assert read(tmp_path_factory.mktemp("device"), device_text(device)) == device


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('meters = "rapl"', "meters: expected a list of texts"),
        ("meters = [3]", "meters: expected a list of texts"),
        ("[meter]\nunit = 'V'\nscope = 's'\ncsv = 'f'", "meter.unit: expected one of"),
        ("[meter]\nwatts = 3", "unknown key 'watts'"),
        ("capabilities = 3", "capabilities: expected a table"),
        ("[capabilities]\ncpus = true", r"capabilities.cpus: expected a text or an integer"),
        ("[capabilities]\ncpus = [1]", r"capabilities.cpus: expected a text or an integer"),
        ('transport = "ssh"\nhost = "-oProxyCommand=x"\nuser = "u"', "host: expected a value without spaces"),
        ('transport = "ssh"\nhost = "h"\nuser = "a b"', "user: expected a value without spaces"),
        ("jump = 3", "jump: expected a table"),
        ('[jump]\nhots = "h"', r"unknown key jump.hots; did you mean jump.host\?"),
        (
            f'transport = "ssh"\nhost = "h"\nuser = "u"\nhost_key = "{FULL.host_key}"\n[jump]\nhost = "g"',
            "jump.user: ",
        ),
    ],
)
def test_wrong_values_name_their_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeviceFileError, match=message):
        read(tmp_path, ('transport = "local"\n' if "transport" not in text else "") + text)


def test_nothing_is_written_over_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "devices" / "pi.toml"
    write_device_file(path, "one", replace=False)
    with pytest.raises(DeviceFileError, match=r"pi.toml: is there already; give --replace"):
        write_device_file(path, "two", replace=False)
    assert path.read_text() == "one"
    write_device_file(path, "three", replace=True)
    assert path.read_text() == "three"
    assert [each.name for each in path.parent.iterdir()] == ["pi.toml"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "devices").write_text("a file")
    with pytest.raises(DeviceFileError, match=r"devices/pi.toml: cannot be written"):
        write_device_file(tmp_path / "devices" / "pi.toml", "x", replace=True)


BOARDS = ["jetson-orin-jetpack5", "jetson-orin-jetpack6", "jetson-orin-jetpack7", "raspberry-pi-5"]


def test_all_the_templates_are_there() -> None:
    assert template_names() == sorted([*BOARDS, "android-termux", "linux-laptop", "macos"])
    assert not set(template_names()) & set(device_names()), "a template is no device"


@pytest.mark.parametrize("name", template_names())
def test_a_template_makes_a_device(name: str, tmp_path: Path) -> None:
    template = load_template(name)
    assert template.name == name
    assert template.summary
    assert template.labels["kind"]
    shared = ("port", "python", "root", "threads", "labels")
    device = Device(
        name="made",
        host="h",
        user="u",
        host_key=FULL.host_key,
        meters=tuple(template.meters),
        **{key: getattr(template, key) for key in shared},
    )
    assert device.target in TARGETS
    assert read(tmp_path, device_text(device, template.advice)) == device


def test_termux_listens_elsewhere_and_has_no_etc() -> None:
    termux = load_template("android-termux")
    assert termux.port == 8022
    for path in (termux.python, termux.root, termux.host_key_folder):
        assert path.startswith("/data/data/com.termux/files/")


def test_unknown_and_damaged_templates_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceFileError, match=r"expected one of .*macos.*; did you mean 'raspberry-pi-5'"):
        load_template("rasberry-pi-5")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "devices" / "templates").mkdir(parents=True)
    path = tmp_path / "devices" / "templates" / "mine.toml"
    path.write_text('summary = "Mine"\nportt = 3\n')
    with pytest.raises(DeviceFileError, match=r"mine.toml: expected a device template.*unknown key 'portt'"):
        load_template("mine")
    path.write_text('summary = "Mine"\nport = 3\n')
    assert load_template("mine").port == 3
