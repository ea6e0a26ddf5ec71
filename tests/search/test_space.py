"""Dimensions and the space of configs: what fits, what is refused, and the way there and back."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import ConfigError, SearchError
from toggle_edge.search.dimensions import (
    CHANNELS,
    FORMAT,
    KEPT,
    Dimension,
    block_dimensions,
    unit_dimensions,
    within,
)
from toggle_edge.search.space import Space, storage_bits
from toggle_edge.structure import Structure

MENU = tuple(Format.parse(text) for text in ("int2-g64", "int4-g32", "int8-g64", "fp16"))
UNITS = {f"block{b}.{part}": (f"{b}.{part}.x", f"{b}.{part}.y") for b in range(2) for part in ("qkv", "mlp")}
LAYERS = tuple(layer for layers in UNITS.values() for layer in layers)
BLOCKS = {b: tuple(layer for layer in LAYERS if layer.startswith(f"{b}.")) for b in range(2)}


def cost(config: Config) -> float:
    return sum(fmt.bits * (1 - config.sparsity(layer)) for layer, fmt in config)


FORMATS = Space.of_units(UNITS, MENU, cost)
RICH = Space(
    LAYERS,
    (
        *unit_dimensions(UNITS, MENU, sparsities=(0.0, 0.25, 0.5)),
        *block_dimensions(
            BLOCKS, removable=[1], kv_groups={0: [1, 2]}, channels={0: [8, 12, 16], 1: [8, 16]}
        ),
    ),
    cost,
)
ANY = st.tuples(*(st.integers(0, size - 1) for size in RICH.sizes))


@pytest.mark.parametrize("fmt", [*MENU, Format(4, 64, True), Format(16, 16), Format(5, 16, True)])
def test_storage_bits_agree_with_the_stored_bytes(fmt: Format) -> None:
    assert storage_bits(fmt) == 8 * fmt.storage_bytes(16, 256) / (16 * 256)


@settings(deadline=None, max_examples=100)
@given(ANY)
def test_levels_lead_to_a_config_and_back(levels: tuple[int, ...]) -> None:
    config = RICH.decode(levels)
    again = RICH.levels(config)
    assert RICH.decode(again).digest == config.digest
    assert RICH.levels(RICH.decode(again)) == again
    assert RICH.canonical(levels) == again
    if not config.structure.removed_blocks:
        assert again == levels
    (vector,) = RICH.encode([levels])
    assert ((vector >= 0) & (vector <= 1)).all()


def test_layers_of_a_unit_move_together() -> None:
    config = FORMATS.decode([0, 1, 2, 3])
    assert [str(config[layer]) for layer in LAYERS] == [
        text for text in ("int2-g64", "int4-g32", "int8-g64", "fp16") for _ in range(2)
    ]
    assert config.layers == LAYERS


def test_a_removed_block_has_no_layers_and_what_is_chosen_for_it_has_no_effect() -> None:
    removed = [n for n, each in enumerate(RICH.dimensions) if each.kind == KEPT]
    levels = list(RICH.safest)
    levels[removed[0]] = 0
    config = RICH.decode(levels)
    assert config.structure == Structure(removed_blocks=(1,))
    assert config.layers == BLOCKS[0]
    other = next(n for n, each in enumerate(RICH.dimensions) if each.block == 1 and each.kind == CHANNELS)
    levels[other] = 0
    assert RICH.decode(levels) == config
    assert RICH.levels(config)[other] == RICH.safest[other]


def test_a_unit_may_lie_in_several_blocks() -> None:
    units = {"both": ("0.x", "1.x"), "second": ("1.y",)}
    blocks = {0: ("0.x",), 1: ("1.x", "1.y")}
    dimensions = (*unit_dimensions(units, MENU), *block_dimensions(blocks, removable=[1]))
    space = Space(("0.x", "1.x", "1.y"), dimensions, cost)
    assert space.canonical((1, 0, 0)) == space.levels(space.decode((1, 0, 0))) == (1, 3, 0)
    dimensions = (*unit_dimensions({"both": ("1.x", "0.x"), "second": ("1.y",)}, MENU), dimensions[-1])
    space = Space(("0.x", "1.x", "1.y"), dimensions, cost)
    assert space.levels(space.decode((1, 0, 0))) == (1, 3, 0)


def test_sparsities_and_structure_reach_the_config() -> None:
    levels = list(RICH.safest)
    for n, each in enumerate(RICH.dimensions):
        if each.name in ("block0.mlp sparsity", "block 0 kv groups", "block 1 channels"):
            levels[n] = 0
    config = RICH.decode(levels)
    assert config.sparsities == (("0.mlp.x", 0.5), ("0.mlp.y", 0.5))
    assert config.structure == Structure(kv_groups=((0, 1),), channels=((1, 8),))
    assert {fmt for _, fmt in config} == {FP16}
    assert RICH.decode(RICH.safest) == Config.uniform(LAYERS, FP16)


def test_the_encoding_orders_choices_and_spans_the_unit_interval() -> None:
    columns = FORMATS.encode([[n] * 4 for n in range(4)])[:, 0]
    assert columns[0] == 0.0
    assert columns[-1] == 1.0
    assert (np.diff(columns) > 0).all()
    assert np.diff(columns)[0] > np.diff(columns)[-1]


def test_uniform_configs_are_those_that_every_unit_may_have() -> None:
    assert [fmt for config in FORMATS.uniforms() for fmt in {fmt for _, fmt in config}] == list(MENU)
    narrow = Space(LAYERS, unit_dimensions(UNITS, MENU, menus={"block1.mlp": MENU[1:3]}), cost)
    assert [str(config.formats[0][1]) for config in narrow.uniforms()] == ["int4-g32", "int8-g64"]


def test_a_space_lists_all_that_it_counts_and_random_configs_spread_in_cost() -> None:
    assert len({config.digest for config in FORMATS.enumerate()}) == FORMATS.size == 4**4
    generator = np.random.default_rng(0)
    costs = [cost(FORMATS.random(generator)) for _ in range(200)]
    least, most = cost(FORMATS.decode([0] * 4)), cost(FORMATS.decode([3] * 4))
    assert min(costs) < least + 0.2 * (most - least)
    assert max(costs) > most - 0.2 * (most - least)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Config.uniform(("x",), FP16), "lacks"),
        (Config.uniform((*LAYERS, "x"), FP16), "differ"),
        (Config.uniform(LAYERS, Format(3, 32)), "not on its menu"),
        (Config.of(dict.fromkeys(LAYERS, FP16) | {LAYERS[0]: MENU[0]}), "differ"),
        (Config.of(dict.fromkeys(LAYERS, FP16), {LAYERS[0]: 0.5}), "differ"),
        (Config.of(dict.fromkeys(LAYERS, FP16), {}, Structure(kv_groups=((1, 1),))), "differ"),
    ],
)
def test_what_lies_outside_the_space_is_refused(config: Config, reason: str) -> None:
    with pytest.raises(SearchError, match=reason):
        FORMATS.levels(config)


@pytest.mark.parametrize("levels", [[0] * 3, [0] * 5, [0, 0, 0, 4], [0, 0, 0, -1]])
def test_levels_that_do_not_fit_are_refused(levels: list[int]) -> None:
    with pytest.raises(SearchError, match="expected a level for each"):
        FORMATS.decode(levels)


def test_menus_without_a_choice_and_bounds_that_contradict_are_refused() -> None:
    with pytest.raises(SearchError, match=r"block0\.qkv: its menu is empty"):
        unit_dimensions(UNITS, ())
    with pytest.raises(ConfigError, match="bounds in order, got at least 8 and at most 4"):
        within(MENU, least_bits=8, most_bits=4)
    with pytest.raises(ConfigError, match="no format has 5 to 7 bits"):
        within(MENU, least_bits=5, most_bits=7)
    assert within(MENU[::-1], least_bits=3, most_bits=8) == MENU[1:3]
    with pytest.raises(SearchError, match="sparsities"):
        unit_dimensions(UNITS, MENU, sparsities=(0.0, 1.0))


def test_some_block_stays() -> None:
    assert len(block_dimensions(BLOCKS, removable=[1])) == 1
    with pytest.raises(SearchError, match=r"a block that always stays, all of \[0, 1\]"):
        block_dimensions(BLOCKS, removable=[1, 0])


@pytest.mark.parametrize(
    "bad",
    [
        {"choices": (MENU[1], MENU[0])},
        {"choices": (MENU[0], MENU[0])},
        {"kind": "colour"},
        {"kind": "sparsity", "choices": (0.5, 0.25)},
        {"kind": KEPT, "choices": (0, 1)},
        {"kind": KEPT, "choices": (1, 2), "block": 0},
        {"layers": ()},
    ],
)
def test_a_dimension_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    good: dict[str, object] = {"name": "u", "kind": FORMAT, "choices": MENU, "layers": ("a",)}
    with pytest.raises(SearchError, match="space"):
        Dimension(**{**good, **bad})  # type: ignore[arg-type]


def test_every_layer_belongs_to_one_unit() -> None:
    one = unit_dimensions({"u": ("a",)}, MENU)
    for layers, dimensions in [
        (("a", "b"), one),
        (("a", "a"), one),
        ((), one),
        (("a",), one * 2),
        (("b",), one),
    ]:
        with pytest.raises(SearchError, match="space: expected"):
            Space(layers, dimensions, cost)


def test_the_number_of_points_does_not_overflow() -> None:
    units = {str(n): (str(n),) for n in range(150)}
    assert Space.of_units(units, MENU, cost).size == 4**150
    assert math.log(Space.of_units(units, MENU, cost).size, 4) == pytest.approx(150)
