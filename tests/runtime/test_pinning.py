"""Clocks that are pinned on a simulated sysfs come back: after a run, an error, and a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from toggle_runtime.layout import foreign
from toggle_runtime.pinning import JOURNAL, PinningError, pinned, restore_left
from toggle_runtime.tree import Tree

REPOSITORY = Path(__file__).parents[2]
CPU = "sys/devices/system/cpu/cpu{}/cpufreq/scaling_governor"
GPU = "sys/class/devfreq/17000000.gpu/min_freq"
BEFORE = {CPU.format(0): "schedutil", CPU.format(1): "ondemand", GPU: "306000000"}
PINNED = {CPU.format(0): "performance", CPU.format(1): "performance", GPU: "918000000"}


@pytest.fixture
def kernel(tmp_path: Path) -> Tree:
    files = {
        **BEFORE,
        CPU.format(0).replace("governor", "available_governors"): "performance schedutil",
        CPU.format(1).replace("governor", "available_governors"): "ondemand performance",
        CPU.format(2): "userspace",
        CPU.format(2).replace("governor", "available_governors"): "userspace",
        GPU.replace("min", "max"): "918000000",
        "proc/sys/kernel/random/boot_id": "boot-1",
    }
    for path, text in files.items():
        (tmp_path / "kernel" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "kernel" / path).write_text(text)
    return Tree(tmp_path / "kernel")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def clocks(kernel: Tree) -> dict[str, str]:
    # A file of the kernel takes a word; one on a disk keeps what was longer.
    said = {path: kernel.text(path) for path in BEFORE}
    return {path: BEFORE[path] if said[path].startswith(BEFORE[path]) else said[path] for path in BEFORE}


def killed(root: Path, kernel_root: Path) -> None:
    """Pin in a process of its own, which is killed meanwhile."""
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from toggle_runtime.pinning import pinned\n"
        "from toggle_runtime.tree import Tree\n"
        "with pinned(Path(sys.argv[2]), Tree(Path(sys.argv[3]))):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    arguments = [str(REPOSITORY / "runtime"), str(root), str(kernel_root)]
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code, *arguments], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_the_highest_clocks_while_it_is_open(root: Path, kernel: Tree) -> None:
    with pinned(root, kernel):
        assert clocks(kernel) == PINNED
        assert foreign(root) == []  # the journal is known to be ours
        assert not restore_left(root, kernel)  # we live
        assert clocks(kernel) == PINNED
    assert clocks(kernel) == BEFORE
    assert kernel.text(CPU.format(2)) == "userspace"
    assert list(root.iterdir()) == []


def test_an_error_puts_them_back(root: Path, kernel: Tree) -> None:
    with pytest.raises(RuntimeError), pinned(root, kernel):
        raise RuntimeError
    assert clocks(kernel) == BEFORE
    assert list(root.iterdir()) == []


def test_a_killed_process_leaves_them_to_the_next(root: Path, kernel: Tree, tmp_path: Path) -> None:
    killed(root, tmp_path / "kernel")
    assert clocks(kernel) == PINNED
    assert restore_left(root, kernel)
    assert clocks(kernel) == BEFORE
    assert not restore_left(root, kernel)


def test_a_killed_process_is_put_right_before_the_next_pins(root: Path, kernel: Tree, tmp_path: Path) -> None:
    killed(root, tmp_path / "kernel")
    with pinned(root, kernel):
        assert clocks(kernel) == PINNED
    assert clocks(kernel) == BEFORE


def test_after_a_restart_the_kernel_has_set_them_itself(root: Path, kernel: Tree, tmp_path: Path) -> None:
    killed(root, tmp_path / "kernel")
    (tmp_path / "kernel/proc/sys/kernel/random/boot_id").write_text("boot-2")
    assert not restore_left(root, kernel)
    assert clocks(kernel) == PINNED  # whatever they are now is this boot's
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("text", ["", '{"boot": "bo', "[]", '{"before": 3, "boot": "boot-1"}'])
def test_a_journal_that_was_not_finished_changed_nothing(root: Path, kernel: Tree, text: str) -> None:
    (root / JOURNAL).write_text(text)
    assert not restore_left(root, kernel)
    assert clocks(kernel) == BEFORE
    assert list(root.iterdir()) == []


def test_what_may_not_be_written_leaves_nothing_changed(root: Path, kernel: Tree, tmp_path: Path) -> None:
    class Denying(Tree):
        def write(self, path: str, text: str) -> None:
            if path == GPU:
                raise PermissionError(13, "Permission denied", f"/{path}")
            super().write(path, text)

    denied = pytest.raises(PinningError, match=r"min_freq: Permission denied; the agent's user")
    with denied, pinned(root, Denying(tmp_path / "kernel")):
        pytest.fail("it was not pinned")
    assert clocks(kernel) == BEFORE
    assert list(root.iterdir()) == []


def test_a_clock_that_cannot_be_put_back_stays_in_the_journal(
    root: Path, kernel: Tree, tmp_path: Path
) -> None:
    killed(root, tmp_path / "kernel")
    (tmp_path / "kernel" / GPU).unlink()
    with pytest.raises(FileNotFoundError):
        restore_left(root, kernel)
    assert kernel.text(CPU.format(0)).startswith("schedutil")
    assert json.loads((root / JOURNAL).read_text())["before"][GPU] == BEFORE[GPU]
    (tmp_path / "kernel" / GPU).write_text("1")
    assert restore_left(root, kernel)


def test_nothing_to_pin_is_refused(root: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(PinningError, match="run without --pin-clocks"),
        pinned(root, Tree(tmp_path / "empty")),
    ):
        pytest.fail("it was not pinned")
    assert list(root.iterdir()) == []
