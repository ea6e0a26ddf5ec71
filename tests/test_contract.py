"""The contract on trained models and real stories: what must pass passes, what must fail names the place."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from toggle_runtime.records import ERROR, FAIL, PASS, SATISFIED, UNSET, VIOLATED

from toggle_edge.pipeline.checking import CheckOptions, run_check
from toggle_edge.profiles import builtin_profiles
from toggle_edge.report.check import CheckResult, check_json

SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "data" / "tinystories" / "stories.jsonl"
MARGINS = {
    "coherence": 0.25,
    "long_range_dependency": 0.30,
    "contextual_consistency": 0.30,
    "factual_accuracy": 0.30,
}


@pytest.fixture(scope="module", params=["stories260K", "stories-gpt2-1M"])
def model(request: pytest.FixtureRequest) -> Path:
    folder = SHARED / "models" / str(request.param)
    if not (folder.is_dir() and STORIES.is_file()):
        pytest.skip(f"{request.param} or the stories are not beside the checkout")
    return folder


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default profile with fewer probes."""
    text = builtin_profiles()["default"].read_text(encoding="utf-8")
    text = re.sub(r"^search = \d+$", "search = 4", text, flags=re.MULTILINE)
    path = tmp_path_factory.mktemp("profile") / "few.toml"
    path.write_text(re.sub(r"^certificate = \d+$", "certificate = 24", text, flags=re.MULTILINE))
    return path


def check(model: Path, config: str, profile: Path) -> CheckResult:
    options = CheckOptions(model, config, str(profile), probes=(f"stories:{STORIES}",))
    return run_check(options, lambda *_: None)


def test_the_baseline_itself_keeps_the_whole_margin(model: Path, profile: Path) -> None:
    result = check(model, "fp32", profile)
    assert result.outcome == PASS
    assert result.avgpp == pytest.approx(100.0, abs=1e-6)
    for verdict in result.verdict.verdicts:
        assert verdict.verdict == SATISFIED
        assert verdict.robustness == pytest.approx(MARGINS[verdict.property], abs=1e-6)
        assert verdict.worst == pytest.approx(MARGINS[verdict.property], abs=1e-6)


def test_eight_bits_pass(model: Path, profile: Path) -> None:
    result = check(model, "int8-axis", profile)
    assert result.outcome == PASS
    assert 99.0 < (result.avgpp or 0.0) < 100.0
    for verdict in result.verdict.verdicts:
        assert verdict.robustness is not None
        assert 0 < verdict.robustness < MARGINS[verdict.property]


def test_three_bits_fail_at_a_named_place(model: Path, profile: Path) -> None:
    result = check(model, "int3-axis", profile)
    assert result.outcome == FAIL
    assert {verdict.verdict for verdict in result.verdict.verdicts} == {VIOLATED}
    for verdict in result.verdict.verdicts:
        assert verdict.argmin is not None
        assert 0 <= verdict.argmin.probe < 24
        by_layer = verdict.property in ("long_range_dependency", "contextual_consistency")
        assert (verdict.argmin.layer is not None) == by_layer
        series = result.series[verdict.property]
        assert series is not None
        assert re.search(r"\[.+\]", series.text)


@pytest.mark.parametrize("config", ["fp32", "int8-axis"])
def test_one_weight_that_is_no_number_leaves_everything_unset(
    model: Path, profile: Path, tmp_path: Path, config: str
) -> None:
    broken = Path(shutil.copytree(model, tmp_path / model.name))
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in sorted(weights) if weights[name].ndim == 2 and ".1." in name)
    weights[name][1, 2] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    result = check(broken, config, profile)
    assert result.outcome == ERROR, "which the command line turns into exit code 3"
    assert result.verdict.verdict == UNSET
    assert "not finite" in str(result.reason)
    assert name in str(result.reason)
    assert json.loads(json.dumps(check_json(result), allow_nan=False))["robustness"] is None
