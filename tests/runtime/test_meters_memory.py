"""Memory of processes that take known amounts, anonymous, mapped and in children: each page is counted once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toggle_runtime import emulation
from toggle_runtime.emulation import elf_machine, emulated
from toggle_runtime.meters import memory
from toggle_runtime.meters.cgroups import peak_of_group
from toggle_runtime.tree import Tree

ROOT = Path(__file__).parents[2]
AMOUNT = 160 << 20

WORKER = """
import json, mmap, os, sys, time
sys.path.insert(0, sys.argv[1])
from toggle_runtime.meters.memory import Watch
kind, amount, path = sys.argv[2], int(sys.argv[3]), sys.argv[4]

def anonymous(size):
    held = mmap.mmap(-1, max(size, 4096), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size, 4096):
        held[at] = 1
    return held

def mapped(size):
    with open(path, "rb") as stream:
        held = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    sum(held[at] for at in range(0, size, 4096))
    return held

def in_child(size, shared=None):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = anonymous(size)
        os.write(tell, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(told, 1)
    return pid

with Watch() as watch:
    before = anonymous(amount) if kind == "loading" else None
    shared = anonymous(amount) if kind == "shared" else None
    if before:
        before.close()
    watch.loaded()
    held = {"anonymous": anonymous, "mapped": mapped}.get(kind, lambda size: None)(amount)
    child = in_child(amount if kind == "child" else 0) if kind in ("child", "shared", "family") else None
    time.sleep(0.2 if child else 0)
    sample = watch.sample()
    if child:
        os.kill(child, 9)
        os.waitpid(child, 0)
print(json.dumps(vars(sample)))
"""


def measured(kind: str, amount: int, path: Path) -> dict[str, Any]:
    arguments = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        WORKER,
        str(ROOT / "runtime"),
        kind,
        str(amount),
        str(path),
    ]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    path.write_bytes(bytes(1 << 20) * (AMOUNT >> 20))
    return path


class TestKnownAmounts:
    @pytest.mark.parametrize(
        ("kind", "without"),
        [("anonymous", "nothing"), ("mapped", "nothing"), ("loading", "nothing"), ("child", "family")],
    )
    def test_the_peak_grows_by_what_was_taken(self, weights: Path, kind: str, without: str) -> None:
        taken = measured(kind, AMOUNT, weights)["peak_bytes"] - measured(without, 0, weights)["peak_bytes"]
        assert taken == pytest.approx(AMOUNT, rel=0.03)

    def test_what_parent_and_child_share_is_counted_once(self, weights: Path) -> None:
        shared = measured("shared", AMOUNT, weights)
        assert shared["children"] == 1
        taken = shared["peak_bytes"] - measured("nothing", 0, weights)["peak_bytes"]
        assert taken == pytest.approx(AMOUNT, rel=0.05)

    def test_what_is_resident_is_told_by_kind(self, weights: Path) -> None:
        nothing = measured("nothing", 0, weights)
        for kind, field in (("anonymous", "anonymous_bytes"), ("mapped", "file_bytes")):
            sample = measured(kind, AMOUNT, weights)
            assert sample[field] - nothing[field] == pytest.approx(AMOUNT, rel=0.03)
            assert sample["steady_bytes"] - nothing["steady_bytes"] == pytest.approx(AMOUNT, rel=0.03)
            parts = sample["anonymous_bytes"] + sample["file_bytes"] + sample["shared_bytes"]
            assert parts == pytest.approx(sample["steady_bytes"], rel=0.01)
            assert sample["pss_bytes"] <= sample["steady_bytes"] * 1.01

    def test_a_peak_while_loading_is_not_one_of_generating(self, weights: Path) -> None:
        sample = measured("loading", AMOUNT, weights)
        if sample["generation_peak_bytes"] is None:
            pytest.skip("this kernel does not let a process begin a new peak")
        assert sample["peak_bytes"] - sample["generation_peak_bytes"] == pytest.approx(AMOUNT, rel=0.03)

    def test_the_peak_is_the_kernels(self) -> None:
        resource = pytest.importorskip("resource")
        with memory.Watch() as watch:
            peak = watch.sample().peak_bytes
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # an independent way to the same counter
        assert peak == pytest.approx(kib * 1024, rel=0.05)


def tree(root: Path, **files: str) -> Tree:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(root)


def sample(there: Tree) -> Any:
    with memory.Watch(there, pid=7) as watch:
        return watch.sample()


@pytest.mark.parametrize("text", ["", "VmHWM:\n", "VmHWM: x kB\n", "VmHWM: 12\n", "VmRSS: 12 kB\n"])
def test_no_peak_is_none_with_a_reason(tmp_path: Path, text: str) -> None:
    found = sample(tree(tmp_path, proc__7__status=text))
    assert found.peak_bytes is None
    assert "no VmHWM line" in found.reason
    assert memory.why_unavailable(Tree(tmp_path))


def test_what_the_kernel_does_not_tell_is_none(tmp_path: Path) -> None:
    found = sample(tree(tmp_path, proc__7__status="VmPeak:\t9 kB\nVmHWM:\t  123 kB\n"))
    assert found.peak_bytes == 123 * 1024
    assert (found.pss_bytes, found.steady_bytes, found.cgroup_peak_bytes) == (None, None, None)
    assert found.children == 0


def test_what_was_swapped_out_is_flagged(tmp_path: Path) -> None:
    found = sample(tree(tmp_path, proc__7__status="VmHWM: 9 kB\nVmSwap: 2000 kB\n"))
    assert found.flags == ["2.0 MB were swapped out, and are not in the peak"]


def test_a_child_that_may_not_be_read_is_flagged(tmp_path: Path) -> None:
    there = tree(
        tmp_path,
        proc__7__status="VmHWM: 9 kB\n",
        proc__7__task__7__children="8 ",
        proc__8__stat="8 (x y) R 7",
    )
    found = sample(there)
    assert found.children == 1
    assert "could not be read" in found.flags[0]


class TestControlGroup:
    def test_version_two(self, tmp_path: Path) -> None:
        there = tree(tmp_path, proc__self__cgroup="0::/user/run\n", sys__fs__cgroup__user__run__memory=".")
        (tmp_path / "sys/fs/cgroup/user/run/memory.peak").write_text("1234\n")
        assert peak_of_group(there) == 1234

    def test_version_one(self, tmp_path: Path) -> None:
        there = tree(tmp_path, proc__self__cgroup="3:cpuset:/\n4:cpu,memory:/a\n0::/\n")
        (tmp_path / "sys/fs/cgroup/memory/a").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory/a/memory.max_usage_in_bytes").write_text("77\n")
        assert peak_of_group(there) == 77

    def test_the_root_group_is_the_whole_machine(self, tmp_path: Path) -> None:
        there = tree(tmp_path, proc__self__cgroup="4:memory:/\n0::/\n")
        (tmp_path / "sys/fs/cgroup/memory").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory/memory.max_usage_in_bytes").write_text("77\n")
        assert peak_of_group(there) is None

    def test_a_peak_that_did_not_move_is_of_something_before(self, tmp_path: Path) -> None:
        there = tree(tmp_path, proc__self__cgroup="0::/g\n", proc__7__status="VmHWM: 9 kB\n")
        (tmp_path / "sys/fs/cgroup/g").mkdir(parents=True)
        peak = tmp_path / "sys/fs/cgroup/g/memory.peak"
        peak.write_text("5000\n")
        with memory.Watch(there, pid=7) as watch:
            assert watch.sample().cgroup_peak_bytes is None
            peak.write_text("6000\n")
            assert watch.sample().cgroup_peak_bytes == 6000


def program(machine: int, *, big: bool = False) -> bytes:
    return (
        b"\x7fELF\x02"
        + (b"\x02" if big else b"\x01")
        + bytes(12)
        + machine.to_bytes(2, "big" if big else "little")
    )


class TestEmulation:
    """What runs us, against what we are for; an emulator answers for `/proc/self/exe`, not for a thread's program."""

    def emulating(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bytes, believes: bytes
    ) -> str | None:
        (tmp_path / "usr/bin").mkdir(parents=True)
        (tmp_path / "usr/bin/python3").write_bytes(believes)
        monkeypatch.setattr(emulation.sys, "executable", "/usr/bin/python3")
        task = tmp_path / f"proc/self/task/{emulation.os.getpid()}"
        task.mkdir(parents=True)
        (task / "exe").write_bytes(runs)
        return emulated(Tree(tmp_path))

    def test_another_processors_program_runs_us(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        reason = self.emulating(tmp_path, monkeypatch, program(62), program(183))
        assert reason is not None
        assert "for aarch64, what runs it is a program for x86_64" in reason

    def test_the_same_processor_is_itself(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert (
            self.emulating(tmp_path, monkeypatch, program(40), program(40)) is None
        )  # 32 bits on a 64-bit kernel too

    def test_a_script_in_pythons_place_tells_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert self.emulating(tmp_path, monkeypatch, program(62), b'#!/bin/sh\nexec python3 "$@"\n') is None

    def test_this_machine_is_itself(self) -> None:
        assert emulated(Tree()) is None

    def test_no_figures_of_an_emulators_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        there = tree(tmp_path, proc__7__status="VmHWM: 9 kB\n")
        assert self.emulating(tmp_path, monkeypatch, program(62), program(183))
        found = sample(there)
        assert found.peak_bytes is None
        assert found.reason.startswith("emulated: ")

    def test_both_byte_orders(self) -> None:
        assert elf_machine(program(22, big=True)) == 22
        assert elf_machine(program(183)) == 183
        assert elf_machine(b"MZ") is None
