"""What tests of commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Call, Ended

from toggle_edge import cli


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """Run a command in an empty folder, in this process."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["toggle-edge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    yield run
    assert not any(
        path.name.startswith(".") for path in (tmp_path / "cwd").rglob("*") if path.name != ".lock"
    )
