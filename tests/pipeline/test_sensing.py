"""Sensitivities: one layer at a time, a table, pictures that open."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel
from toggle_edge.pipeline.inputs import demo_folder
from toggle_edge.pipeline.sensing import SensitivityOptions, run_sensitivity
from toggle_edge.profiles import builtin_profiles
from toggle_edge.report.heatmap import OUTSIDE, grid_of
from toggle_edge.report.sensitivity import (
    Sensed,
    SensitivityResult,
    by_loss,
    print_sensitivity,
    sensitivity_json,
)


def silent(*_: object) -> None:
    pass


@pytest.fixture(scope="module")
def options(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> SensitivityOptions:
    folder = tmp_path_factory.mktemp("sensing")
    text = builtin_profiles()["default"].read_text(encoding="utf-8")
    text = re.sub(r"^(search|certificate) = \d+$", r"\1 = 3", text, flags=re.MULTILINE)
    (folder / "few.toml").write_text(text)
    return SensitivityOptions(
        tiny.folder,
        ("int8-g64", "int2-g64"),
        str(folder / "few.toml"),
        probes=(str(demo_folder() / "probes.jsonl"),),
        count=2,
        output=folder / "maps",
    )


@pytest.fixture(scope="module")
def result(options: SensitivityOptions) -> SensitivityResult:
    return run_sensitivity(options, silent)


def test_every_layer_is_lowered_alone_to_every_format(result: SensitivityResult, tiny: LanguageModel) -> None:
    assert result.formats == ("int2-g64", "int8-g64"), "fewest bits first"
    assert [(each.layer, each.format) for each in result.entries] == [
        (layer.name, fmt) for layer in tiny.layers for fmt in result.formats
    ]
    sizes = {layer.name: layer for layer in tiny.layers}
    for each in result.entries:
        layer = sizes[each.layer]
        bits = 2 if each.format.startswith("int2") else 8
        groups = -(-layer.columns // 64)
        stored = layer.rows * groups * (64 * bits // 8 + 4)
        assert each.bytes_saved == 2 * layer.weights - stored
        assert each.avgpp_lost is not None
        assert 0 < each.proxy_flops_share_saved < 1
    low, high = (
        sum(each.avgpp_lost or 0 for each in result.entries if each.format == fmt) for fmt in result.formats
    )
    assert low > 5 * high > 0


def test_the_pictures_are_there_and_the_page_needs_no_network(result: SensitivityResult) -> None:
    assert Path(result.picture).read_bytes().startswith(b"\x89PNG")
    page = Path(result.page).read_text(encoding="utf-8")
    assert "points of AvgPP" in page
    assert not re.search(r"<(script|link)[^>]+(src|href)=", page)
    assert not list(Path(result.page).parent.glob("*.partial"))


def test_what_is_printed_fits_and_what_json_says_is_whole(result: SensitivityResult) -> None:
    stream = io.StringIO()
    print_sensitivity(result, Console(file=stream, width=100))
    text = stream.getvalue()
    assert all(len(line) <= 100 for line in text.splitlines())
    first = by_loss(tuple(each for each in result.entries if each.format == "int2-g64"))[0]
    assert first.layer in text
    data = json.loads(json.dumps(sensitivity_json(result), allow_nan=False))
    assert len(data["layers"]) == len(result.entries)


def test_the_grid_has_roles_by_blocks_and_gaps_where_there_is_nothing() -> None:
    def sensed(layer: str, role: str, lost: float | None) -> Sensed:
        return Sensed(layer, role, "int4-g32", lost, 0.1, "coherence", 10, 0.1)

    entries = (
        sensed("model.embed_tokens", "embedding", 1.0),
        sensed("model.layers.0.self_attn.q_proj", "q", 0.5),
        sensed("model.layers.10.self_attn.q_proj", "q", None),
        sensed("model.layers.2.mlp.experts.down.0", "down", 0.25),
        sensed("model.layers.2.mlp.experts.down.1", "down", 0.75),
    )
    roles, blocks, grid = grid_of(entries, "int4-g32")
    assert (roles, blocks) == (["embedding", "q", "down"], [OUTSIDE, "0", "2", "10"])
    expected = [[1.0, np.nan, np.nan, np.nan], [np.nan, 0.5, np.nan, np.nan], [np.nan, np.nan, 0.75, np.nan]]
    np.testing.assert_array_equal(grid, expected)
    assert by_loss(entries)[0].avgpp_lost is None, "what could not be computed is as sensitive as can be"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 4}, "expected 1 to 3, the profile's search probes, got 4"),
        ({"formats": ("fp16",)}, "fewer bits than fp16"),
        ({"formats": ("int4",)}, "format: expected"),
        ({"mode": "strickt"}, "did you mean 'strict'"),
    ],
)
def test_bad_options_are_refused(
    options: SensitivityOptions, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_sensitivity(dataclasses.replace(options, **change), silent)
