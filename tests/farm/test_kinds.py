"""Devices unlike this machine: a phone under Termux, login shells that are not POSIX, and a farm of them."""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_workers import wait_until
from travels import Journey, deployed_and_validated, exported, registered

from toggle_edge.errors import TransportError, TransportLostError
from toggle_edge.fleet.facts import facts_of
from toggle_edge.fleet.namespaces import Enclosure, Mount, enclosed, why_unavailable
from toggle_edge.fleet.shell_words import joined
from toggle_edge.fleet.sshd import LoopbackSshd, Surroundings, sshd_path
from toggle_edge.fleet.surroundings import TERMUX, TERMUX_PORT, apart, phone
from toggle_edge.fleet.transport import Transport, connect

SHELLS = ("sh", "bash", "zsh", "fish", "csh", "tcsh")
TRICKY = [
    "a b",
    "'",
    '"',
    "$HOME",
    ";true",
    "*",
    "",
    "!x",
    "!!",
    "~",
    "\\",
    "a\\'b",
    "{a,b}",
    "=x",
    "^a",
    "é",
    "`id`",
]

pytestmark = pytest.mark.timeout(900)

enclosing = pytest.mark.skipif(
    sshd_path() is None or why_unavailable() is not None,
    reason=f"no enclosed devices here: {why_unavailable() or 'install openssh-server'}",
)


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no {name} on this machine")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where device files and runs lie."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("kinds")
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return exported(folder, "int8-g64")


def said(transport: Transport, *command: str) -> list[str]:
    lines: list[bytes] = []
    completed = transport.run(command, b"", lines.append, 60.0)
    assert completed.status == 0, completed.stderr
    return [line.decode() for line in lines]


class TestShellWords:
    @pytest.mark.parametrize("name", SHELLS)
    def test_every_shell_reads_them_alike(self, name: str, tmp_path: Path) -> None:
        line = joined([shell("printf"), "%s\\n", *TRICKY])
        done = subprocess.run([shell(name), "-c", line], capture_output=True, text=True, cwd=tmp_path)
        assert (done.stdout.split("\n")[:-1], done.stderr) == (TRICKY, "")

    @pytest.mark.parametrize("name", ["sh", "fish", "csh"])
    def test_whatever_the_words_are(self, name: str, tmp_path: Path) -> None:
        text = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=12)
        chosen = shell(name)

        @settings(max_examples=25, deadline=None)
        @given(words=st.lists(text, min_size=1, max_size=20))
        def check(words: list[str]) -> None:
            line = joined([shell("printf"), "%s\\n", *words])
            done = subprocess.run([chosen, "-c", line], capture_output=True, text=True, cwd=tmp_path)
            assert done.stdout.split("\n")[:-1] == words

        check()

    @pytest.mark.parametrize("word", ["a\nb", "\r", "\0", "\x7f"])
    def test_what_no_spelling_brings_through_is_refused(self, word: str) -> None:
        with pytest.raises(ValueError, match="without control characters"):
            joined(["printf", word])


@enclosing
class TestEnclosure:
    def run(self, enclosure: Enclosure, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
        path = enclosure.written(folder / "enclosure.json")
        return subprocess.run([*enclosed(path), *command], capture_output=True, text=True, timeout=60)

    def test_names_files_and_processes_are_its_own(self, tmp_path: Path) -> None:
        (tmp_path / "shown").mkdir()
        (tmp_path / "shown" / "file").write_text("text")
        mounts = [Mount("/proc", "proc"), Mount("/mnt", source=str(tmp_path / "shown"), read_only=True)]
        script = "uname -n; cat /mnt/file; echo; ls /proc | grep -c '^[0-9]'; echo x > /mnt/file || exit 7"
        done = self.run(Enclosure("elsewhere", mounts), tmp_path, "/bin/sh", "-c", script)
        name, text, processes = done.stdout.split()
        assert (name, text, done.returncode) == ("elsewhere", "text", 7)
        assert int(processes) < 10
        assert socket.gethostname() != "elsewhere"
        assert (tmp_path / "shown" / "file").read_text() == "text"

    def test_what_cannot_be_mounted_is_named(self, tmp_path: Path) -> None:
        done = self.run(Enclosure("x", [Mount("/mnt", "nonsense")]), tmp_path, "/bin/true")
        assert (done.returncode, "mount nonsense at /mnt: No such device" in done.stderr) == (1, True)

    @pytest.mark.parametrize("kill", ["terminate", "kill"])
    def test_nothing_outlives_it(self, tmp_path: Path, kill: str) -> None:
        path = Enclosure("x", [Mount("/proc", "proc")]).written(tmp_path / "enclosure.json")
        mark = f"97{os.getpid()}.{time.monotonic_ns() % 10**6:06}"
        script = f"setsid sleep {mark} & echo started; wait"
        process = subprocess.Popen([*enclosed(path), "/bin/sh", "-c", script], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"started\n"
        wait_until(lambda: running(mark), "nothing was started")
        getattr(process, kill)()
        process.wait(30)
        process.stdout.close()
        wait_until(lambda: not running(mark), "a process outlived its enclosure")


def running(mark: str) -> bool:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[:2] == [b"sleep", mark.encode()]:
                return True
        except OSError:  # it has just ended
            continue
    return False


@pytest.fixture(scope="module")
def termux(folder: Path) -> Iterator[LoopbackSshd]:
    with socket.socket() as probe:
        free = probe.connect_ex(("127.0.0.1", TERMUX_PORT)) != 0
    around = phone(folder / "phone", TERMUX_PORT if free else None)
    with LoopbackSshd(folder / "phone", "phone", around) as server:
        yield server


@enclosing
class TestPhone:
    def test_it_is_an_apps_user_without_rights_or_tools(self, termux: LoopbackSshd) -> None:
        transport = connect(termux.device)
        try:
            assert said(transport, "id", "-u") == ["10123"]
            assert said(transport, "pwd") == [f"{TERMUX}/home"]
            script = "import os, shutil, tempfile; print(os.path.exists('/tmp'), tempfile.gettempdir()); "
            script += (
                "print(*map(shutil.which, ('sudo', 'sha256sum', 'tar'))); print(os.access('/', os.W_OK))"
            )
            found = said(transport, termux.device.python, "-I", "-S", "-c", script)
            assert found == [f"False {TERMUX}/usr/tmp", "None None None", "False"]
        finally:
            transport.close()

    def test_its_template_is_enough(self, termux: LoopbackSshd, bundle: Path) -> None:
        added = registered(termux, "android-termux")
        assert (added.device.python, added.device.root) == (termux.device.python, termux.device.root)
        assert added.device.labels["kind"] == "phone"
        deployed_and_validated(added, bundle).require_success()


@enclosing
class TestFarm:
    def test_a_device_that_dies_leaves_the_others_their_results(self, folder: Path, bundle: Path) -> None:
        """One with fish, one with csh, and one that is switched off while it is written to."""

        def travel(server: LoopbackSshd) -> Journey | TransportLostError:
            def report(stage: str, done: int, of: int, note: str = "", standing: Any = None) -> None:
                if server.device.name == "dying" and note.startswith("upload"):
                    server.__exit__(None, None, None)

            try:
                return deployed_and_validated(registered(server), bundle, report)
            except TransportLostError as exc:
                return exc

        kinds: dict[str, Surroundings] = {
            "fishy": apart(folder / "fishy", "fishy", shell("fish")),
            "csharp": apart(folder / "csharp", "csharp", shell("tcsh")),
            "dying": apart(folder / "dying", "dying"),
        }
        servers = [LoopbackSshd(folder / name, name, around).__enter__() for name, around in kinds.items()]
        try:
            with ThreadPoolExecutor(len(servers)) as pool:
                fishy, csharp, dying = pool.map(travel, servers)
        finally:
            for server in servers:
                server.__exit__(None, None, None)
        for name, journey in (("fishy", fishy), ("csharp", csharp)):
            assert isinstance(journey, Journey), journey
            journey.require_success()
            assert journey.added.facts.hostname == name
            assert (folder / name / "home" / "toggle-edge" / "deployment.json").is_file()
        assert isinstance(dying, TransportLostError)
        assert threading.active_count() < 50
        assert not (folder / "dying" / "home" / "toggle-edge" / "deployment.json").exists()

    def test_a_root_with_marks_of_every_shell(self, folder: Path) -> None:
        root = "it's a 'root' with \\ and !! and $HOME"
        for name in ("fish", "tcsh", "sh"):
            around = apart(folder / f"odd-{name}", "odd", shell(name))
            with LoopbackSshd(folder / f"odd-{name}", f"odd-{name}", around) as server:
                device = dataclasses.replace(server.device, root=root)
                transport = connect(device)
                try:
                    assert facts_of(transport, device).hostname == "odd"
                    with pytest.raises(TransportError, match="without control characters"):
                        said(transport, "printf", "a\nb")
                finally:
                    transport.close()
                assert (folder / f"odd-{name}" / "home" / root / "agent").is_dir()
