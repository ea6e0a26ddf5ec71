"""`keys`, `device keys | revoke | agent` and `import` as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Call
from toggle_runtime.trust import key_id

from toggle_edge.signing import signing_key


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_HOME", str(tmp_path / "home"))


def test_keys_are_listed_rotated_and_revoked(call: Call) -> None:
    assert "no key yet" in call("keys", "list").out
    old = signing_key()
    told = json.loads(call("keys", "rotate", "--json").out)
    assert (told["old"], told["name"]) == (key_id(old.public), f"{old.name}.2")
    assert call("keys", "revoke", told["new"]).code == 2
    text = call("keys", "revoke", old.name).out
    assert f"toggle-edge device revoke D {told['old']}" in text
    listed = json.loads(call("keys", "list", "--json").out)["keys"]
    assert [(each["id"], each["role"]) for each in listed] == [
        (told["new"], "signing"),
        (told["old"], "revoked"),
    ]
    assert "still trusted" in call("keys", "rotate").out


def test_a_devices_keys_are_listed_and_revoked_for_good(call: Call, tmp_path: Path) -> None:
    Path("here.toml").write_text(
        f'name = "here"\ntransport = "local"\nroot = "{tmp_path}/device"\npython = "{sys.executable}"\n'
    )
    own = signing_key()
    assert "trusts nobody yet" in call("device", "keys", "here.toml").out
    assert call("device", "trust", "here.toml").code == 0
    assert call("device", "keys", "here.toml").out == f"{key_id(own.public)}  trusted  {own.name}\n"
    assert call("device", "revoke", "here.toml", "nobody").code == 2
    told = json.loads(call("device", "revoke", "here.toml", own.name, "--json").out)
    assert told["keys"] == [{"id": key_id(own.public), "name": own.name, "role": "revoked"}]
    again = call("device", "trust", "here.toml")
    assert (again.code, "was revoked on this device, which is for good" in again.err) == (3, True)


def test_the_agent_is_written_and_runs(call: Call) -> None:
    told = call("device", "agent", "--key", "host.pub")
    assert (told.code, "validate BUNDLE --key host.pub -o run.zip" in told.out) == (0, True)
    done = subprocess.run(
        [sys.executable, "toggle-agent.pyz", "validate", "--help"], capture_output=True, text=True
    )
    assert (done.returncode, "--allow-unsigned" in done.stdout) == (0, True)
    assert call("device", "agent").code == 2
    assert Path("host.pub").read_text().startswith(f"ed25519 {signing_key().public} ")


def test_what_is_no_run_is_bad_input(call: Call) -> None:
    refused = call("import", "nowhere.zip", "--json")
    assert (refused.code, json.loads(refused.out)["exit_code"]) == (2, 2)
    assert "got neither" in refused.err
