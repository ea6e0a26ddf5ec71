"""The command line is a thin skin: help without torch, exit codes that tell FAIL from ERROR, clear refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toggle_edge import cli
from toggle_edge.errors import CertificationError, ProfileError, ToggleEdgeError


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toggle_edge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
    )


def test_help_names_the_command_and_its_options() -> None:
    assert "demo" in run("--help").stdout
    help_text = run("demo", "--help").stdout
    for option in ("--json", "--work", "--trials", "--candidates", "--seed", "--local"):
        assert option in help_text


@pytest.mark.parametrize(
    "arguments",
    [
        ("demo", "--trials", "3"),
        ("demo", "--candidates", "1"),
        ("demo", "--seed", "-1"),
        ("dance",),
        ("demo", "--x"),
    ],
)
def test_bad_arguments_exit_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""


def test_a_folder_that_cannot_be_written_is_an_error_and_not_a_verdict(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("demo", "--work", str(tmp_path / "file" / "work"))
    assert done.returncode == 3
    assert "error:" in done.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProfileError("x"), 2),
        (CertificationError("x"), 3),
        (ToggleEdgeError("x"), 3),
        (ZeroDivisionError("x"), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_exits_with_its_code_and_never_1(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    assert capsys.readouterr().out == ""
