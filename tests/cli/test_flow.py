"""From a model to a measured bundle, the way an engineer types it: search, export, validate, in one folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from toggle_edge.config import FP32, Config
from toggle_edge.model.load import load_model
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.structure import Structure

MODEL = demo_folder() / "model"
PROFILE = (Path(__file__).parents[2] / "profiles" / "default.toml").read_text()
TRIALS = 14

pytestmark = pytest.mark.timeout(600)


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "toggle_edge", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a contract on few probes, so that a search takes seconds, and this machine as a device."""
    folder = tmp_path_factory.mktemp("flow")
    few = PROFILE.replace("search = 59", "search = 4").replace("certificate = 59", "certificate = 4")
    (folder / "few.toml").write_text(few.replace("coverage = 1.0", "coverage = 0.75"))
    (folder / "here.toml").write_text(
        f'name = "here"\ntransport = "local"\nroot = "{folder}/device"\npython = "{sys.executable}"\n'
    )
    return folder


@pytest.fixture(scope="module")
def search(folder: Path) -> dict[str, Any]:
    done = run(folder, "search", MODEL, "--profile", "few.toml", "--trials", TRIALS, "--json")
    assert done.returncode in (0, 1), done.stderr
    return dict(json.loads(done.stdout))


def test_a_search_names_what_each_mode_selects(folder: Path, search: dict[str, Any]) -> None:
    assert search["study"] == "model-few-0"
    assert [trial["index"] for trial in search["trials"]] == list(range(TRIALS))
    assert set(search["selected"]) == {"strict", "optimal", "relaxed"}
    assert search["uniform"]["cheapest_feasible"]["proxy_flops_ratio"] >= 1
    chosen = search["selected"]["relaxed"]
    assert chosen["config_digest"] == search["trials"][chosen["trial"]]["config_digest"]
    assert chosen["coverage"]["probes"] == 4
    assert 0 < chosen["selection"]["probes"] <= 8
    assert chosen["uniform"]["of_equal_size"]["index"] in range(TRIALS)
    assert {verdict["property"] for verdict in chosen["verdicts"]} >= {"coherence", "factual_accuracy"}


def test_the_same_command_goes_on_and_a_longer_one_adds_to_it(folder: Path, search: dict[str, Any]) -> None:
    again = run(folder, "search", MODEL, "--profile", "few.toml", "--trials", TRIALS + 1, "--resume")
    assert again.returncode in (0, 1), again.stderr
    assert f"{TRIALS + 1} trials" in again.stdout
    assert "what each mode selects; the percentage is the chance to hold on fresh probes" in again.stdout
    assert f"search       {TRIALS + 1}/{TRIALS + 1}" in again.stderr
    assert "sensitivity" not in again.stderr, "it is recorded, not computed again"
    assert all(len(line) <= 100 for line in again.stdout.splitlines())


def test_a_study_under_an_edited_profile_is_refused(folder: Path, search: dict[str, Any]) -> None:
    edited = (folder / "few.toml").read_text().replace("threshold = 0.25", "threshold = 0.3")
    (folder / "edited").mkdir()
    (folder / "edited" / "few.toml").write_text(edited)
    done = run(folder, "search", MODEL, "--profile", folder / "edited" / "few.toml", "--trials", TRIALS)
    assert done.returncode == 2
    assert "the profile's content was" in done.stderr


def test_a_selected_config_is_checked_by_its_file(folder: Path, search: dict[str, Any]) -> None:
    chosen = search["selected"]["relaxed"]
    options = ["--profile", "few.toml", "--mode", "relaxed", "--json", "--mine"]
    done = run(folder, "check", MODEL, "--config", chosen["config_file"], *options)
    checked = json.loads(done.stdout)
    assert checked["config_digest"] == chosen["config_digest"]
    assert checked["verdict"] == chosen["verdict"]
    assert checked["avgpp"] == pytest.approx(chosen["avgpp"])
    assert set(checked["mine"]) == {verdict["property"] for verdict in checked["verdicts"]}


def test_a_study_is_exported_by_mode_and_by_trial_to_the_same_bundle(
    folder: Path, search: dict[str, Any]
) -> None:
    trial = search["selected"]["strict"]["trial"]
    unpack = ["--unpacked", "unpacked", "--json"]
    by_mode = run(folder, "export", search["study"], "--mode", "strict", "-o", "by-mode", *unpack)
    by_trial = run(folder, "export", search["study"], "--trial", trial, "-o", "by-trial")
    assert by_mode.returncode == 0, by_mode.stderr
    assert by_trial.returncode == 0, by_trial.stderr
    result = json.loads(by_mode.stdout)
    assert result["config_digest"] == search["trials"][result["trial"]]["config_digest"]
    assert result["parity"]["max_abs_logit_difference"] <= 1e-4
    if result["trial"] == trial:
        assert (folder / "by-mode" / "manifest.json").read_bytes() == (
            folder / "by-trial" / "manifest.json"
        ).read_bytes()
    assert "signed by" in by_trial.stdout
    assert "all layers" in by_trial.stdout
    assert result["predicted_bytes"] == result["artifact_bytes"]
    stored = sum(layer["stored_bytes"] for layer in result["layers"])
    assert stored + result["beside_layers_bytes"] == result["artifact_bytes"]
    assert {"model.onnx", "genai_config.json", "tokenizer.json"} <= {
        path.name for path in (folder / result["unpacked"]).iterdir()
    }
    again = run(folder, "export", search["study"], "--mode", "strict", "-o", "again", *unpack)
    assert (again.returncode, (folder / "again").exists()) == (2, False)
    missing = run(folder, "export", search["study"], "--trial", 99, "-o", "none")
    assert (missing.returncode, "expected a trial from 0 to" in missing.stderr) == (2, True)


def test_the_bundle_is_measured_and_certified(folder: Path, search: dict[str, Any]) -> None:
    if not (folder / "by-mode").exists():
        run(folder, "export", search["study"], "--mode", "strict", "-o", "by-mode")
    done = run(folder, "validate", "--restarts=1", "--device", "here.toml", "--bundle", "by-mode", "--json")
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert result["certified"] is True
    assert result["parity"]["compared"] == 2 * 64 * 512
    assert Path(folder, result["record_file"]).is_file()
    assert result["measured"]["decode_ms_p50"]["value"] > 0
    kept = Path(folder, result["record_file"]).parent
    again = run(folder, "certify", kept, "--json", "--jobs", 2)
    assert again.returncode == done.returncode, again.stderr
    certified = json.loads(again.stdout)
    assert certified["certified"] is True
    for key in ("outcome", "mode", "run", "bundle", "verdict", "verdicts", "coverage", "avgpp"):
        assert certified[key] == ({"digest": result[key]["digest"]} if key == "bundle" else result[key]), key
    assert certified["differences"].keys() == {verdict["property"] for verdict in certified["verdicts"]}
    assert max(certified["differences"].values()) <= 1e-9
    shown = run(folder, "certify", kept, "--mode", "relaxed", "--candidates", 5)
    assert "RTAMT agrees in every number" in shown.stdout
    assert "5 candidates" in shown.stdout
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())


def test_the_agent_alone_measures_it_and_the_run_is_taken_home_once(
    folder: Path, search: dict[str, Any]
) -> None:
    if not (folder / "by-mode").exists():
        run(folder, "export", search["study"], "--mode", "strict", "-o", "by-mode")
    written = run(folder, "device", "agent", "--key", "host.pub", "--json")
    assert json.loads(written.stdout)["agent"] == "toggle-agent.pyz"
    alone = subprocess.run(
        [
            sys.executable,
            "toggle-agent.pyz",
            "validate",
            "by-mode",
            "--root",
            "alone",
            "--key",
            "host.pub",
            "-o",
            "run.zip",
        ],
        cwd=folder,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert alone.returncode in (0, 1), alone.stderr
    assert ", installed in " in alone.stdout, "this interpreter has an engine"
    home = ["--bundle", "by-mode", "--device", "pump-7", "--jobs", 2, "--json"]
    taken = run(folder, "import", "run.zip", *home)
    assert taken.returncode == alone.returncode, taken.stderr
    result = json.loads(taken.stdout)
    assert (result["certified"], result["device"]) == (True, "pump-7")
    assert result["measured"]["decode_ms_p50"]["value"] > 0
    again = run(folder, "import", next((folder / "alone" / "runs").iterdir()), *home)
    assert (again.returncode, "is here already, with the same content" in again.stderr) == (2, True)


def test_a_structure_is_checked_exported_and_measured_alike(folder: Path) -> None:
    model = load_model(MODEL)
    structure = Structure((2,), ((1, 2),), ((0, 500), (4, 400)))
    config = Config.of({layer.name: FP32 for layer in model.remaining(structure)}, structure=structure)
    (folder / "fewer.json").write_text(json.dumps(config.to_json()))
    options = ["--config", "fewer.json", "--profile", "few.toml"]
    check = run(folder, "check", MODEL, *options, "--json")
    assert check.returncode in (0, 1), check.stderr
    checked = json.loads(check.stdout)
    assert checked["proxy_flops_ratio"] > 0.5 * 1.2  # twice the bits of fp16, a fifth fewer weights
    exported = run(folder, "export", MODEL, *options, "-o", "fewer", "--json")
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["parity"]["max_abs_logit_difference"] <= 1e-4
    done = run(folder, "validate", "--restarts=1", "--device", "here.toml", "--bundle", "fewer", "--json")
    assert done.returncode in (0, 1), done.stderr
    result = json.loads(done.stdout)
    assert result["certified"] is True
    assert result["measured"]["decode_ms_p50"]["value"] > 0
    record = json.loads(Path(folder, result["record_file"]).read_text())
    (mode,) = (each for each in record["modes"] if each["mode"] == checked["mode"])
    host = {each["property"]: each for each in checked["verdicts"]}
    # fp32 is exact on the device too: what it says contains what the host says.
    for verdict in mode["verdicts"]:
        found = host[verdict["property"]]["robustness"]
        assert verdict["robustness"] - 1e-5 <= found <= verdict["robustness_upper"] + 1e-5
    # Layers of a block that is gone, and a block that was never there.
    wrong = config.to_json()
    assert isinstance(wrong["formats"], dict)
    wrong["formats"]["model.layers.2.mlp.up_proj"] = "fp16"
    (folder / "wrong.json").write_text(json.dumps(wrong))
    refused = run(folder, "check", MODEL, "--config", "wrong.json", "--profile", "few.toml")
    assert refused.returncode == 2
    assert "for each of the 36 layers that its structure leaves" in refused.stderr


def test_what_passes_is_deployed_talked_to_and_taken_back(folder: Path, search: dict[str, Any]) -> None:
    exported = run(
        folder, "export", MODEL, "--config", "int8-g64", "--profile", "few.toml", "-o", "eight", "--json"
    )
    eight = json.loads(exported.stdout)["bundle"]["digest"]
    first = run(folder, "deploy", "--restarts=1", "--device", "here.toml", "--bundle", "eight", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["deployed"]["active"]["bundle"] == eight

    talked = run(
        folder,
        "run",
        "Once upon a time",
        "--device",
        "here.toml",
        "--tokens",
        12,
        "--beside-baseline",
        "--json",
    )
    assert talked.returncode == 0, talked.stderr
    said = json.loads(talked.stdout)
    assert said["bundle"]["digest"] == eight
    assert len(said["tokens"]) == said["baseline"]["tokens"] == 12
    assert said["baseline"]["agreeing"] >= 8, "at 8 bits the model says nearly the same"
    assert said["text"][:8] == said["baseline"]["text"][:8]
    shown = run(folder, "run", "Once upon a time", "--device", "here.toml", "--tokens", 12)
    assert shown.stdout.startswith(said["text"])

    selected = ["--study", search["study"], "--mode", "strict"]
    second = run(folder, "deploy", "--restarts=1", "--device", "here.toml", *selected, "--json")
    result = json.loads(second.stdout)
    kept = folder / "toggle-edge-bundles" / result["bundle"]["digest"][:16]
    assert (kept / "manifest.json").is_file()
    if second.returncode == 1:  # a verdict: then nothing is switched
        assert result["deployed"] is None
        none = run(folder, "rollback", "--device", "here.toml")
        assert (none.returncode, "nothing was deployed there before" in none.stderr) == (3, True)
        return
    assert second.returncode == 0, second.stderr
    assert result["deployed"]["active"]["bundle"] == result["bundle"]["digest"]
    back = run(folder, "rollback", "--device", "here.toml", "--json")
    assert json.loads(back.stdout)["deployed"]["active"]["bundle"] == eight


def test_a_budget_that_cannot_be_kept_is_a_fail(folder: Path, search: dict[str, Any]) -> None:
    if not (folder / "by-mode").exists():
        run(folder, "export", search["study"], "--mode", "strict", "-o", "by-mode")
    tight = (folder / "here.toml").read_text() + "[budget]\nmemory_bytes = 1000\nenergy_mj_per_token = 1.0\n"
    (folder / "tight.toml").write_text(tight.replace('"here"', '"tight"'))
    done = run(
        folder,
        "deploy",
        "--restarts",
        "1",
        "--device",
        "tight.toml",
        "--bundle",
        "by-mode",
        "--mode",
        "relaxed",
    )
    assert (done.returncode, "nothing was switched" in done.stdout) == (1, True), done.stderr
    done = run(
        folder,
        "validate",
        "--restarts",
        "1",
        "--device",
        "tight.toml",
        "--bundle",
        "by-mode",
        "--mode",
        "relaxed",
    )
    assert done.returncode == 1, done.stderr
    assert "over the device's budget: memory_bytes is" in " ".join(done.stdout.split())
    assert "OVER" in done.stdout


def test_in_the_papers_world_its_table_is_printed_and_a_row_can_be_replayed(folder: Path) -> None:
    arguments = (
        "search",
        MODEL,
        "--profile",
        "few.toml",
        "--target",
        "paper",
        "--study",
        "paper",
        "--quantiser",
        "lsq",
    )
    done = run(folder, *arguments, "--trials", 24, "--json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert found["target"] == "paper"
    chosen = found["selected"]["relaxed"]
    assert chosen["paper"]["bits"] <= 16
    shown = run(folder, *arguments, "--trials", 24)
    assert "as TOGGLE's table has it" in shown.stdout
    assert f"{chosen['paper']['flops_ratio']:.2f}×" in shown.stdout
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())
    replayed = run(
        folder, "check", MODEL, "--profile", "few.toml", "--mode", "relaxed", "--quantiser", "lsq", "--json",
        "--config", chosen["config_file"],
    )  # fmt: skip
    again = json.loads(replayed.stdout)
    assert again["paper"] == chosen["paper"]
    assert again["avgpp"] == pytest.approx(chosen["avgpp"], abs=1e-6)
    refused = run(folder, "export", "paper", "--mode", "relaxed", "-o", "paper-bundle")
    assert refused.returncode == 2
    assert "'onnx-cuda'], got 'paper'" in refused.stderr
