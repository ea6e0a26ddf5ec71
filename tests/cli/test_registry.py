"""`device add`, `doctor` and `remove` against a real sshd on loopback: what they write, say and refuse."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Call, Ended
from interpreters import interpreter
from toggle_runtime.lease import hold
from toggle_runtime.trust import trust

from toggle_edge.fleet.device import Device, Jump, load_device
from toggle_edge.fleet.device_files import device_text, write_device_file
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path, write_key

pytestmark = pytest.mark.skipif(sshd_path() is None, reason="no sshd on this machine: install openssh-server")

OTHER = "SHA256:" + "b" * 43
Add = Callable[..., Ended]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackSshd]:
    with LoopbackSshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No SSH configuration, agent or wheels of whoever runs the tests."""
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(Path.home() / ".cache" / "toggle-edge"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return home


@pytest.fixture
def far(sshd: LoopbackSshd, tmp_path: Path) -> Device:
    return dataclasses.replace(sshd.device, root=str(tmp_path / "device"))


@pytest.fixture
def options(far: Device) -> dict[str, object]:
    keys = ("host", "port", "user", "identity", "host_key", "python", "root")
    return {key: getattr(far, key) for key in keys}


@pytest.fixture
def add(call: Call, options: dict[str, object]) -> Add:
    """`device add pi` with everything that it needs, but for what a test changes: None leaves an option out."""

    def run(*flags: str, name: str = "pi", **changed: object) -> Ended:
        given = {key: value for key, value in {**options, **changed}.items() if value is not None}
        pairs = [str(each) for key, value in given.items() for each in (f"--{key.replace('_', '-')}", value)]
        return call("device", "add", name, *pairs, *flags)

    return run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cwd" / "devices" / "pi.toml"


@pytest.fixture
def registered(far: Device, file: Path, call: Call) -> Path:
    """The device's file, as `add` would write it, without the device having been asked."""
    write_device_file(file, device_text(dataclasses.replace(far, name="pi")), replace=False)
    return file


def findings(ended: Ended) -> dict[str, Any]:
    return {each["name"]: each for each in json.loads(ended.out)["findings"]}


class TestAdd:
    def test_a_device_is_written_and_can_be_used(self, add: Add, call: Call, far: Device, file: Path) -> None:
        ended = add("--json", template="raspberry-pi-5")
        assert ended.code == 0, ended.err
        device, answer = load_device(file), json.loads(ended.out)
        for key in ("host", "port", "user", "identity", "host_key", "python", "root"):
            assert getattr(device, key) == getattr(far, key)
        assert device.threads == min(4, os.cpu_count() or 1)
        assert device.labels["kind"] == "raspberry-pi-5"
        assert device.labels["arch"] == os.uname().machine
        assert device.labels["python"] == ".".join(map(str, sys.version_info[:2]))
        assert device.capabilities["onnxruntime"] == answer["wheels"]["onnxruntime"]
        assert device.capabilities["cpus"] == os.cpu_count()
        assert (answer["outcome"], answer["target"], answer["file"]) == (
            "PASS",
            device.target,
            "devices/pi.toml",
        )
        text = file.read_text()
        assert "ssh-ed25519, as given with --host-key" in text
        assert "# The kernel shows no power rails on this board" in text
        assert [path.name for path in file.parent.iterdir()] == ["pi.toml"]
        shown = call("device", "show", "pi", "--json")
        assert json.loads(shown.out)["facts"]["cpus"] == os.cpu_count()

    def test_people_are_told_what_it_is_and_what_is_next(self, add: Add) -> None:
        ended = add()
        assert ended.code == 0
        for expected in (
            "target onnx-cpu",
            "formats",
            "energy",
            "devices/pi.toml",
            "toggle-edge device doctor pi",
        ):
            assert expected in ended.out
        assert all(len(line) <= 100 for line in ended.out.splitlines())

    def test_another_host_key_is_refused_and_nobody_logs_in(
        self, add: Add, sshd: LoopbackSshd, far: Device, file: Path
    ) -> None:
        before = sshd.log.count("Accepted publickey")
        ended = add(host_key=OTHER)
        assert ended.code == 3
        assert (
            f"expected host key {OTHER}, got ssh-ed25519 {far.host_key}; nothing was sent or written"
            in ended.err
        )
        assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in ended.err
        assert sshd.log.count("Accepted publickey") == before
        assert not file.exists()
        assert not Path(far.root).exists()

    def test_without_terminal_and_host_key_it_says_how_to_get_one(
        self, add: Add, far: Device, file: Path
    ) -> None:
        ended = add(host_key=None, template="android-termux")
        assert ended.code == 2
        assert f"offers the host key ssh-ed25519 {far.host_key}, and nobody is at a terminal" in ended.err
        assert "ssh-keygen -lf /data/data/com.termux/files/usr/etc/ssh/ssh_host_ed25519_key.pub" in ended.err
        assert not file.exists()

    def test_what_is_there_is_kept_unless_replaced(self, add: Add, file: Path) -> None:
        assert add().code == 0
        file.write_text(
            file.read_text().replace("[labels]", '[labels]\nroom = "lab"')
            + "# mine\n[budget]\ndecode_ms = 7\n"
        )
        ended = add()
        assert (ended.code, "is there already; give --replace" in ended.err) == (2, True)
        assert "# mine" in file.read_text()
        assert add("--replace").code == 0
        assert "# mine" not in file.read_text()
        device = load_device(file)
        assert (device.budget.decode_ms, device.labels["room"]) == (7, "lab"), "what people have set is kept"

    @pytest.mark.parametrize("name", ["../pi", "a b", "$(true)", "-rf", "", "x" * 65, "a/b", "pi;true"])
    def test_bad_names(self, call: Call, options: dict[str, object], name: str, tmp_path: Path) -> None:
        ended = call("device", "add", "--host", "127.0.0.1", "--port", 1, "--", name)
        assert ended.code == 2
        assert "name: expected a plain name" in ended.err
        assert list((tmp_path / "cwd").iterdir()) == []

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"host_key": "MD5:aa"}, "--host-key: expected SHA256: and 43 characters"),
            ({"host": None}, "expected --host ADDRESS, or --local for this machine"),
            ({"template": "raspbery-pi-5"}, "did you mean 'raspberry-pi-5'?"),
            (
                {"identity": "/no/such/key"},
                "--identity /no/such/key: expected a private key without passphrase",
            ),
            ({"port": 70000}, "port: expected 1 to 65535"),
            ({"host": "-oProxyCommand=true"}, "host: expected a value without spaces"),
            ({"root": "~/x"}, "root: expected a folder"),
        ],
    )
    def test_bad_options(self, add: Add, file: Path, changed: dict[str, object], message: str) -> None:
        ended = add(**changed)
        assert (ended.code, message in ended.err) == (2, True), ended.err
        assert not file.exists()

    def test_local_takes_no_address(self, call: Call, tmp_path: Path, file: Path) -> None:
        ended = call("device", "add", "pi", "--local", "--user", "me")
        assert (ended.code, "so expected no --user" in ended.err) == (2, True)
        ended = call("device", "add", "pi", "--local", "--root", tmp_path / "device")
        assert ended.code == 0, ended.err
        device = load_device(file)
        assert (device.transport, device.python) == ("local", sys.executable)
        assert "host_key" not in file.read_text()

    def test_no_python_there(self, add: Add, file: Path) -> None:
        ended = add(python="/no/python3")
        assert (ended.code, "check that '/no/python3' is a Python 3.8 or later there" in ended.err) == (
            3,
            True,
        )
        assert not file.exists()

    def test_a_stranger_is_refused(self, add: Add, file: Path, tmp_path: Path) -> None:
        write_key(tmp_path / "stranger")
        ended = add(identity=tmp_path / "stranger")
        assert (ended.code, "refused the key" in ended.err) == (3, True)
        assert not file.exists()

    def test_nobody_there(self, add: Add, file: Path) -> None:
        ended = add(port=1)
        assert (ended.code, "cannot connect" in ended.err) == (3, True)
        assert not file.exists()

    def test_a_folder_of_somebody_elses_is_no_root(self, add: Add, file: Path, far: Device) -> None:
        Path(far.root, "Documents").mkdir(parents=True)
        ended = add()
        assert ended.code == 3
        assert (
            "expected a folder of our own, found 'Documents' in it; choose another one with --root"
            in ended.err
        )
        assert not file.exists()
        assert not Path(far.root, "layout").exists()

    def test_an_old_python_gets_an_old_runtime(self, add: Add, file: Path) -> None:
        python = interpreter("3.8")
        if python is None:
            pytest.skip("no Python 3.8 on this machine")
        ended = add("--json", python=python)
        assert ended.code == 0, ended.err
        assert json.loads(ended.out)["wheels"]["onnxruntime"] == "1.19.2"
        assert "Python 3.8 ends at onnxruntime 1.19.2" in file.read_text()


class TestConfiguration:
    def test_ssh_config_is_read(self, add: Add, home: Path, far: Device, file: Path) -> None:
        (home / ".ssh" / "config").write_text(
            f"Host board\n HostName {far.host}\n Port {far.port}\n User {far.user}\n"
            f" IdentityFile /no/such/key\n IdentityFile {far.identity}\n"
        )
        ended = add(host="board", port=None, user=None, identity=None, template="android-termux")
        assert ended.code == 0, ended.err
        device = load_device(file)
        assert (device.host, device.port, device.user) == (far.host, far.port, far.user)
        assert device.identity == far.identity

    def test_options_go_before_it(self, add: Add, home: Path, far: Device, file: Path) -> None:
        (home / ".ssh" / "config").write_text("Host *\n Port 1\n User nobody\n IdentityFile /no/such/key\n")
        assert add().code == 0
        assert load_device(file).port == far.port

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("ProxyJump gate,other", "jump: expected one host as [USER@]HOST[:PORT], got 'gate,other'"),
            (
                "ProxyJump gate\nHost gate\n ProxyJump other",
                "jump gate: expected one that is reached directly",
            ),
            ("ProxyCommand nc gate 22", "reached through a ProxyCommand"),
            ("Port many", "expected an SSH configuration"),
            ("Match nonsense", "expected an SSH configuration"),
        ],
    )
    def test_what_it_cannot_follow_is_refused(self, add: Add, home: Path, line: str, message: str) -> None:
        (home / ".ssh" / "config").write_text(f"Host board\n HostName 10.0.0.7\n {line}\n")
        ended = add(host="board", port=None)
        assert (ended.code, message in ended.err) == (2, True), ended.err

    def test_keys_come_from_the_agent(
        self, add: Add, call: Call, far: Device, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ended = add(identity=None)
        assert (ended.code, "no SSH agent here holds a key; run ssh-add" in ended.err) == (3, True)
        # A path of a socket may have a hundred characters or so.
        socket = Path("/tmp") / f"toggle-edge-agent-{os.getpid()}"
        agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL)
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
            deadline = time.monotonic() + 10
            while not socket.exists():
                assert time.monotonic() < deadline, "no ssh-agent"
                time.sleep(0.02)
            write_key(tmp_path / "stranger")
            for key in (tmp_path / "stranger", far.identity):
                subprocess.run(["ssh-add", "-q", str(key)], check=True)
            ended = add(identity=None)
            assert ended.code == 0, ended.err
            assert load_device(file).identity == ""
            assert findings(call("device", "doctor", "pi", "--json"))["login"]["state"] == "OK"
            subprocess.run(["ssh-add", "-q", "-d", str(far.identity)], check=True, capture_output=True)
            assert "refused all 1 keys of the SSH agent" in add("--replace", identity=None).err
            for number in range(8):
                write_key(tmp_path / f"key{number}")
                subprocess.run(["ssh-add", "-q", str(tmp_path / f"key{number}")], check=True)
            ended = add("--replace", identity=None)
            assert ended.code == 3
            assert "the device stopped listening at the" in ended.err
        finally:
            agent.terminate()
            agent.wait()


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """A host in between, with a key and a client of its own."""
    with LoopbackSshd(tmp_path_factory.mktemp("gate"), "gate") as server:
        yield server.device


class TestJump:
    def config(self, home: Path, gate: Device) -> None:
        (home / ".ssh" / "config").write_text(
            f"Host gate\n HostName {gate.host}\n Port {gate.port}\n User {gate.user}\n IdentityFile {gate.identity}\n"
            f"Host board\n HostName 127.0.0.1\n ProxyJump gate\n"
        )

    def test_a_device_behind_a_host(
        self, add: Add, call: Call, home: Path, gate: Device, far: Device, file: Path
    ) -> None:
        self.config(home, gate)
        ended = add(host="board", jump_host_key=gate.host_key)
        assert ended.code == 0, ended.err
        jump = Jump(gate.host, gate.port, gate.user, gate.host_key, gate.identity)
        assert load_device(file).jump == jump
        found = findings(call("device", "doctor", "pi", "--json"))
        assert {found[name]["state"] for name in ("reachable", "host key", "login", "agent")} == {"OK"}
        assert call("device", "remove", "pi").code == 0
        assert not Path(far.root).exists()

    def test_both_keys_are_asked_for(
        self, add: Add, home: Path, gate: Device, far: Device, file: Path
    ) -> None:
        self.config(home, gate)
        told = add(host="board").err
        assert f"{gate.host}:{gate.port} offers the host key ssh-ed25519 {gate.host_key}" in told
        assert "give it as --jump-host-key" in told
        told = add(host="board", host_key=None, jump_host_key=gate.host_key).err
        assert f"127.0.0.1:{far.port} offers the host key ssh-ed25519 {far.host_key}" in told
        assert not file.exists()

    def test_another_host_in_between_is_refused(
        self, add: Add, home: Path, gate: Device, sshd: LoopbackSshd, file: Path
    ) -> None:
        self.config(home, gate)
        before = sshd.log.count("Connection from")
        ended = add(host="board", jump_host_key=OTHER)
        assert (ended.code, f"expected host key {OTHER}, got ssh-ed25519 {gate.host_key}" in ended.err) == (
            3,
            True,
        )
        assert sshd.log.count("Connection from") == before
        assert not file.exists()

    def test_by_option_and_nobody_behind_it(
        self, add: Add, gate: Device, far: Device, sshd: LoopbackSshd
    ) -> None:
        hop = f"{gate.user}@{gate.host}:{gate.port}"
        ended = add(jump=hop, jump_host_key=gate.host_key, identity=gate.identity, port=1)
        assert ended.code == 3
        assert f"through {hop}: cannot connect from there" in ended.err
        ended = add(jump=hop, jump_host_key=gate.host_key)  # which knows another client
        assert (ended.code, "refused the key" in ended.err) == (3, True)
        ended = add(jump_host_key=gate.host_key)
        assert (ended.code, "--jump-host-key: expected --jump" in ended.err) == (2, True)


class TestConfirmation:
    def asked(self, options: dict[str, object], folder: Path, answer: str, *flags: str) -> tuple[int, str]:
        """The command as a process at a terminal, where somebody types the answer."""
        given = {key: value for key, value in options.items() if key != "host_key"}
        pairs = [str(each) for key, value in given.items() for each in (f"--{key}", value)]
        command = [sys.executable, "-m", "toggle_edge", "device", "add", "pi", *pairs, *flags]
        ours, theirs = pty.openpty()
        folder.mkdir(exist_ok=True)
        process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder)
        os.close(theirs)
        said, answered = "", False
        while True:
            try:
                data = os.read(ours, 1 << 14)
            except OSError:  # how Linux says that the other end is closed
                break
            if not data:
                break
            said += data.decode()
            if not answered and "Is it the same? [y/N]" in said:
                os.write(ours, answer.encode() + b"\n")
                answered = True
        os.close(ours)
        assert answered, said
        return process.wait(), " ".join(said.split())

    def test_yes_no_and_a_changed_key(self, options: dict[str, object], far: Device, tmp_path: Path) -> None:
        folder = tmp_path / "desk"
        path = folder / "devices" / "pi.toml"
        code, said = self.asked(options, folder, "n")
        assert code == 3
        assert f"offers the host key ssh-ed25519 {far.host_key}" in said
        assert (
            "There, at its own console and not over this link, read it with ssh-keygen -lf /etc/ssh/" in said
        )
        assert "was not confirmed; nothing was sent or written" in said
        assert not path.exists()
        code, said = self.asked(options, folder, "\x04")  # Ctrl-D
        assert (code, "defect" in said) == (130, False)
        code, said = self.asked(options, folder, "y")
        assert code == 0, said
        assert load_device(path).host_key == far.host_key
        assert "confirmed by" in path.read_text()
        path.write_text(path.read_text().replace(far.host_key, OTHER))
        code, said = self.asked(options, folder, "n", "--replace")
        assert f"This is NOT {OTHER}, which is in its device file." in said
        assert load_device(path).host_key == OTHER


class TestDoctor:
    def test_a_device_that_works(self, add: Add, call: Call, far: Device) -> None:
        assert add().code == 0
        ended = call("device", "doctor", "pi", "--json")
        found = findings(ended)
        assert ended.code == 0, ended.out
        works = (
            "reachable",
            "host key",
            "login",
            "agent",
            "wheels",
            "target",
            "root",
            "disk",
            "lease",
            "clock",
            "keys",
        )
        assert {name: found[name]["state"] for name in works} == dict.fromkeys(works, "OK")
        assert far.host_key in found["host key"]["found"]
        assert {"memory", "energy", "governor"} <= set(found)
        ended = call("device", "doctor", "pi")
        assert (ended.code, "validate works there" in ended.out) == (0, True)

    def test_another_host_key(self, registered: Path, call: Call, far: Device, sshd: LoopbackSshd) -> None:
        registered.write_text(registered.read_text().replace(far.host_key, OTHER))
        before = sshd.log.count("Accepted publickey")
        ended = call("device", "doctor", "pi", "--json")
        found = findings(ended)
        assert (ended.code, json.loads(ended.out)["outcome"]) == (3, "ERROR")
        assert found["host key"]["state"] == "BROKEN"
        assert f"known {OTHER}, offered ssh-ed25519 {far.host_key}" in found["host key"]["found"]
        assert found["host key"]["fix"]["where"] == "host"
        command = found["host key"]["fix"]["command"]
        assert command.startswith(
            f"toggle-edge device add pi --replace --host 127.0.0.1 --port {far.port} --user "
        )
        assert f"--python {far.python} --root {far.root}" in command
        assert {found[name]["state"] for name in ("login", "agent", "wheels", "keys")} == {"UNKNOWN"}
        assert sshd.log.count("Accepted publickey") == before

    def test_nobody_there_and_no_login(
        self, registered: Path, call: Call, far: Device, tmp_path: Path
    ) -> None:
        good = registered.read_text()
        write_key(tmp_path / "stranger")
        registered.write_text(good.replace(far.identity, str(tmp_path / "stranger")))
        found = findings(call("device", "doctor", "pi", "--json"))
        assert (found["host key"]["state"], found["login"]["state"], found["agent"]["state"]) == (
            "OK",
            "BROKEN",
            "UNKNOWN",
        )
        assert found["login"]["fix"]["command"].startswith(
            f"ssh-copy-id -i {tmp_path / 'stranger'} -p {far.port} "
        )
        registered.write_text(good.replace(f"port = {far.port}", "port = 1"))
        ended = call("device", "doctor", "pi")
        assert ended.code == 3
        assert "ssh -v -p 1 " in ended.out
        assert "validate does not work there: reachable." in ended.out

    def test_no_python_there(self, registered: Path, call: Call, far: Device) -> None:
        registered.write_text(registered.read_text().replace(json.dumps(far.python), '"/no/python3"'))
        found = findings(call("device", "doctor", "pi", "--json"))
        assert (found["login"]["state"], found["agent"]["state"], found["wheels"]["state"]) == (
            "OK",
            "BROKEN",
            "UNKNOWN",
        )
        assert "/no/python3" in found["agent"]["found"]

    def test_held_and_mistrusting(self, registered: Path, call: Call, far: Device) -> None:
        trust(Path(far.root), "ab" * 32, "somebody@else", force=True)
        with hold(Path(far.root), "somebody@else", "run-7"):
            ended = call("device", "doctor", "pi", "--json")
        found = findings(ended)
        assert ended.code == 3
        assert (found["lease"]["state"], found["keys"]["state"]) == ("BROKEN", "BROKEN")
        assert "in use by somebody@else, run run-7" in found["lease"]["found"]
        assert found["lease"]["fix"] == {
            "where": "device",
            "command": f"kill {os.getpid()} # ends that run, ABORTED",
        }
        assert found["keys"]["fix"]["command"] == "toggle-edge device trust pi"

    def test_an_unknown_device(self, call: Call) -> None:
        assert call("device", "doctor", "nobody").code == 2


class TestRemove:
    def test_nothing_stays(self, add: Add, call: Call, far: Device, file: Path) -> None:
        assert add().code == 0
        assert Path(far.root, "agent").is_dir()
        ended = call("device", "remove", "pi", "--json")
        answer = json.loads(ended.out)
        assert (ended.code, answer["left"], answer["file"]) == (0, [], "devices/pi.toml")
        assert set(answer["removed"]) >= {"agent", "layout", "lease"}
        assert not Path(far.root).exists()
        assert not file.exists()
        assert call("device", "remove", "pi").code == 2

    def test_a_device_in_use_is_left_alone(self, add: Add, call: Call, far: Device, file: Path) -> None:
        assert add().code == 0
        with hold(Path(far.root), "somebody@else", "run-7"):
            for flags in ([], ["--forget"]):
                ended = call("device", "remove", "pi", *flags)
                assert (ended.code, "in use by" in ended.err) == (3, True)
        assert file.exists()
        assert Path(far.root, "layout").exists()

    def test_what_is_not_ours_stays(self, add: Add, call: Call, far: Device) -> None:
        assert add().code == 0
        Path(far.root, "thesis").write_text("precious")
        ended = call("device", "remove", "pi")
        assert (ended.code, "left what is not ours: thesis" in ended.out) == (0, True)
        assert [path.name for path in Path(far.root).iterdir()] == ["thesis"]

    def test_keeping_its_files(self, registered: Path, call: Call, far: Device) -> None:
        # Port 1: nobody is asked.
        registered.write_text(registered.read_text().replace(f"port = {far.port}", "port = 1"))
        ended = call("device", "remove", "pi", "--keep-files", "--json")
        assert (ended.code, json.loads(ended.out)["removed"]) == (0, None)
        assert not registered.exists()

    def test_a_device_that_is_gone(self, registered: Path, call: Call, far: Device) -> None:
        registered.write_text(registered.read_text().replace(f"port = {far.port}", "port = 1"))
        ended = call("device", "remove", "pi")
        assert ended.code == 3
        assert (
            "nothing was removed. To forget a device that is gone: toggle-edge device remove pi --forget"
            in ended.err
        )
        assert registered.exists()
        ended = call("device", "remove", "pi", "--forget")
        assert (ended.code, "nothing was removed there: " in ended.out) == (0, True)
        assert not registered.exists()

    def test_what_is_part_of_toggle_edge_stays(self, call: Call) -> None:
        shipped = load_device("laptop")
        ended = call("device", "remove", "laptop", "--keep-files")
        assert (ended.code, "part of toggle-edge and stays" in ended.out) == (0, True)
        assert load_device("laptop") == shipped
