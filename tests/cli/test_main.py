"""The command line is a thin skin: help without torch, exit codes that tell FAIL from ERROR, clear refusals."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from toggle_edge import cli
from toggle_edge.cli import interrupts
from toggle_edge.errors import CertificationError, ProfileError, ToggleEdgeError
from toggle_edge.store import open_store


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


def test_a_link_that_breaks_is_told_in_our_words_alone(tmp_path: Path) -> None:
    # In a process of its own: pytest listens to every logger, and so hides what they print where nobody does.
    listener = socket.create_server(("127.0.0.1", 0))
    told = {"host": "127.0.0.1", "port": listener.getsockname()[1], "host_key": f"SHA256:{'A' * 43}"}
    told |= {"name": "closer", "target": "onnx-cpu", "transport": "ssh", "user": "nobody", "root": "toggle"}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in told.items())
    (tmp_path / "closer.toml").write_text(f'{text}python = "python3"\n')

    def close_each() -> None:
        with contextlib.suppress(OSError):  # until nobody listens
            while True:
                listener.accept()[0].close()

    thread = threading.Thread(target=close_each)
    thread.start()
    try:
        done = run("device", "doctor", str(tmp_path / "closer.toml"))
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
    assert "the connection failed" in " ".join(done.stdout.split())
    assert done.returncode == 3
    assert done.stderr == ""


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
        (EOFError("x"), 3),
        (SystemExit(1), 3),
    ],
)
def test_an_error_exits_with_its_code_and_never_1(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    assert capsys.readouterr().out == ""


def test_an_interrupt_exits_130_and_leaves_a_whole_store(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "toggle_edge", "demo", "--work", str(tmp_path / "work")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        seen = next(line for line in process.stderr if line.startswith("baseline"))
        assert "3/3" in seen
        process.send_signal(signal.SIGINT)
        process.wait(60)
    assert process.returncode == 130
    # What was recorded is whole; what was not is simply not there.
    with open_store(f"sqlite:///{tmp_path / 'work' / 'toggle-edge.sqlite'}") as store:
        for study in store.studies():
            assert [trial.index for trial in store.ledger(study.id).trials()] == []


def test_an_interrupt_that_a_library_swallows_ends_the_command_at_the_next_progress() -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: list[str] = []
    report = interrupts.checked(lambda stage, done, of, note="", standing=None: heard.append(stage))
    try:
        interrupts.watch()
        report("baseline", 1, 2)
        with contextlib.suppress(KeyboardInterrupt):  # as a careless library would
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            report("search", 1, 2)
        interrupts.watch()  # as the next command in this process does
        report("export", 1, 2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == ["baseline", "export"]


def test_no_arguments_show_the_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "demo" in done.stdout
    assert "error" not in done.stderr
