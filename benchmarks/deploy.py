"""Uploads to a device beside `scp` and `rsync`, over the same sshd on loopback, interleaved in one sitting.

`OMP_NUM_THREADS=1 python benchmarks/deploy.py --rounds 7` sends the same random file with each in turn, every time over
a new connection to an empty place, and prints the ratios of each round's times. As root, the device has a home of its
own: what this machine's login files do at each command (of ours and of rsync, not of scp) is no part of it. Ours are
from opening the connection to the file in the device's store, its digest checked there and synced; the others' end when
the command does. Then it
counts, with a proxy on the wire, what a sibling of a deployed candidate moves (2 of 30 layers changed) and what a
resumed upload sends again. It ends with 1 where a median ratio is below 1, a sibling moves more than 10 % of the bytes,
or a resumed upload sends more than one chunk again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from toggle_edge.errors import TransportLostError
from toggle_edge.fleet.chaos import Chaos
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.namespaces import why_unavailable
from toggle_edge.fleet.shipping import CHUNK_BYTES, Files, ship
from toggle_edge.fleet.sshd import LoopbackSshd
from toggle_edge.fleet.surroundings import apart
from toggle_edge.fleet.transport import connect

LAYERS, CHANGED = 30, 2
MOST_SHARE = 0.10


@dataclass(frozen=True)
class Bench:
    """A device, and a file to send there."""

    device: Device
    root: Path
    known_hosts: Path
    file: Path
    files: Files

    def ssh(self) -> list[str]:
        device = self.device
        return ["ssh", "-p", str(device.port), *self.options()]

    def options(self) -> list[str]:
        options = [f"UserKnownHostsFile={self.known_hosts}", "StrictHostKeyChecking=yes", "BatchMode=yes"]
        return [
            "-i",
            self.device.identity,
            "-F",
            "none",
            *(word for each in options for word in ("-o", each)),
        ]

    @property
    def login(self) -> str:
        return f"{self.device.user}@{self.device.host}"


def random_file(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(np.random.default_rng(seed).bytes(size))
    return path


def files_of(*paths: Path) -> Files:
    found = {}
    for path in paths:
        with path.open("rb") as stream:
            found[hashlib.file_digest(stream, "sha256").hexdigest()] = (path, path.stat().st_size)
    return found


def ours(bench: Bench) -> None:
    transport = connect(bench.device)
    try:
        sent = ship(transport, bench.device, bench.files)
    finally:
        transport.close()
    if sent != bench.file.stat().st_size:
        raise RuntimeError(f"sent {sent} bytes of {bench.file.stat().st_size}")


def scp(bench: Bench) -> None:
    device = bench.device
    options = ["-q", "-P", str(device.port), *bench.options()]
    subprocess.run(["scp", *options, bench.file, f"{bench.login}:{device.root}/copied"], check=True)  # noqa: S607


def rsync(bench: Bench) -> None:
    shell = " ".join(bench.ssh())
    target = f"{bench.login}:{bench.device.root}/copied"
    subprocess.run(["rsync", "-e", shell, bench.file, target], check=True)  # noqa: S607


def emptied(bench: Bench) -> None:
    """An empty device, but for the agent: that is there before the first bundle is."""
    for name in ("blobs", "incoming", "copied"):
        path = bench.root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def raced(bench: Bench, rounds: int, rivals: dict[str, Callable[[Bench], None]]) -> dict[str, list[float]]:
    """Seconds of each, round by round; the order turns from round to round. The first round is not counted."""
    names = list(rivals)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            emptied(bench)
            began = time.perf_counter()
            rivals[name](bench)
            taken = time.perf_counter() - began
            if number:
                seconds[name].append(taken)
        if number:
            words = "  ".join(f"{name} {seconds[name][-1]:6.2f} s" for name in names)
            print(f"round {number}: {words}", flush=True)
    return seconds


def sibling_share(bench: Bench, work: Path, size: int) -> tuple[int, int]:
    """Bytes on the wire of a first candidate and of its sibling, in both directions."""
    layers = [random_file(work / f"layer-{number}", size // LAYERS, number) for number in range(LAYERS)]
    changed = [
        random_file(work / f"changed-{number}", size // LAYERS, 100 + number) for number in range(CHANGED)
    ]
    moved = []
    for files in (files_of(*layers), files_of(*layers[CHANGED:], *changed)):
        with Chaos(bench.device.port) as wire:
            device = replace(bench.device, port=wire.port)
            transport = connect(device)
            ship(transport, device, files)
            transport.close()
            moved.append(wire.passed + wire.returned)
    return moved[0], moved[1]


def sent_again(bench: Bench, cut_after: int, undisturbed: int) -> int:
    """Bytes that went to the device over the wire when an upload was cut and resumed, beyond those of a whole one."""
    emptied(bench)
    files = bench.files
    with Chaos(bench.device.port, cut_after=cut_after) as wire:
        device = replace(bench.device, port=wire.port)
        first = connect(device)
        try:
            ship(first, device, files)
            raise RuntimeError("the link was not cut")
        except TransportLostError:
            first.close()
        second = connect(device)
        ship(second, device, files)
        second.close()
    return wire.passed - undisturbed


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where both ends lie (default: where temporary files do)")
    options = parser.parse_args()
    size = options.megabytes * 10**6
    good = True
    with tempfile.TemporaryDirectory(prefix="toggle-edge-uploads-", dir=options.folder) as scratch:
        work = Path(scratch)
        together = why_unavailable()
        print(
            f"the device is this machine's user: {together}"
            if together
            else "the device has a home of its own"
        )
        around = None if together else apart(work / "sshd", "far-away")
        with LoopbackSshd(work / "sshd", "far-away", around) as server:
            known_hosts = work / "known_hosts"
            scan = ["ssh-keyscan", "-p", str(server.device.port), "127.0.0.1"]
            known_hosts.write_bytes(subprocess.run(scan, capture_output=True, check=True).stdout)
            # Relative to the home; an absolute one stays as it is.
            root = work / "sshd" / "home" / server.device.root
            root.mkdir()
            file = random_file(work / "file", size, 0)
            bench = Bench(server.device, root, known_hosts, file, files_of(file))
            rivals: dict[str, Callable[[Bench], None]] = {"ours": ours, "scp": scp, "rsync": rsync}
            for name in ("scp", "rsync"):
                if shutil.which(name) is None:
                    print(f"{name}: not installed here, left out")
                    del rivals[name]
            seconds = raced(bench, options.rounds, rivals)
            for name in seconds:
                rate = statistics.median(size / 1e6 / each for each in seconds[name])
                print(f"{name}: {rate:.0f} MB/s, n = {options.rounds}")
                if name == "ours":
                    continue
                ratios = [theirs / mine for theirs, mine in zip(seconds[name], seconds["ours"], strict=True)]
                median = statistics.median(ratios)
                good = good and median >= 1.0
                print(f"ours is {median:.2f} times as fast as {name} [{min(ratios):.2f}, {max(ratios):.2f}]")
            emptied(bench)
            whole, sibling = sibling_share(bench, work, size)
            good = good and sibling <= MOST_SHARE * whole
            print(
                f"sibling: {sibling} of {whole} bytes on the wire, {sibling / whole:.2%} ({CHANGED} of {LAYERS} layers)"
            )
            with Chaos(server.device.port) as wire:
                emptied(bench)
                ours(replace(bench, device=replace(server.device, port=wire.port)))
            for cut in np.random.default_rng(1).uniform(0.05, 0.95, options.cuts):
                again = sent_again(bench, int(cut * size), wire.passed)
                good = good and again <= CHUNK_BYTES
                print(f"cut after {cut:.0%}: {again} bytes sent again (a chunk has {CHUNK_BYTES})")
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
