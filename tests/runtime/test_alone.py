"""The agent's one file on a device with no host and nothing else: what it says, writes, refuses and ends with."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from interpreters import interpreter
from scripted_workers import HONEST, archive_with, make_bundle, wait_until
from toggle_runtime.records import RunRecord, from_json
from toggle_runtime.trust import key_line

from toggle_edge.pipeline.carrying import write_agent
from toggle_edge.signing import signing_key

SLEEPER = "import time\ndef main():\n time.sleep(60)"
BRIEF = [word for name in ("capacity", "cold", "latency", "energy") for word in ("--without", name)]


@dataclasses.dataclass(frozen=True)
class Field:
    """A device with a Python and nothing else, and what was carried there."""

    folder: Path
    python: str
    flags: tuple[str, ...] = ()

    def validate(self, *more: object, bundle: str = "bundle") -> subprocess.CompletedProcess[str]:
        command = [self.python, *self.flags, "toggle-agent.pyz", "validate", bundle, "--root", "device"]
        command += map(str, more)
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder)}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


def wheels(folder: Path, python: str = "py3", broken: bool = False) -> None:
    """Wheels that import and do nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("numpy", ""), ("onnxruntime", "InferenceSession = 1\n")):
        with zipfile.ZipFile(folder / f"{name}-1.0-{python}-none-any.whl", "w") as archive:
            archive.writestr(
                f"{name}/__init__.py", "import nothing\n" if broken else f"__version__ = '1.0'\n{text}"
            )


@pytest.fixture(params=["3.8", f"3.{sys.version_info[1]}"])
def field(request: pytest.FixtureRequest, tmp_path: Path) -> Field:
    python = interpreter(request.param)
    if python is None:
        pytest.skip(f"no Python {request.param} on this machine")
    (tmp_path / "toggle-agent.pyz").write_bytes(archive_with(HONEST))
    make_bundle(tmp_path / "bundle")
    ours = signing_key()
    (tmp_path / "host.pub").write_text(key_line(ours.public, ours.name) + "\n")
    return Field(tmp_path, python)


def test_a_run_is_told_kept_and_packed(field: Field) -> None:
    wheels(field.folder / "bundle" / "wheels")
    done = field.validate("--key", "host.pub", "-o", "run.zip", *BRIEF[:4])
    assert done.returncode == 0, done.stderr
    for line in (
        f"             signed by {signing_key().name}",
        "engine       onnxruntime 1.0, numpy 1.0, wheels in bundle/wheels",
        "decode       1.5e-06 ms/token",
        "peak memory  0.0 MB",
        "this device's own verdict; RTAMT judges it again there",
        "next         at home: toggle-edge import run.zip",
        "coherence                  SATISFIED  +0.2500",
        "1 of 1 probes satisfy all of it, 1 are needed; AvgPP 97.50 %",
    ):
        assert line in done.stdout, line
    assert "energy       unavailable: " in done.stdout or "mJ/token" in done.stdout
    assert done.stdout.rstrip().endswith("PASS")
    assert f"trusts bundles signed by {signing_key().name}" in done.stderr
    [run] = (field.folder / "device" / "runs").iterdir()
    record = from_json(RunRecord, (run / "record.json").read_text())
    assert (record.outcome, record.signed_by) == ("PASS", signing_key().public)
    with zipfile.ZipFile(field.folder / "run.zip") as archive:
        names = archive.namelist()
        assert archive.read("record.json") == (run / "record.json").read_bytes()
    assert sorted(names) == ["contract/manifest.json", "record.json", "traces.npz"]
    again = field.validate("--json", *BRIEF)  # the key is trusted, the environment is there
    told: dict[str, Any] = json.loads(again.stdout)
    assert (again.returncode, told["outcome"], told["certified"]) == (0, "PASS", False)
    assert told["record"]["latency"] == []
    assert told["run"] != run.name


@pytest.mark.parametrize(
    ("word", "code", "reason"),
    [
        ("VIOLATED", 1, "1 of 1 probes satisfy optimal"),
        ("UNSET", 3, "could not be decided"),
        ("MARGINAL", 0, ""),
    ],
)
def test_the_exit_status_is_the_verdicts(field: Field, word: str, code: int, reason: str) -> None:
    worker = HONEST.replace('"optimal", "verdict": "SATISFIED"', f'"optimal", "verdict": "{word}"')
    (field.folder / "toggle-agent.pyz").write_bytes(archive_with(worker))
    wheels(field.folder / "wheels")
    done = field.validate("--key", "host.pub", *BRIEF)
    assert (done.returncode, reason in done.stdout) == (code, True), done.stdout + done.stderr


def test_what_may_not_run_is_refused_before_anything_is_copied(field: Field) -> None:
    wheels(field.folder / "wheels")
    unknown = field.validate()
    assert (unknown.returncode, "this device trusts nobody" in unknown.stderr) == (2, True)
    make_bundle(field.folder / "unsigned", b"other", signed=False)
    unsigned = field.validate("--json", bundle="unsigned")
    assert unsigned.returncode == 2
    assert "expected a signed bundle" in json.loads(unsigned.stdout)["error"]["message"]
    assert not (field.folder / "device" / "blobs").exists()
    allowed = field.validate("--allow-unsigned", *BRIEF, bundle="unsigned")
    assert (allowed.returncode, "NOT signed" in allowed.stdout) == (0, True)
    assert "nobody vouches for what is run now" in allowed.stderr


def test_damage_and_mistakes_are_named(field: Field) -> None:
    wheels(field.folder / "wheels")
    [blob] = (field.folder / "bundle" / "blobs" / "sha256").iterdir()
    whole = blob.read_bytes()
    for content, told in (
        (whole[:-1], "expected a file of 12 bytes"),
        (whole[:-1] + b"?", "expected sha256"),
    ):
        blob.write_bytes(content)
        done = field.validate("--key", "host.pub")
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr
    blob.unlink()
    blob.symlink_to(field.folder / "host.pub")
    assert field.validate().returncode == 2
    assert not (field.folder / "device" / "runs").exists()
    for arguments, code in (
        (("--mode", "nonsense"), 2),
        (("--threads", "0"), 2),
        (("--key", "nowhere.pub"), 3),
        (("-o", "host.pub"), 2),
        (("--nonsense",), 2),
    ):
        assert field.validate(*arguments).returncode == code, arguments
    assert field.validate(bundle="nowhere").returncode == 2


def test_without_an_engine_it_says_what_is_missing_and_how_to_get_it(field: Field) -> None:
    field = dataclasses.replace(field, flags=("-S",))  # this Python may have an engine installed
    done = field.validate("--key", "host.pub")
    assert done.returncode == 3
    assert "there are no wheels, no environment that a host left, and no such packages" in done.stderr
    assert "pip download --no-deps numpy onnxruntime" in done.stderr
    wheels(field.folder / "wheels", broken=True)
    wheels(field.folder / "wheels", python="cp27")
    done = field.validate()
    assert (done.returncode, "it cannot be imported (ModuleNotFoundError" in done.stderr) == (3, True), (
        done.stderr
    )
    assert platform.machine() in done.stderr


def test_a_device_in_use_is_left_alone(field: Field) -> None:
    from toggle_runtime.lease import hold

    wheels(field.folder / "wheels")
    with hold(field.folder / "device", "ann@desk", "run-1"):
        done = field.validate("--allow-unsigned", "--key", "host.pub")
    assert (done.returncode, "in use by ann@desk, run run-1" in done.stderr) == (3, True)


def test_an_interrupted_run_has_a_record_and_exits_130(field: Field) -> None:
    (field.folder / "toggle-agent.pyz").write_bytes(archive_with(SLEEPER))
    wheels(field.folder / "wheels")
    process = subprocess.Popen(
        [field.python, "toggle-agent.pyz", "validate", "bundle", "--root", "device", "--key", "host.pub"],
        cwd=field.folder,
        env={"HOME": str(field.folder), "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journals = field.folder / "device" / "runs"
    wait_until(lambda: any('"spawn"' in p.read_text() for p in journals.glob("*/journal.jsonl")), "no worker")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, "ABORTED" in out) == (130, True), err
    [record] = journals.glob("*/record.json")
    assert from_json(RunRecord, record.read_text()).outcome == "ABORTED"


def test_an_older_python_is_told_which_one_is_needed(tmp_path: Path) -> None:
    old = next((path for path in map(interpreter, ("3.7", "3.6", "2.7")) if path is not None), None)
    if old is None:
        pytest.skip("no Python before 3.8 on this machine")
    write_agent(tmp_path / "toggle-agent.pyz", tmp_path / "host.pub")
    done = subprocess.run(
        [old, tmp_path / "toggle-agent.pyz", "validate", "x"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("toggle-agent needs Python 3.8 or later, this is ")


def test_the_agent_is_written_once_with_the_key(tmp_path: Path) -> None:
    told = write_agent(tmp_path / "a.pyz", tmp_path / "host.pub")
    assert (tmp_path / "host.pub").read_text() == key_line(signing_key().public, signing_key().name) + "\n"
    assert told["bytes"] == (tmp_path / "a.pyz").stat().st_size
    with pytest.raises(Exception, match="expected a new file"):
        write_agent(tmp_path / "a.pyz", None)
