"""The ExecuTorch runner as a process, on this machine or, for aarch64, under emulation; and why there is none."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from toggle_edge.errors import ExportError
from toggle_edge.export.executorch.overlay import overlay
from toggle_edge.export.executorch.runner import COMPILERS, compiler_for, runner
from toggle_edge.fleet.namespaces import EMULATOR, PROCESSOR

SYSROOT = Path("/usr/aarch64-linux-gnu")


def why_not_lowered() -> str | None:
    """Why nothing can be lowered here, None where it can. Fetches the overlay if need be."""
    try:
        overlay()
    except ExportError as exc:
        return str(exc)
    return None


def why_not_run(machine: str) -> str | None:
    """Why the runner cannot be built and run for an architecture here."""
    if compiler_for(machine) is None:
        return f"no {COMPILERS[machine]} here: scripts/system-packages runner installs it"
    if machine != platform.machine() and shutil.which(EMULATOR) is None:
        return f"no {EMULATOR} here: scripts/system-packages runner installs it"
    return None


def answers(machine: str, artifact: Path, *requests: str, threads: object = 1) -> list[Any]:
    """What the runner answers, line by line; the first is what it says of loading."""
    program = runner(machine) / "executorch_runner"
    command = [str(program), str(threads), str(artifact / "model.pte")]
    command += sorted(map(str, (artifact / "weights").glob("*.ptd")))
    environment = dict(os.environ)
    if machine != platform.machine():
        command.insert(0, EMULATOR)
        environment.setdefault("QEMU_LD_PREFIX", str(SYSROOT))
        # With all that qemu 7.2 emulates, SVE and SME too, XNNPACK's int8 kernels go wrong.
        environment.setdefault("QEMU_CPU", PROCESSOR)
    done = subprocess.run(
        command,
        input="".join(line + "\n" for line in requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert found, done.stderr
    assert (done.returncode == 1) == (found[-1]["event"] == "error"), (done.returncode, found[-1])
    return found
