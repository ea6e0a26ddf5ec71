"""Device files: data that is checked before anything is connected."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.errors import DeviceFileError
from toggle_edge.fleet.device import Budget, Device, device_names, load_device

KEY = "SHA256:" + "a" * 43
SSH = f"""
name = "pi"
host = "10.0.0.2"
user = "pi"
host_key = "{KEY}"
identity = "key"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "pi.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_all_fields_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        SSH + 'port = 2222\nthreads = 4\nroot = "edge"\npython = "/opt/python3"\n'
        '[labels]\nroom = "lab"\n[budget]\ndecode_ms = 12\nmemory_bytes = 1_000\n',
    )
    device = load_device(path)
    assert device == Device(
        name="pi",
        host="10.0.0.2",
        port=2222,
        user="pi",
        host_key=KEY,
        identity="key",
        root="edge",
        python="/opt/python3",
        threads=4,
        labels={"room": "lab"},
        budget=Budget(decode_ms=12, memory_bytes=1000),
    )


def test_the_template_is_a_device_found_by_name() -> None:
    assert load_device("laptop").transport == "local"
    assert "laptop" in device_names()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SSH + "threds = 3", r"unknown key threds; did you mean threads\?"),
        (SSH + "zzzz = 3", "unknown key zzzz; known: .*host_key"),
        (SSH + 'port = "22"', "port: expected an integer, got '22'"),
        (SSH + "port = true", "port: expected an integer"),
        (SSH + "port = 70000", "port: expected 1 to 65535"),
        (SSH + "threads = 0", "threads: expected at least 1"),
        (SSH + 'root = "~/x"', "root: expected a folder"),
        (SSH + 'transport = "telnet"', "transport: expected one of"),
        (SSH + "[budget]\ndecode = 3", r"unknown key budget.decode; did you mean budget.decode_ms\?"),
        (SSH + "[budget]\ndecode_ms = -3", "budget.decode_ms: expected more than 0"),
        (SSH + "[labels]\nroom = 3", "labels.room: expected a text"),
        (SSH + "budget = 3", "budget: expected a table"),
        (SSH.replace(KEY, ""), "host_key: expected the pinned fingerprint"),
        (SSH.replace(KEY, "MD5:aa:bb"), "host_key: expected the pinned fingerprint"),
        (SSH.replace('user = "pi"', ""), "user: expected a value"),
        ("name = ", "expected a device file in TOML"),
    ],
)
def test_a_wrong_file_names_its_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DeviceFileError, match=message) as caught:
        load_device(write(tmp_path, text))
    assert "pi.toml" in str(caught.value)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(DeviceFileError, match="did you mean 'laptop'"):
        load_device("labtop")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=12))
def test_no_name_leaves_the_registry(name: str) -> None:
    try:
        assert "/" not in Device(name=name, transport="local").name
    except DeviceFileError as exc:
        assert "name" in str(exc)  # noqa: PT017 - either branch is fine, an unnamed error is not
