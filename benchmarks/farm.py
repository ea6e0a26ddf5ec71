"""A farm of real sshd devices on loopback: registered, validated and deployed to in parallel; some of them broken.

`OMP_NUM_THREADS=1 python benchmarks/farm.py --devices 20` starts that many sshd, each with keys and a root of its own
(as root also a host name, a home, users and processes of its own), exports one bundle of the demo model, and runs
`device add`, `deploy` and `run` for every device, `--parallel` at a time. Three devices fail on purpose: one's host key
changes after it was confirmed, one's sshd dies in the middle of its deployment, one's root cannot be written. It ends
with 1 unless every whole device answers from what was deployed, and every broken one ends with 3 and says why.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from toggle_edge.fleet.namespaces import why_unavailable
from toggle_edge.fleet.sshd import LoopbackSshd
from toggle_edge.fleet.surroundings import apart

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "demo" / "model"
REFUSED = 3


@dataclass(frozen=True)
class Ended:
    """How a device's commands ended: the exit code of the last one, its words, and how long all took."""

    name: str
    expected: int
    code: int
    words: str
    seconds: float

    @property
    def as_expected(self) -> bool:
        return self.code == self.expected


def call(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "toggle_edge", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def last_words(done: subprocess.CompletedProcess[str]) -> str:
    return next((line for line in reversed(done.stderr.splitlines()) if line.startswith("error:")), "")


def registered(folder: Path, server: LoopbackSshd) -> subprocess.CompletedProcess[str]:
    device = server.device
    return call(
        folder,
        *("device", "add", device.name, "--host", device.host, "--port", device.port, "--user", device.user),
        *("--identity", device.identity, "--host-key", device.host_key, "--python", device.python),
        *("--root", device.root),
    )


def whole(folder: Path, server: LoopbackSshd, bundle: Path) -> Ended:
    """Register, deploy, talk: what any device should bear."""
    began, name = time.monotonic(), server.device.name
    done = registered(folder, server)
    for command in (
        ("deploy", "--device", name, "--bundle", bundle, "--output", "runs"),
        ("run", "Once upon a time", "--device", name, "--tokens", 8, "--json"),
    ):
        if done.returncode == 0:
            done = call(folder, *command)
    words = json.loads(done.stdout)["text"] if done.returncode == 0 else last_words(done)
    return Ended(name, 0, done.returncode, words, time.monotonic() - began)


def changed_key(folder: Path, server: LoopbackSshd, bundle: Path) -> Ended:
    """Somebody else answers at the device's address, after it was registered."""
    began, name = time.monotonic(), server.device.name
    registered(folder, server)
    file = folder / "devices" / f"{name}.toml"
    file.write_text(file.read_text().replace(server.device.host_key, "SHA256:" + "A" * 43))
    done = call(folder, "deploy", "--device", name, "--bundle", bundle, "--output", "runs")
    return Ended(name, REFUSED, done.returncode, last_words(done), time.monotonic() - began)


def dying(folder: Path, server: LoopbackSshd, bundle: Path) -> Ended:
    """The device goes away while it is deployed to, and does not come back."""
    began, name = time.monotonic(), server.device.name
    registered(folder, server)
    killer = threading.Timer(4.0, server.__exit__, (None, None, None))
    killer.start()
    done = call(folder, "deploy", "--device", name, "--bundle", bundle, "--output", "runs")
    killer.join()
    return Ended(name, REFUSED, done.returncode, last_words(done), time.monotonic() - began)


def without_room(folder: Path, server: LoopbackSshd, bundle: Path) -> Ended:
    """Nothing can be written where our files should lie."""
    began, name = time.monotonic(), server.device.name
    root = server.device.root
    (Path(root) if Path(root).is_absolute() else server.folder / "home" / root).write_text("not a folder")
    done = registered(folder, server)
    return Ended(name, REFUSED, done.returncode, last_words(done), time.monotonic() - began)


BROKEN = (changed_key, dying, without_room)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=20)
    parser.add_argument("--parallel", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="toggle-edge-farm-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        exported = call(folder, "export", MODEL, "--config", "int8-g64", "-o", "bundle")
        if exported.returncode:
            raise SystemExit(exported.stderr)
        together = why_unavailable()
        print(f"devices share this machine's users: {together}" if together else "each device is enclosed")
        servers = []
        for index in range(arguments.devices):
            name, own = f"device-{index:02}", folder / f"sshd-{index}"
            around = None if together else apart(own, name)
            servers.append(stack.enter_context(LoopbackSshd(own, name, around)))
        began = time.monotonic()
        with ThreadPoolExecutor(arguments.parallel) as pool:
            works = [*BROKEN, *[whole] * (len(servers) - len(BROKEN))]
            ended = list(
                pool.map(
                    lambda pair: pair[0](folder, pair[1], folder / "bundle"), zip(works, servers, strict=True)
                )
            )
        taken = time.monotonic() - began
    for each in ended:
        print(
            f"{each.name}  {'as expected' if each.as_expected else 'NOT AS EXPECTED'}  exit {each.code}  "
            f"{each.seconds:6.1f} s  {each.words[:110]}"
        )
    texts = {each.words for each in ended if each.expected == 0}
    right = sum(each.as_expected for each in ended)
    seconds = [each.seconds for each in ended if each.expected == 0]
    print(
        f"\n{right} of {len(ended)} as expected, {len(texts)} text(s) from the whole ones; {taken:.0f} s in all, "
        f"a whole device {statistics.median(seconds):.0f} s [{min(seconds):.0f}, {max(seconds):.0f}], "
        f"n = {len(seconds)}"
    )
    return 0 if right == len(ended) and len(texts) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
