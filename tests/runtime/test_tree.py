"""Files of the kernel that are read again in place."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from toggle_runtime.tree import Tree


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestReread:
    def test_shows_what_is_true_now(self):
        tree = Tree()
        seen = []
        for _ in range(3):
            seen.append(float(tree.reread("proc/uptime").split()[0]))
            time.sleep(0.03)
        assert seen == sorted(set(seen))

    def test_is_what_text_says_also_when_the_file_became_shorter(self, tmp_path: Path):
        tree, path = Tree(tmp_path), tmp_path / "power1_input"
        for content in ("1234567\n", "89\n", "\n", "-12\n"):
            path.write_text(content)
            assert tree.reread("power1_input") == tree.text("power1_input") == content.strip()

    def test_a_file_is_opened_once(self, tmp_path: Path):
        tree = Tree(tmp_path)
        (tmp_path / "energy_uj").write_text("5\n")
        before = descriptors()
        assert [tree.integer("energy_uj", again=True) for _ in range(20)] == [5] * 20
        assert descriptors() == before + 1

    def test_what_a_tree_keeps_open_goes_with_it(self, tmp_path: Path):
        tree = Tree(tmp_path)
        (tmp_path / "energy_uj").write_text("5\n")
        before = descriptors()
        tree.reread("energy_uj")
        del tree
        assert descriptors() == before

    def test_a_file_that_failed_is_opened_anew(self):
        """A process's files fail when it has ended, as a driver's do when it is taken away."""
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        path, tree = f"proc/{child.pid}/stat", Tree()
        before = descriptors()
        assert tree.reread(path).startswith(str(child.pid))
        child.communicate(b"\n")
        with pytest.raises(ProcessLookupError, match=f"/{path}"):
            tree.reread(path)
        with pytest.raises(FileNotFoundError, match=f"/{path}"):
            tree.reread(path)
        assert descriptors() == before - 1  # the pipe to the child is gone too

    def test_a_missing_file_is_found_when_it_comes(self, tmp_path: Path):
        tree = Tree(tmp_path)
        with pytest.raises(FileNotFoundError):
            tree.reread("power1_input")
        (tmp_path / "power1_input").write_text("7\n")
        assert tree.integer("power1_input", again=True) == 7

    def test_what_is_not_a_number_is_an_error_that_names_the_file(self, tmp_path: Path):
        (tmp_path / "power1_input").write_text("on\n")
        with pytest.raises(ValueError, match="power1_input: expected an integer, got 'on'"):
            Tree(tmp_path).integer("power1_input", again=True)
