"""One config against the contract: what is drawn is what was judged, and what cannot be judged passes nothing."""

from __future__ import annotations

import io
import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from toggle_runtime.stl import parse
from transformers import LlamaForCausalLM

from toggle_edge.pipeline.checking import CheckOptions, ranged_over, run_check
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.report.check import CheckResult, check_json, print_check
from toggle_edge.report.progress import silent
from toggle_edge.tightening import as_profile

DEFAULT = (Path(__file__).parents[2] / "profiles" / "default.toml").read_text()
FEW = DEFAULT.replace("search = 59", "search = 2").replace("certificate = 59", "certificate = 8")
RECOVERY = """
[properties.recovery]
formula = "always ((jsd > 0.3) implies eventually[0,4] (jsd <= 0.1))"
"""


def checked(folder: Path, model: Path, config: str, *, profile: str = FEW, **options: object) -> CheckResult:
    (folder / "few.toml").write_text(profile)
    probes = (str(demo_folder() / "probes.jsonl"),)
    return run_check(CheckOptions(model, config, str(folder / "few.toml"), probes=probes, **options), silent)


def printed(result: CheckResult, width: int = 100) -> str:
    stream = io.StringIO()
    print_check(result, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> CheckResult:
    """The demo model in a format that it does not bear, with a property that looks ahead."""
    folder = tmp_path_factory.mktemp("poor")
    return checked(folder, demo_folder() / "model", "int3-axis", profile=FEW + RECOVERY, mine=True)


def test_the_lowest_bar_is_the_robustness_and_lies_where_the_verdict_says(poor: CheckResult) -> None:
    assert poor.outcome == "FAIL"
    assert set(poor.series) == {verdict.property for verdict in poor.verdict.verdicts}
    for verdict in poor.verdict.verdicts:
        series = poor.series[verdict.property]
        assert series is not None
        assert np.nanmin(series.robustness) == pytest.approx(verdict.robustness, abs=1e-12)
        assert series.argmin == verdict.argmin
        if verdict.property != "recovery":
            assert series.robustness[verdict.argmin.step] == verdict.robustness
    assert np.isnan(poor.series["recovery"].robustness[-4:]).all(), "there it looks beyond the end"
    assert np.isfinite(poor.series["recovery"].robustness[:-4]).all()


def test_the_words_around_the_step_have_its_token_in_brackets(poor: CheckResult) -> None:
    texts = [json.loads(line)["text"] for line in (demo_folder() / "probes.jsonl").read_text().splitlines()]
    for series in poor.series.values():
        assert series is not None
        before, _, rest = series.text.partition("[")
        marked, _, after = rest.partition("]")
        assert marked
        assert any(before + marked + after in text.replace("\n", " ") for text in texts)


def test_json_has_what_is_drawn(poor: CheckResult) -> None:
    data = json.loads(json.dumps(check_json(poor), allow_nan=False))
    for verdict in data["verdicts"]:
        series = data["series"][verdict["property"]]
        assert series["probe"] == verdict["argmin"]["probe"]
        assert series["steps"] == list(range(32))
        assert min(value for value in series["robustness"] if value is not None) == pytest.approx(
            verdict["robustness"]
        )
    assert data["series"]["recovery"]["robustness"][-4:] == [None] * 4
    assert data["series"]["coherence"]["formula"] == "jsd <= 0.25"
    assert data["coverage"]["lower_bound"] is not None


@pytest.mark.parametrize("width", [80, 100, 120])
def test_all_of_it_fits_the_console(poor: CheckResult, width: int) -> None:
    text = printed(poor, width)
    # What is to be pasted is not wrapped.
    contract = text.split("mine  ")[0]
    assert max(map(len, contract.splitlines())) <= width
    assert "▀" in contract
    assert "block" in contract


def test_mined_thresholds_are_a_piece_of_a_profile_with_which_the_config_passes(
    poor: CheckResult, tmp_path: Path
) -> None:
    assert poor.mine is not None
    mined = {name: each for name, each in poor.mine.items() if each.threshold is not None}
    assert set(mined) == set(poor.mine) - {"recovery"}
    rest = FEW[FEW.index("# avgpp:") :].replace("avgpp = 95.0", "avgpp = 0.0")
    pasted = 'default_mode = "optimal"\n' + as_profile(mined) + rest
    assert set(tomllib.loads(pasted)["properties"]) == set(mined)
    again = checked(tmp_path, demo_folder() / "model", "int3-axis", profile=pasted)
    assert again.outcome == "PASS"
    assert all(0 <= verdict.robustness < 1.001e-4 for verdict in again.verdict.verdicts)


def damaged(model: Path, folder: Path, weight: str) -> Path:
    """The tiny model with one weight of its last block that is NaN."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    weights[f"model.layers.1.{weight}.weight"].view(-1)[3] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("config", ["fp32", "int4-g32", "int8-axis"])
@pytest.mark.parametrize("weight", ["input_layernorm", "self_attn.q_proj"])
def test_a_weight_that_is_no_number_leaves_everything_unset(
    tiny_folder: Path, tmp_path: Path, config: str, weight: str
) -> None:
    result = checked(tmp_path, damaged(tiny_folder, tmp_path / "damaged", weight), config, mine=True)
    assert result.outcome == "ERROR", "exit code 3"
    assert "coherence: probe 0: jsd is not finite at step 0 (and 7 more probes)" in (result.reason or "")
    assert {verdict.verdict for verdict in result.verdict.verdicts} == {"UNSET"}
    data = json.loads(json.dumps(check_json(result), allow_nan=False))
    assert data["series"] == dict.fromkeys(data["series"])
    assert set(data["series"]) == {verdict["property"] for verdict in data["verdicts"]}
    assert data["coverage"]["lower_bound"] is data["robustness"] is data["avgpp"] is data["mine"] is None
    text = printed(result)
    assert "UNSET" in text
    assert "attention is not finite at step 0" in " ".join(text.split())
    assert "AvgPP       could not be computed" in text
    assert "mine        no thresholds" in text
    for absent in ("robustness over time", "┼", "PASS", "SATISFIED", "confidence"):
        assert absent not in text
    assert max(map(len, text.splitlines())) <= 100


def test_what_a_damaged_weight_does_not_reach_keeps_its_verdict_and_the_mode_does_not(
    tiny_folder: Path, tmp_path: Path
) -> None:
    # Attention of the last block is computed before its MLP.
    result = checked(tmp_path, damaged(tiny_folder, tmp_path / "damaged", "mlp.up_proj"), "int8-axis")
    assert result.outcome == "ERROR"
    words = {verdict.property: verdict.verdict for verdict in result.verdict.verdicts}
    assert words.pop("long_range_dependency") != "UNSET"
    assert set(words.values()) == {"UNSET"}
    assert [name for name, each in result.series.items() if each is not None] == ["long_range_dependency"]
    assert printed(result).count("┼") == 1


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("always (jsd <= 0.25)", "jsd <= 0.25"),
        ("not eventually (jsd > 0.25)", "not (jsd > 0.25)"),
        ("eventually (jsd <= 0.25)", "jsd <= 0.25"),
        ("not always (jsd <= 0.25)", "not (jsd <= 0.25)"),
        ("always eventually[0,2] (jsd <= 0.25)", "eventually[0,2] (jsd <= 0.25)"),
        ("always[0,3] (jsd <= 0.25)", "always[0,3] (jsd <= 0.25)"),
        ("(jsd <= 0.25) until[0,3] (context >= 0.7)", "(jsd <= 0.25) until[0,3] (context >= 0.7)"),
    ],
)
def test_what_an_unbounded_operator_ranges_over_is_drawn(text: str, drawn: str) -> None:
    assert str(ranged_over(parse(text))) == drawn


def test_a_second_check_reads_no_baseline_and_a_streamed_one_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOGGLE_EDGE_CACHE", str(tmp_path / "cache"))
    forward, passes, said = LlamaForCausalLM.forward, [], []

    def counted(module: LlamaForCausalLM, *args: object, **given: object) -> object:
        passes.append(1)
        return forward(module, *args, **given)

    monkeypatch.setattr(LlamaForCausalLM, "forward", counted)

    def report(stage: str, done: int, of: int, note: str = "") -> None:
        if stage == "model":
            said.append(note)

    (tmp_path / "few.toml").write_text(FEW)
    probes = (str(demo_folder() / "probes.jsonl"),)
    options = CheckOptions(demo_folder() / "model", "int4-g32", str(tmp_path / "few.toml"), probes=probes)
    first = run_check(options, report)
    of_both = len(passes)
    second = run_check(options, report)
    of_candidate = len(passes) - of_both
    assert 0 < of_candidate < of_both
    monkeypatch.setenv("TOGGLE_EDGE_STREAM", "always")
    third = run_check(options, report)
    assert len(passes) == of_both + 2 * of_candidate
    assert first.verdict == second.verdict == third.verdict
    assert "in memory" in said[0]
    assert said[2].startswith("weights read from disk layer by layer, as told")
