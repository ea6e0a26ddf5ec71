"""The wheel works outside the checkout: its data are inside, its commands run, it makes the agent it ships."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "botorch", "transformers", "onnxruntime", "paramiko", "sqlalchemy")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, which sees this one's libraries but not the checkout."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    # A folder named on a line is searched, but .pth files in it (the editable checkout's) are not read.
    (packages / "libraries.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin" / "python"


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_wheel_holds_both_packages_and_their_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top.split("-")[0] for top in tops} == {"toggle_edge", "toggle_runtime"}
    for name in ("profiles/default.toml", "profiles/paper.toml", "devices/laptop.toml", "demo/probes.jsonl"):
        assert f"toggle_edge/_data/{name}" in names
    assert "toggle_edge/_data/demo/model/model.safetensors" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_it_is_what_is_imported(python: Path, tmp_path: Path) -> None:
    code = "import toggle_edge, toggle_runtime; print(toggle_edge.__file__, toggle_runtime.__file__)"
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(ROOT) not in done.stdout
    assert done.stdout.count("site-packages") == 2


def test_profiles_devices_and_the_agent_are_found(python: Path, tmp_path: Path) -> None:
    code = (
        "import json\n"
        "from toggle_edge.profiles import load_profile, builtin_profiles\n"
        "from toggle_edge.specification import specification_of\n"
        "from toggle_edge.fleet.agent_client import agent_archive\n"
        "from toggle_edge.fleet.device import device_names\n"
        "from toggle_edge.pipeline.inputs import demo_folder\n"
        "profiles = [sorted(specification_of(load_profile(name))) for name in builtin_profiles()]\n"
        "print(json.dumps([list(builtin_profiles()), device_names(), len(agent_archive()), str(demo_folder())]))\n"
    )
    done = run(python, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    profiles, devices, size, demo = json.loads(done.stdout)
    assert profiles == ["assistant", "default", "field-notes", "paper", "regulated"]
    assert devices == ["laptop"]
    assert 20_000 < size < 200_000
    assert (Path(demo) / "model" / "model.safetensors").is_file()
    assert str(ROOT) not in demo


def test_commands_run_from_elsewhere(python: Path, tmp_path: Path) -> None:
    done = run(python, "-m", "toggle_edge", "device", "list", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["devices"][0]["name"] == "laptop"
    model = run(
        python,
        "-c",
        "from toggle_edge.pipeline.inputs import demo_folder; print(demo_folder() / 'model')",
        cwd=tmp_path,
    ).stdout.strip()
    done = run(python, "-m", "toggle_edge", "check", model, "--config", "int8-g64", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "SATISFIED"
    assert list(tmp_path.iterdir()) == [], "check writes nothing"


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["device", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        f"sys.argv = ['toggle-edge', *{arguments!r}]\n"
        "from toggle_edge.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as ended:\n"
        f"    loaded = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    sys.exit(f'{ended.code}, with {loaded}' if ended.code or loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
