"""The space of configs, its encoding, the initial design and the pool."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toggle_edge.config import FP16, Config, Format
from toggle_edge.errors import SearchError
from toggle_edge.search.pool import POOL_SIZE, candidate_pool, mutate
from toggle_edge.search.seeds import initial_design
from toggle_edge.search.space import Space, storage_bits

MENU = tuple(Format.parse(text) for text in ("int2-g64", "int4-g32", "int8-g64", "fp16"))
LAYERS = tuple(f"layer{i}" for i in range(8))


def total_bits(config: Config) -> float:
    return sum(storage_bits(fmt) for _, fmt in config)


SPACE = Space(LAYERS, MENU, total_bits)
LEVELS = st.tuples(*[st.integers(0, len(MENU) - 1)] * len(LAYERS))


def distance(a: Config, b: Config) -> list[int]:
    return [abs(x - y) for x, y in zip(SPACE.levels(a), SPACE.levels(b), strict=True)]


@pytest.mark.parametrize("fmt", [*MENU, Format(4, 64, True), Format(16, 16), Format(5, 16, True)])
def test_storage_bits_agree_with_the_stored_bytes(fmt: Format) -> None:
    assert storage_bits(fmt) == 8 * fmt.storage_bytes(16, 256) / (16 * 256)


@settings(deadline=None, max_examples=50)
@given(LEVELS)
def test_levels_and_vectors_lead_back_to_the_config(levels: tuple[int, ...]) -> None:
    config = SPACE.decode(levels)
    (vector,) = SPACE.encode([config])
    assert SPACE.levels(config) == levels
    assert SPACE.nearest(vector) == config
    assert ((vector >= 0) & (vector <= 1)).all()


def test_the_encoding_orders_formats_and_spans_the_unit_interval() -> None:
    columns = SPACE.encode(list(SPACE.uniforms()))[:, 0]
    assert columns[0] == 0.0
    assert columns[-1] == 1.0
    assert (np.diff(columns) > 0).all()
    assert Space(LAYERS, (FP16,), total_bits).encode([Config.uniform(LAYERS, FP16)]).tolist() == [[0.0] * 8]


@settings(deadline=None, max_examples=50)
@given(LEVELS)
def test_neighbours_are_all_configs_one_move_away(levels: tuple[int, ...]) -> None:
    config = SPACE.decode(levels)
    neighbours = list(SPACE.neighbours(config))
    assert all(sorted(distance(config, other)) == [0] * 7 + [1] for other in neighbours)
    inner = sum(0 < level < len(MENU) - 1 for level in levels)
    assert len({other.digest for other in neighbours}) == len(neighbours) == len(LAYERS) + inner


def test_every_config_is_enumerated_once() -> None:
    small = Space(LAYERS[:3], MENU, total_bits)
    assert len({config.digest for config in small.enumerate()}) == small.size == 64


def test_random_configs_cover_the_costs() -> None:
    generator = np.random.default_rng(0)
    costs = [total_bits(SPACE.random(generator)) / len(LAYERS) for _ in range(300)]
    assert min(costs) < 4
    assert max(costs) > 13


@pytest.mark.parametrize(
    ("layers", "menu"),
    [((), MENU), (("a", "a"), MENU), (("a",), ()), (("a",), MENU[::-1]), (("a",), (MENU[0], MENU[0]))],
)
def test_a_space_that_makes_no_sense_is_refused(layers: tuple[str, ...], menu: tuple[Format, ...]) -> None:
    with pytest.raises(SearchError, match="space: expected"):
        Space(layers, menu, total_bits)


def test_configs_of_another_space_are_refused() -> None:
    with pytest.raises(SearchError, match="layer7"):
        SPACE.levels(Config.uniform(LAYERS[:-1], FP16))
    with pytest.raises(SearchError, match="not on the menu"):
        SPACE.levels(Config.uniform(LAYERS, Format.parse("int4-g128")))
    for levels in ([0] * 7, [0] * 7 + [4], [0] * 7 + [-1]):
        with pytest.raises(SearchError, match="8 levels"):
            SPACE.decode(levels)


def test_the_design_starts_with_the_uniforms_and_lowers_the_least_sensitive_layers() -> None:
    sensitivity = {layer: float(i) for i, layer in enumerate(reversed(LAYERS))}
    design = initial_design(SPACE, seed=0, sensitivity=sensitivity)
    assert [config for _, config in design[:4]] == list(SPACE.uniforms())
    assert len(design) == 4 + 3 * 3
    origin, config = design[4]
    assert origin == "seed 25% fp16 to int8-g64"
    assert SPACE.levels(config) == (3, 3, 3, 3, 3, 3, 2, 2)


def test_without_sensitivities_the_order_is_fixed_by_the_seed() -> None:
    assert initial_design(SPACE, seed=3) == initial_design(SPACE, seed=3)
    assert initial_design(SPACE, seed=3) != initial_design(SPACE, seed=4)


def test_a_tiny_space_yields_no_duplicates() -> None:
    digests = [config.digest for _, config in initial_design(Space(("a",), MENU, total_bits), seed=0)]
    assert len(digests) == len(set(digests)) == 4


@pytest.mark.parametrize("bad", [{}, dict.fromkeys(LAYERS, math.nan)])
def test_missing_sensitivities_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(SearchError, match="finite sensitivity"):
        initial_design(SPACE, seed=0, sensitivity=bad)


def test_mutations_move_layers_one_level_in_every_direction() -> None:
    generator = np.random.default_rng(0)
    parent = SPACE.decode([1, 2] * 4)
    costs = set()
    for _ in range(100):
        child = mutate(SPACE, parent, generator)
        assert 1 <= sum(distance(parent, child)) <= len(LAYERS) // 2
        assert max(distance(parent, child)) == 1
        costs.add(np.sign(total_bits(child) - total_bits(parent)))
    assert {-1.0, 1.0} <= costs


def test_the_pool_is_distinct_untried_and_repeatable() -> None:
    tried = list(SPACE.uniforms())
    pool = candidate_pool(SPACE, tried, tried, np.random.default_rng(1))
    digests = {config.digest for config in pool}
    assert len(digests) == len(pool)
    assert POOL_SIZE / 2 < len(pool) <= POOL_SIZE
    assert not digests & {config.digest for config in tried}
    assert pool == candidate_pool(SPACE, tried, tried, np.random.default_rng(1))


def test_a_small_space_is_listed_whole_and_a_large_one_never_runs_dry_early() -> None:
    small = Space(LAYERS[:2], MENU, total_bits)
    everything = list(small.enumerate())
    assert list(candidate_pool(small, [], everything[:10], np.random.default_rng(0))) == everything[10:]
    # 4 ** 5 = 1024 configs, all but the last two tried: random draws would most likely miss them.
    medium = Space(LAYERS[:5], MENU, total_bits)
    *tried, a, b = list(medium.enumerate())
    left = {config.digest for config in candidate_pool(medium, [], tried, np.random.default_rng(0))}
    assert left
    assert left <= {a.digest, b.digest}
    assert len(list(itertools.islice(medium.enumerate(), 2000))) == 1024
