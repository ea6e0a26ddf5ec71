"""A work folder has one process at a time, is clean when it is entered, and says what is wrong with it."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from toggle_edge.errors import WorkspaceError
from toggle_edge.workspace import naming_errors, workspace


def test_a_folder_is_made_and_may_be_entered_again(tmp_path: Path) -> None:
    for _ in range(2):
        with workspace(tmp_path / "deep" / "work") as folder:
            assert folder.is_absolute()
            assert folder.is_dir()


def test_a_second_process_is_refused_until_the_first_is_gone_however_it_went(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from toggle_edge.workspace import workspace\n"
        f"with workspace(Path({str(tmp_path / 'work')!r})):\n print('in', flush=True)\n time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with (
            pytest.raises(WorkspaceError, match=rf'another toggle-edge works there .*"pid": {process.pid}'),
            workspace(tmp_path / "work"),
        ):
            pass
        process.kill()
        process.wait()
    with workspace(tmp_path / "work"):
        pass


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".export-abc/weights/a.bin", "bundles/.parity-1/x", "skeletons/.skeleton-1/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    for name in ("probes/baseline.npz.partial", "kept.json", "bundles/trial-1/manifest.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "outside").mkdir()
    (tmp_path / ".export-link").symlink_to(tmp_path / "outside")
    with workspace(tmp_path):
        left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == [".lock", "bundles/trial-1/manifest.json", "kept.json"]
    assert (tmp_path / "outside").is_dir()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "work"):
        with pytest.raises(WorkspaceError, match="choose another folder"), workspace(folder):
            pass


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_disk_and_rights_are_named_with_a_remedy(tmp_path: Path, number: int, remedy: str) -> None:
    with pytest.raises(WorkspaceError, match=remedy), naming_errors(tmp_path):
        raise OSError(number, "so it is")


def test_other_errors_are_not_the_folders(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError), workspace(tmp_path):
        raise TimeoutError(errno.ETIMEDOUT, "a socket")
