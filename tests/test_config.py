"""Formats parse from and print as text; a config's digest names its content and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toggle_edge.config import AXIS, FP16, FP32, Config, Format
from toggle_edge.errors import ConfigError

formats = st.sampled_from(
    [
        FP16,
        FP32,
        *(
            Format(bits, group, asymmetric)
            for bits in range(2, 17)
            for group in (16, 32, 64, 128, 256, AXIS)
            for asymmetric in (False, True)
        ),
    ]
)


@given(formats)
def test_a_format_parses_what_it_prints(fmt: Format) -> None:
    assert Format.parse(str(fmt)) == fmt


@pytest.mark.parametrize(
    "text",
    [
        "",
        "int4",
        "int4-asym",
        "int4-g32-asym-asym",
        "int4-g32-sym",
        "int4-g7",
        "int4-g32 ",
        "fp64",
        "INT4-g32",
        "int44-g32",
        "int1-axis",
        "int17-axis",
        "int04-axis",
        "int4-g-1",
        "fp16-axis",
        "fp16-asym",
    ],
)
def test_what_is_no_format_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected fp32, fp16, or int2 to int16"):
        Format.parse(text)


def test_storage_counts_scales_and_padding() -> None:
    assert FP16.storage_bytes(3, 5) == 30
    # 2 groups of 32 codes of 4 bits and a float32 scale each: 2 * (16 + 4) bytes a row, though only 40 columns.
    assert Format(4, 32).storage_bytes(3, 40) == 3 * 2 * 20
    assert FP32.storage_bytes(3, 5) == 60
    # One float32 scale a row, and codes that fill whole bytes: 40 of 3 bits are 15.
    assert Format(3, AXIS).storage_bytes(2, 40) == 2 * (15 + 4)
    # Three zero-points of 3 bits a row fill two bytes, beside three groups of 16 codes (6 bytes) and their scales.
    assert Format(3, 16, asymmetric=True).storage_bytes(5, 48) == 5 * (3 * (6 + 4) + 2)
    assert Format(16, AXIS, asymmetric=True).storage_bytes(1, 10) == 20 + 4 + 2


@given(st.dictionaries(st.sampled_from("abcdef"), formats, min_size=1))
def test_the_digest_ignores_the_order_of_layers(chosen: dict[str, Format]) -> None:
    assert Config.of(chosen).digest == Config.of(dict(reversed(chosen.items()))).digest
    assert Config.from_json(Config.of(chosen).to_json()) == Config.of(chosen)


def test_the_digest_changes_with_any_layer() -> None:
    config = Config.uniform(("a", "b"), FP16)
    assert config.digest != Config.of({"a": FP16, "b": Format(8, 32)}).digest


@pytest.mark.parametrize("data", [None, [], {}, {"a": 4}, {"a": "int5-g31"}])
def test_a_malformed_config_is_refused(data: object) -> None:
    with pytest.raises(ConfigError):
        Config.from_json(data)


def test_the_summary_counts_layers_by_format() -> None:
    config = Config.of({"a": Format(4, 32), "b": FP16, "c": Format(4, 32)})
    assert config.summary() == "int4-g32 ×2, fp16 ×1"
