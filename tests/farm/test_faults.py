"""A sample of the fault suite: a real device is hurt in drawn ways, and the same command again makes it whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from toggle_edge.fleet.sshd import sshd_path

pytestmark = pytest.mark.skipif(sshd_path() is None, reason="no sshd on this machine: install openssh-server")

SUITE = Path(__file__).parents[2] / "benchmarks" / "faults.py"
KINDS = ("link cut", "agent killed", "host killed")


def suite(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SUITE, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_what_is_hurt_is_whole_after_the_same_command_again(tmp_path: Path) -> None:
    lines = tmp_path / "faults.jsonl"
    chosen = [word for kind in KINDS for word in ("--kind", kind)]
    done = suite("--runs", len(KINDS), "--seed", 7, "--situation", "deploy on old", "--out", lines, *chosen)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line for line in found if line["problems"]] == []
    assert sum(line["injected"] for line in found) == len(KINDS)
    assert {line["kind"] for line in found} == set(KINDS)
