"""Formats parse from and print as text; a config's digest names its content and nothing else."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toggle_edge.config import AXIS, FP16, FP32, Config, Format
from toggle_edge.errors import ConfigError
from toggle_edge.structure import Structure

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


LAYERS = ("a", "b", "c")
counts = st.dictionaries(st.integers(6, 9), st.integers(1, 40), max_size=3).map(
    lambda found: tuple(sorted(found.items()))
)
structures = st.builds(
    Structure, st.sets(st.integers(0, 5), max_size=3).map(lambda found: tuple(sorted(found))), counts, counts
)
sparsities = st.dictionaries(st.sampled_from(LAYERS), st.sampled_from((0.0, 0.1, 0.3, 0.5)))


@given(st.lists(formats, min_size=3, max_size=3), sparsities, structures)
def test_a_config_reads_what_it_writes(
    chosen: list[Format], zeros: dict[str, float], structure: Structure
) -> None:
    config = Config.of(dict(zip(LAYERS, chosen, strict=True)), zeros, structure)
    again = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert (again, again.digest) == (config, config.digest)
    assert [config.sparsity(layer) for layer in LAYERS] == [zeros.get(layer, 0.0) for layer in LAYERS]


@given(structures, sparsities)
def test_zeros_and_structure_are_part_of_the_digest(structure: Structure, zeros: dict[str, float]) -> None:
    plain = Config.uniform(LAYERS, FP16)
    other = Config.of(dict(plain), zeros, structure)
    assert (other.digest == plain.digest) == (not structure and not any(zeros.values()))


def test_a_config_without_zeros_and_structure_is_written_as_it_always_was() -> None:
    config = Config.of({"a": FP16}, {"a": 0.0})
    assert config.to_json() == {"a": "fp16"}
    assert config.digest == hashlib.sha256(b'{"a":"fp16"}').hexdigest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sparsities": {"b": 0.1}}, "layer 'b' has a sparsity and no format"),
        ({"sparsities": {"a": 1.0}}, "layer 'a': expected a sparsity of at least 0 and below 1, got 1.0"),
        ({"sparsities": {"a": -0.1}}, "got -0.1"),
        ({"sparsities": {"a": True}}, "expected a sparsity as a number, got True"),
        ({"sparsities": {"a": "half"}}, "got 'half'"),
        ({"sparsities": [0.1]}, "sparsities: expected {layer: share}"),
        ({"sparsity": {}}, "expected formats, sparsities and structure, got 'sparsity'"),
        ({"structure": []}, "structure: expected an object"),
        ({"structure": {"heads": {}}}, "expected removed_blocks, kv_groups and channels, got 'heads'"),
        ({"structure": {"removed_blocks": [1, 1]}}, "distinct blocks in ascending order"),
        ({"structure": {"removed_blocks": [2, 1]}}, "ascending"),
        ({"structure": {"removed_blocks": [True]}}, "a list of numbers"),
        ({"structure": {"removed_blocks": {"1": 1}}}, "a list of numbers"),
        ({"structure": {"kv_groups": {"1": 0}}}, "keep 1 or more in each block.*remove the block instead"),
        ({"structure": {"kv_groups": {"one": 1}}}, "kv_groups: expected {block: how many it keeps}"),
        ({"structure": {"channels": {"1": 2.5}}}, "channels: expected {block: how many it keeps}"),
        ({"structure": {"channels": {"1": 2}, "removed_blocks": [1]}}, "block 1 is removed, and cannot keep"),
    ],
)
def test_bad_zeros_and_structure_are_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.from_json({"formats": {"a": "fp16"}, **data})
