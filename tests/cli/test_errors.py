"""Everything that a user, a model's folder, a bundle or a device may do wrong: exit code, message, nothing left behind.

Commands are called in this process, through the same entry as the script, since each would otherwise import torch
anew; two of them run as real processes in `test_main`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import Call
from rich.console import Console
from safetensors.torch import load_file, save_file
from toggle_runtime.plan import Plan
from toggle_runtime.records import digest_of, to_json

from toggle_edge.bundle import MANIFEST, read_bundle
from toggle_edge.fleet.device import Device
from toggle_edge.fleet.sshd import LoopbackSshd, sshd_path, write_key
from toggle_edge.pipeline import checking
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.validation import ValidateOptions, run_validate
from toggle_edge.report.progress import silent
from toggle_edge.report.validation import print_validation
from toggle_edge.signing import sign, signing_key

DEMO = demo_folder()
PROFILE = (Path(__file__).parents[2] / "profiles" / "default.toml").read_text()


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model at 8 bits with one probe, as a signed bundle, made by the command."""
    folder = tmp_path_factory.mktemp("bundle")
    profile = folder / "one.toml"
    profile.write_text(
        PROFILE.replace("search = 59", "search = 1").replace("certificate = 59", "certificate = 1")
    )
    arguments = ["export", str(DEMO / "model"), "--config", "int8-g64", "-o", str(folder / "bundle")]
    arguments += ["--profile", str(profile)]
    done = subprocess.run([sys.executable, "-m", "toggle_edge", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "bundle"


@pytest.fixture
def bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of it that may be damaged: blobs are not shared with the original."""
    shutil.copytree(bundle_folder, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    shutil.copytree(DEMO / "model", tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return device_file(
        tmp_path, Device(name="here", transport="local", root=str(tmp_path / "device"), python=sys.executable)
    )


def device_file(folder: Path, device: Device) -> Path:
    keys = ("name", "transport", "host", "port", "user", "host_key", "identity", "root", "python")
    path = folder / f"{device.name}.toml"
    path.write_text("".join(f"{key} = {json.dumps(getattr(device, key))}\n" for key in keys))
    return path


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class TestModel:
    def test_missing(self, call: Call, tmp_path: Path) -> None:
        ended = call("check", tmp_path / "absent", "--config", "int4-g32")
        assert ended.code == 2
        assert "expected config.json, tokenizer.json and *.safetensors, missing config.json" in ended.err
        assert listing(tmp_path / "cwd") == []

    @pytest.mark.parametrize("command", ["check", "search", "export"])
    def test_without_tokenizer(self, call: Call, model: Path, tmp_path: Path, command: str) -> None:
        (model / "tokenizer.json").unlink()
        more = {"check": [], "search": [], "export": ["-o", "out"]}[command]
        config = [] if command == "search" else ["--config", "int4-g32"]
        ended = call(command, model, *config, *more)
        assert ended.code == 2
        assert "missing tokenizer.json; save it with" in ended.err
        assert listing(tmp_path / "cwd") == []

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("model.safetensors", lambda data: data[: len(data) // 2]),
            ("model.safetensors", lambda data: b"\xff" * 8 + data[8:]),
            ("config.json", lambda data: data[:50]),
            ("config.json", lambda data: data.replace(b'"hidden_size": 192', b'"hidden_size": "x"')),
            ("tokenizer.json", lambda data: data[:500]),
        ],
    )
    def test_damaged(self, call: Call, model: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
        data = (model / name).read_bytes()
        assert damage(data) != data
        (model / name).write_bytes(damage(data))
        ended = call("check", model, "--config", "int4-g32")
        assert ended.code == 2, ended.err
        assert "cannot be loaded" in ended.err
        assert "Traceback" not in ended.err

    def test_weights_of_another_architecture(self, call: Call, model: Path) -> None:
        config = json.loads((model / "config.json").read_text())
        config.update(model_type="opt", architectures=["OPTForCausalLM"], word_embed_proj_dim=192)
        (model / "config.json").write_text(json.dumps(config))
        ended = call("check", model, "--config", "int4-g32")
        assert ended.code == 2
        assert "expected every weight of the architecture in config.json, missing lm_head" in ended.err

    def test_a_weight_that_is_no_number_passes_nothing(self, call: Call, model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
        save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
        ended = call("check", model, "--config", "int4-g32")
        assert ended.code == 3
        assert "not finite in model.layers.1.mlp.up_proj.weight" in " ".join(ended.out.split())
        for command in (
            ["search", model, "--trials", 3],
            ["export", model, "--config", "int4-g32", "-o", "b"],
        ):
            ended = call(*command)
            assert ended.code == 2
            assert "expected finite weights" in ended.err


class TestProfile:
    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            (
                "threshold = 0.25",
                "treshold = 0.25",
                "treshold: unknown key; expected one of formula, threshold",
            ),
            ("coverage = 0.95", "covrage = 0.95", "did you mean 'coverage'?"),
            ("[budget]", "[bugdet]", "did you mean 'budget'?"),
            ('"always (jsd <= threshold)"', '"always (jds <= threshold)"', "got 'jds'; did you mean 'jsd'?"),
            ("threshold = 0.25", "threshold = nan", "expected a finite number"),
            (
                '"int4-g32"',
                '"int5-g32"',
                "no target has a kernel for int5-g32; the nearest format with one is int8",
            ),
            ("search = 59", "search = 5900", "expected at least 5900 for the search side"),
            ("[search]", "[search", "expected TOML"),
        ],
    )
    def test_a_mistake_is_named_with_the_nearest_word(
        self, call: Call, tmp_path: Path, old: str, new: str, message: str
    ) -> None:
        assert old in PROFILE
        (tmp_path / "mine.toml").write_text(PROFILE.replace(old, new, 1))
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--profile", tmp_path / "mine.toml")
        assert ended.code == 2
        assert message in ended.err

    def test_a_syntax_error_shows_its_column(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "mine.toml").write_text(
            PROFILE.replace("always (jsd <= threshold)", "always (jsd =< threshold)")
        )
        ended = call("search", DEMO / "model", "--profile", tmp_path / "mine.toml")
        assert ended.code == 2
        assert (
            "properties.coherence: formula, column 13: expected a signal, a number or an operator"
            in ended.err
        )
        text, caret = ended.err.splitlines()[-2:]
        assert text[len(caret.rstrip()) - 1] == "="
        assert listing(tmp_path / "cwd") == []

    @pytest.mark.parametrize("relax", ["nan", "inf", "1", "-0.1", "much"])
    def test_a_share_that_is_none(self, call: Call, relax: str) -> None:
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--relax", relax)
        assert ended.code == 2
        assert "relax" in ended.err

    def test_an_unknown_profile_and_mode(self, call: Call) -> None:
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--profile", "defualt")
        assert (ended.code, "did you mean 'default'?" in ended.err) == (2, True)
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--mode", "optimum")
        assert (ended.code, "did you mean 'optimal'?" in ended.err) == (2, True)


class TestConfigAndProbes:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "config"),
            ("[]", "expected an object of layer -> format"),
            ('{"lm_head": "int4-g32"}', "expected a format for each of the model's 43 layers"),
            ('{"a": "int3-g31"}', "layer 'a': format: expected fp32"),
            ("[" * 100_000, "config"),
        ],
    )
    def test_a_config_file_that_does_not_fit(
        self, call: Call, tmp_path: Path, content: str, message: str
    ) -> None:
        (tmp_path / "config.json").write_text(content)
        ended = call("check", DEMO / "model", "--config", tmp_path / "config.json")
        assert ended.code == 2
        assert message in ended.err

    @pytest.mark.parametrize("config", ["int3-g31", "absent.json", "", "fp64"])
    def test_neither_a_file_nor_a_format(self, call: Call, config: str) -> None:
        ended = call("check", DEMO / "model", "--config", config)
        assert ended.code == 2
        assert "config" in ended.err

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("", "the file is empty"),
            ("{}\n", ':1: expected {"text": ...'),
            ('{"text": 3}\n', "expected text to be a string, got int"),
            ('{"text": "too short"}\n', "got none; 0 texts; left out: 1 shorter than 34 tokens"),
            ('{"prompt": "too", "answer": "short"}\n', "expected at least 34 tokens"),
            (json.dumps({"text": "Once upon a time " * 400}) + "\n", "without a sentence's end within 256"),
            (
                json.dumps({"text": "Once upon a time " * 400, "answer": "time"}) + "\n",
                "do not fit the model's context",
            ),
            ("\udcff", "expected UTF-8, got byte 0xff"),
        ],
    )
    def test_malformed_probes(self, call: Call, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "probes.jsonl").write_bytes(content.encode("utf-8", "surrogateescape"))
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--probes", tmp_path / "probes.jsonl")
        assert ended.code == 2
        assert message in ended.err

    def test_missing_probes(self, call: Call, tmp_path: Path) -> None:
        ended = call("search", DEMO / "model", "--probes", tmp_path / "absent.jsonl")
        assert (ended.code, "cannot be read" in ended.err) == (2, True)
        assert listing(tmp_path / "cwd") == []


class TestStudy:
    def test_a_study_that_is_not_there(self, call: Call, tmp_path: Path) -> None:
        for arguments in (
            ("search", DEMO / "model", "--resume"),
            ("export", "nothing", "--mode", "optimal", "-o", tmp_path / "out"),
        ):
            ended = call(*arguments)
            assert ended.code == 2
            assert "has no study" in ended.err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "got none of them"),
            (["--mode", "optimal", "--trial", "3"], "got --mode and --trial"),
            (["--trial", "-1"], "--trial"),
            (
                ["--config", "int4-g32", "--target", "onnx-gpu"],
                "expected one of ['executorch-xnnpack', 'onnx-cpu', ",
            ),
        ],
    )
    def test_what_to_export_must_be_said_once(
        self, call: Call, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        ended = call("export", DEMO / "model", "-o", tmp_path / "out", *arguments)
        assert ended.code == 2
        assert message in ended.err
        assert not (tmp_path / "out").exists()

    def test_an_output_that_exists_is_left_alone(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        ended = call("export", DEMO / "model", "--config", "int4-g32", "-o", tmp_path / "out")
        assert (ended.code, "expected a new folder" in ended.err) == (2, True)
        assert listing(tmp_path / "out") == []

    def test_a_study_name_that_leaves_the_folder(self, call: Call, tmp_path: Path) -> None:
        ended = call("search", DEMO / "model", "--study", "../out", "--trials", "1")
        assert ended.code == 2
        assert "expected letters" in ended.err
        assert not (tmp_path / "out").exists()

    def test_a_store_that_is_none(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "text.db").write_text("not a database" * 100)
        ended = call("search", DEMO / "model", "--store", f"sqlite:///{tmp_path / 'text.db'}")
        assert (ended.code, "store:" in ended.err) == (3, True)


class TestBundle:
    def test_a_bad_digest_in_a_file(self, call: Call, bundle: Path, local: Path, tmp_path: Path) -> None:
        manifest = read_bundle(bundle).manifest
        name, blob = next((n, b) for n, b in manifest.files.items() if n.startswith("artifact/weights/"))
        path = bundle / "blobs" / "sha256" / blob.sha256
        content = bytearray(path.read_bytes())
        content[7] ^= 1
        path.unlink()
        path.write_bytes(content)
        ended = call("validate", "--restarts=1", "--device", local, "--bundle", bundle)
        assert ended.code == 2
        assert f"{name}: expected sha256 {blob.sha256}" in ended.err
        assert "the bundle is damaged, export it again" in ended.err
        assert not (tmp_path / "device").exists(), "nothing was sent"

    def test_a_bad_digest_that_the_device_finds(
        self, call: Call, bundle: Path, local: Path, tmp_path: Path
    ) -> None:
        assert call("validate", "--restarts=1", "--device", local, "--bundle", bundle).code in (0, 1)
        stored = tmp_path / "device" / "blobs" / "sha256"
        blob = read_bundle(bundle).manifest.files["artifact/model.onnx"]
        content = bytearray((stored / blob.sha256).read_bytes())
        content[7] ^= 1
        (stored / blob.sha256).unlink()
        (stored / blob.sha256).write_bytes(content)
        ended = call("validate", "--restarts=1", "--device", local, "--bundle", bundle)
        assert ended.code == 3
        said = " ".join(ended.out.split())
        assert f"digest: file artifact/model.onnx: expected sha256 {blob.sha256}" in said
        assert not (stored / blob.sha256).exists(), "the next deployment sends it again"
        assert call("validate", "--restarts=1", "--device", local, "--bundle", bundle).code in (0, 1)

    def test_other_processes_are_told_and_refused_by_the_strict(
        self, bundle: Path, local: Path, tmp_path: Path
    ) -> None:
        # Three processes: of a pass of less than half a second nothing is said.
        short = Plan(
            ["parity", "verify", "latency"], restarts=3, generations=4, warmups=0, tokens=48, contexts=[]
        )
        options = ValidateOptions(
            str(local), bundle, output=tmp_path / "runs", plan=short, strict_conditions=True
        )
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
        try:
            result = run_validate(options, silent)
        finally:
            for each in busy:
                each.kill()
                each.wait()
        assert result.outcome == "ERROR"
        assert (result.reason or "").startswith(
            "--strict-conditions: latency was contended: other processes took"
        )
        page = io.StringIO()
        print_validation(result, Console(file=page, width=100))
        assert "disturbed latency was contended" in " ".join(page.getvalue().split())

    @pytest.mark.skipif(Path("/sys/devices/system/cpu/cpu0/cpufreq").exists(), reason="it has clocks to pin")
    def test_clocks_that_cannot_be_pinned_are_not_measured_without(
        self, call: Call, bundle: Path, local: Path
    ) -> None:
        ended = call("validate", "--device", local, "--bundle", bundle, "--pin-clocks")
        assert ended.code == 3
        assert "clocks cannot be pinned" in " ".join(ended.out.split())

    def test_not_a_bundle(self, call: Call, local: Path, tmp_path: Path) -> None:
        ended = call("validate", "--restarts=1", "--device", local, "--bundle", tmp_path)
        assert (ended.code, "not a readable bundle" in ended.err) == (2, True)

    def test_unsigned(self, call: Call, bundle: Path, local: Path, tmp_path: Path) -> None:
        manifest = dataclasses.replace(read_bundle(bundle).manifest, signature=None)
        (bundle / MANIFEST).write_text(to_json(manifest))
        ended = call("validate", "--restarts=1", "--device", local, "--bundle", bundle)
        assert ended.code == 2
        assert "expected a signed bundle, this one has no signature" in ended.err
        assert not (tmp_path / "device").exists()
        allowed = call("validate", "--restarts=1", "--device", local, "--bundle", bundle, "--allow-unsigned")
        assert allowed.code in (0, 1)
        assert "NOT signed" in allowed.out

    def test_signed_by_a_stranger(self, call: Call, bundle: Path, local: Path, tmp_path: Path) -> None:
        stranger = signing_key(tmp_path / "stranger")
        (bundle / MANIFEST).write_text(to_json(sign(stranger, read_bundle(bundle).manifest)))
        for more in ((), ("--allow-unsigned",)):
            ended = call("validate", "--restarts=1", "--device", local, "--bundle", bundle, *more)
            assert ended.code == 2
            assert "signed by the unknown key" in ended.err

    def test_signed_with_wrong_codes(self, call: Call, bundle: Path, local: Path) -> None:
        manifest = read_bundle(bundle).manifest
        name = next(name for name in manifest.files if name.endswith("0.mlp.up_proj.bin"))
        content = bytearray((bundle / "blobs" / "sha256" / manifest.files[name].sha256).read_bytes())
        content[100] ^= 8
        digest = write_blob(bundle, bytes(content))
        files = {**manifest.files, name: dataclasses.replace(manifest.files[name], sha256=digest)}
        text = to_json(sign(signing_key(), dataclasses.replace(manifest, files=files)))
        (bundle / MANIFEST).write_text(text)
        ended = call("validate", "--restarts=1", "--device", local, "--bundle", bundle, "--json")
        assert ended.code == 3
        result = json.loads(ended.out)
        assert result["outcome"] == "ERROR"
        assert result["bundle"]["digest"] == digest_of(text)
        assert result["reason"].startswith("parity: the artifact does not compute what was searched")
        assert result["parity"]["max_abs_logit_difference"] > 1e-4


def write_blob(bundle: Path, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (bundle / "blobs" / "sha256" / digest).write_bytes(content)
    return digest


class TestDevice:
    def test_unknown(self, call: Call, bundle: Path) -> None:
        ended = call("validate", "--restarts=1", "--device", "labtop", "--bundle", bundle)
        assert (ended.code, "did you mean 'laptop'?" in ended.err) == (2, True)
        for command in ("show", "trust"):
            assert call("device", command, "labtop").code == 2

    def test_a_key_that_is_not_known(self, call: Call, local: Path, tmp_path: Path) -> None:
        ended = call("device", "trust", local, "--key", "nobody")
        assert (ended.code, "no trusted key is called 'nobody'" in ended.err) == (2, True)
        assert not (tmp_path / "device").exists()

    def test_trusting_brings_a_key_there(self, call: Call, local: Path) -> None:
        own = signing_key()
        ended = call("device", "trust", local, "--json")
        assert json.loads(ended.out)["trusted_keys"] == {own.public: own.name}
        assert call("device", "trust", local, "--key", own.name).code == 0
        assert own.name in call("device", "show", local).out

    def test_a_malformed_file(self, call: Call, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "odd.toml").write_text('name = "odd"\ntransprot = "local"\n')
        ended = call("device", "show", tmp_path / "odd.toml")
        assert (ended.code, "did you mean transport?" in ended.err) == (2, True)

    @pytest.mark.skipif(sshd_path() is None, reason="no sshd on this machine: install openssh-server")
    def test_refuses_and_has_another_host_key(self, call: Call, bundle: Path, tmp_path: Path) -> None:
        with LoopbackSshd(tmp_path / "sshd") as sshd:
            write_key(tmp_path / "stranger")
            refused = dataclasses.replace(sshd.device, name="refuses", identity=str(tmp_path / "stranger"))
            ended = call(
                "validate", "--restarts=1", "--device", device_file(tmp_path, refused), "--bundle", bundle
            )
            assert ended.code == 3
            assert "the device refused the key" in ended.err
            assert "authorized_keys?" in ended.err
            pinned = "SHA256:" + "A" * 43
            changed = dataclasses.replace(sshd.device, name="changed", host_key=pinned)
            ended = call(
                "validate", "--restarts=1", "--device", device_file(tmp_path, changed), "--bundle", bundle
            )
            assert ended.code == 3
            assert f"expected host key {pinned}, got ssh-ed25519 {sshd.device.host_key}" in ended.err
            assert "nothing was sent" in ended.err
            assert not Path(sshd.device.root).exists()
            gone = dataclasses.replace(sshd.device, name="gone")
        ended = call("device", "show", device_file(tmp_path, gone))
        assert (ended.code, "cannot connect" in ended.err) == (3, True)

    @pytest.mark.parametrize(
        ("script", "message"),
        [
            ("echo Welcome to this device", "expected a JSON event from the agent, got b'Welcome"),
            ("head -c 20000000 /dev/zero", "expected lines of at most"),
            ("exit 7", "it ended with status 7"),
            ("""echo '{"event": "result", "facts": {"python": 3}}'""", "facts: DeviceFacts"),
            ("""echo '{"event": "result"}'""", "the agent's answer"),
            (
                """echo '{"event": "error", "kind": "protocol", "protocol": 9}'""",
                "speaks protocol 4, the agent there 9",
            ),
        ],
    )
    def test_an_agent_that_prints_rubbish(
        self, call: Call, bundle: Path, tmp_path: Path, script: str, message: str
    ) -> None:
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)
        device = Device(name="odd", transport="local", root=str(tmp_path / "device"), python=str(python))
        ended = call(
            "validate",
            "--restarts",
            "1",
            "--device",
            device_file(tmp_path, device),
            "--bundle",
            bundle,
            "--json",
        )
        assert ended.code == 3, ended.err
        said = json.loads(ended.out)
        assert (said["outcome"], said["exit_code"]) == ("ERROR", 3)
        if "answer" not in message and "facts" not in message:
            assert message in said["error"]["message"]
        assert "Traceback" not in ended.err
        assert not list((tmp_path / "cwd").rglob("record.json"))

    def test_no_python(self, call: Call, bundle: Path, tmp_path: Path) -> None:
        device = Device(name="bare", transport="local", root=str(tmp_path / "device"), python="/no/python")
        ended = call(
            "validate", "--restarts=1", "--device", device_file(tmp_path, device), "--bundle", bundle
        )
        assert (ended.code, "cannot run /no/python" in ended.err) == (3, True)

    def test_a_full_disk(self, call: Call, bundle: Path, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "6m") as small:
            device = Device(name="full", transport="local", root=str(small / "root"), python=sys.executable)
            ended = call(
                "validate", "--restarts=1", "--device", device_file(tmp_path, device), "--bundle", bundle
            )
            assert ended.code == 3
            assert "No space left on device; free some space there, or choose another `root`" in ended.err
            left = [path for path in listing(small) if (small / path).is_file()]
            assert [
                path for path in left if not path.startswith(("root/agent/", "root/layout", "root/keys/"))
            ] == []
        assert not list((tmp_path / "cwd").rglob("record.json"))

    def test_a_worker_killed_for_lack_of_memory(self, call: Call, bundle: Path, tmp_path: Path) -> None:
        group = Path("/sys/fs/cgroup/memory") / f"toggle-edge-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(str(28 << 20))
        except OSError as exc:
            pytest.skip(f"memory cannot be limited here: {exc}")
        python = tmp_path / "python"
        # The agent starts its workers with its own interpreter's name: this one, which then limits them alone.
        python.write_text(
            f"#!/bin/bash\n[[ $* == *' worker '* ]] && echo $$ > {group}/cgroup.procs\n"
            f'exec -a "$0" {os.path.realpath(sys.executable)} "$@"\n'
        )
        python.chmod(0o755)
        small = Device(name="small", transport="local", root=str(tmp_path / "device"), python=str(python))
        try:
            ended = call(
                "validate",
                "--restarts",
                "1",
                "--device",
                device_file(tmp_path, small),
                "--bundle",
                bundle,
                "--json",
            )
        finally:
            (group / "memory.limit_in_bytes").write_text("-1")
            deadline = time.monotonic() + 10
            while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            group.rmdir()
        assert ended.code == 3
        result = json.loads(ended.out)
        assert result["outcome"] == "ERROR"
        assert "killed by the kernel for lack of memory" in result["reason"]
        assert "choose a candidate with fewer bytes" in result["reason"]
        runs = tmp_path / "device" / "runs" / result["run"]
        assert sorted(path.name for path in runs.iterdir()) == ["journal.jsonl", "record.json"]


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip(f"mounting is denied here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class TestHost:
    def test_a_full_disk(self, call: Call, tmp_path: Path) -> None:
        with mounted(tmp_path / "small", "400k") as small:
            ended = call("export", DEMO / "model", "--config", "int8-g64", "-o", small / "bundle")
            assert ended.code == 3, ended.err
            assert "No space left on device" in ended.err or "the disk is full" in ended.err
            assert listing(small) == []

    def test_an_unexpected_error_asks_for_a_report(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError("so it is")

        monkeypatch.setattr(checking, "prepared_for", broken)
        ended = call("check", DEMO / "model", "--config", "int4-g32", "--json")
        assert ended.code == 3
        assert "unexpected ZeroDivisionError: so it is; this is a defect" in ended.err
        assert "Traceback" not in ended.err
        assert json.loads(ended.out)["error"]["type"] == "ZeroDivisionError"
        monkeypatch.setenv("TOGGLE_EDGE_DEBUG", "1")
        assert "Traceback" in call("check", DEMO / "model", "--config", "int4-g32").err

    def test_a_reader_that_goes_away_is_no_verdict(self) -> None:
        command = f"{sys.executable} -m toggle_edge device list --json | head -c 0; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode in (0, 3)
        assert "Traceback" not in done.stderr
