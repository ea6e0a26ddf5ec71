"""What exporting a large model takes in memory, beside its size in fp16.

`python benchmarks/export_memory.py`. A random Llama of TinyLlama's shape (1.1B parameters, 2.2 GB in fp16)
is exported by `toggle-edge export` as a process, its weights read from disk layer by layer. While it runs its memory is
read from the kernel: the peak of the command's own process (VmHWM), and the most that it and the processes that it
starts have at one time. Ends with 1 where the peak is above 1.5 times the size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from streaming import ROOT, SHAPE, save_model

PROFILE = ROOT / "profiles" / "default.toml"
FACTOR = 1.5


@dataclass(frozen=True)
class Peak:
    """Bytes: of the command's own process, of it with its children at one time, and what of that is its own memory
    rather than pages of mapped files."""

    process: int
    tree: int
    anonymous: int


def status(process: int) -> Counter[str]:
    """Memory of a process in bytes, by the kernel's names; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Counter()
    return Counter(
        {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("Vm", "Rss"))}
    )


def family(process: int) -> list[int]:
    """A process and all that it started."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        children = []
    return [process, *(each for child in children for each in family(int(child)))]


def watched(command: list[str], environment: dict[str, str]) -> tuple[Peak, str]:
    """Run a command; its peak and what it printed. Raises SystemExit where it fails."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        most = Peak(0, 0, 0)
        while process.poll() is None:
            each = [status(member) for member in family(process.pid)]
            most = Peak(
                max(most.process, each[0]["VmHWM"]),
                max(most.tree, sum(one["VmRSS"] for one in each)),
                max(most.anonymous, sum(one["RssAnon"] for one in each)),
            )
            time.sleep(0.02)
        err.seek(0)
        if process.returncode:
            raise SystemExit(f"export ended with {process.returncode}\n{err.read()}")
        out.seek(0)
        return most, out.read()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="int4-g32")
    parser.add_argument("--folder", type=Path, help="where the model lies, or is put; else a temporary one")
    parser.add_argument("--stream", default="always", choices=["always", "never", "auto"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (arguments.folder or Path(scratch)) / "random-llama-1.1B"
        if not (folder / "config.json").is_file():
            save_model(folder)
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        few = (
            PROFILE.read_text()
            .replace("search = 59", "search = 4")
            .replace("certificate = 59", "certificate = 4")
        )
        (Path(scratch) / "few.toml").write_text(few.replace("coverage = 1.0", "coverage = 0.75"))
        environment = {**os.environ, "TOGGLE_EDGE_STREAM": arguments.stream}
        environment |= {"TOGGLE_EDGE_CACHE": f"{scratch}/cache", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "toggle_edge", "export", str(folder)]
        command += ["--config", arguments.format, "--profile", f"{scratch}/few.toml", "--unsigned", "--json"]
        started = time.perf_counter()
        peak, printed = watched([*command, "-o", f"{scratch}/bundle"], environment)
        seconds = time.perf_counter() - started
    result = json.loads(printed)
    parameters = SHAPE["hidden_size"], SHAPE["num_hidden_layers"]
    print(
        f"Llama {parameters[0]} x {parameters[1]}: {weights / 1e9:.2f} GB in fp16, read {arguments.stream} by layer"
    )
    print(
        f"predicted {result['predicted_bytes'] / 1e6:.1f} MB, artifact {result['artifact_bytes'] / 1e6:.1f} MB"
    )
    print(f"parity    {result['parity']['max_abs_logit_difference']:.1e}")
    print(f"process   {peak.process / 1e9:.2f} GB at most, {peak.process / weights:.2f} times the size")
    print(f"with its children {peak.tree / 1e9:.2f} GB at one time, {peak.tree / weights:.2f} times the size")
    print(f"of its own        {peak.anonymous / 1e9:.2f} GB, the rest pages of files")
    print(f"took      {seconds:.0f} s")
    return 0 if max(peak.process, peak.tree) <= FACTOR * weights else 1


if __name__ == "__main__":
    sys.exit(main())
