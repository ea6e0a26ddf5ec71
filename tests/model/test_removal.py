"""What is removed is physically gone, and what is left computes what the model computes with the same parts silent."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import CASES, built, saved

from toggle_edge.compress.calibration import Calibration
from toggle_edge.compress.structure import Ranking, block_importance, structure_menu
from toggle_edge.errors import ConfigError
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.remaining import remaining_layers, remaining_parameters, renumbered
from toggle_edge.model.removal import REMOVABLE, without
from toggle_edge.model.weights import weight_of
from toggle_edge.structure import Kept, KeptBlock, Structure

TOKENS = torch.tensor([[5, 100, 7, 301, 44, 12, 9, 200, 3, 77, 81, 15]])
FAMILIES = [name for name, (kind, _) in CASES.items() if kind in REMOVABLE]
BIASED = {"qwen2": {}, "llama": {"attention_bias": True, "mlp_bias": True}}


def model_of(name: str, folder: Path, **options: Any) -> LanguageModel:
    """Four blocks of six heads, of which llama-like ones share key and value by two."""
    kind, given = CASES[name]
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 6, **options}
    sizes |= {
        "hidden_size": 48,
        **({} if kind == "gpt2" else {"num_key_value_heads": 3, "intermediate_size": 64}),
    }
    module = built(kind, {**given, **sizes})
    with torch.no_grad():
        for path, parameter in module.named_parameters():
            if path.endswith("bias"):  # zero where they are new, and then nothing would depend on them
                parameter.normal_(std=0.3)
    return load_model(saved(module, folder))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    name = request.param
    return model_of(name, tmp_path_factory.mktemp(name), **BIASED.get(name, {}))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return model_of("llama", tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return model_of("gemma3", tmp_path_factory.mktemp("gemma3"))


def silenced(model: LanguageModel, kept: Kept) -> torch.Tensor:
    """Logits of the whole model with what is not kept set to zero, and removed blocks skipped by a hook.

    It knows nothing of how parts are removed: heads and channels are cut off at the inputs of `o` and `down`.
    """
    module, hooks = model.module, []
    blocks: Any = module.transformer.h if hasattr(module, "transformer") else module.model.layers
    parts = {each.block: each for each in kept.remaining}
    for number, block in enumerate(blocks):
        if number not in parts:
            hooks.append(
                block.register_forward_hook(
                    lambda _, given, out: (given[0], *out[1:]) if isinstance(out, tuple) else given[0]
                )
            )
            continue
        attention = getattr(block, "self_attn", None) or block.attn
        reads_heads = getattr(attention, "o_proj", None) or attention.c_proj
        reads_channels = getattr(block.mlp, "down_proj", None) or block.mlp.c_proj

        def masked(unit: tuple[int, ...], units: int) -> Any:
            def hook(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
                mask = torch.zeros(units)
                mask[list(unit)] = 1
                return (given[0] * mask.repeat_interleave(given[0].shape[-1] // units),)

            return hook

        groups, channels = (
            model.shape.kv_heads,
            weight_of(module, layer_named(model, number, "down")).shape[1],
        )
        hooks.append(reads_heads.register_forward_pre_hook(masked(parts[number].kv_groups, groups)))
        hooks.append(reads_channels.register_forward_pre_hook(masked(parts[number].channels, channels)))
    try:
        with torch.inference_mode():
            return module(input_ids=TOKENS, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()


def layer_named(model: LanguageModel, block: int, role: str) -> Any:
    return next(each for each in model.layers if each.role == role and f".{block}." in each.name)


def third_and_quarter(model: LanguageModel) -> Structure:
    """A third of the heads and a quarter of the channels of each block gone, and one block."""
    groups, inner = model.shape.kv_heads, model.anatomy.channels(0)
    rest = (0, 2, 3)
    return Structure(
        (1,),
        tuple((block, groups - groups // 3) for block in rest),
        tuple((block, inner - inner // 4) for block in rest),
    )


def test_a_model_without_parts_equals_it_with_the_parts_silent(family: LanguageModel) -> None:
    model = family
    structure = third_and_quarter(model)
    kept = Ranking(model).kept(structure)
    before = {path: value.clone() for path, value in model.module.state_dict().items()}
    reduced = without(model.module, model.anatomy, kept)
    with torch.inference_mode():
        found = reduced(input_ids=TOKENS, use_cache=False).logits
    expected = silenced(model, kept)
    assert (found - expected).abs().max() < 1e-5
    with torch.inference_mode():
        whole = model.module(input_ids=TOKENS, use_cache=False).logits
    assert (whole - expected).abs().max() > 1e-2  # the parts matter, so agreement is no accident
    assert all(torch.equal(value, before[path]) for path, value in model.module.state_dict().items())
    assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in model.module.parameters())


def test_sizes_are_predicted_exactly(family: LanguageModel) -> None:
    model = family
    structure = third_and_quarter(model)
    kept = Ranking(model).kept(structure)
    reduced = without(model.module, model.anatomy, kept)
    layers = remaining_layers(model.anatomy, structure)
    for layer in layers:
        weights = weight_of(reduced, layer_in(layer, kept))
        assert weights.shape == (layer.rows, layer.columns)
        owner = reduced.get_submodule(renumbered(layer.name, kept.numbers))
        if isinstance(owner, torch.nn.Linear):
            assert (owner.out_features, owner.in_features) == (layer.rows, layer.columns)
    total = sum(parameter.numel() for parameter in reduced.parameters())
    assert sum(layer.weights for layer in layers) + remaining_parameters(model.anatomy, structure) == total
    assert remaining_parameters(model.anatomy, Structure()) == model.kept_parameters
    assert remaining_layers(model.anatomy, Structure()) == model.layers


def layer_in(layer: Any, kept: Kept) -> Any:
    return dataclasses.replace(layer, name=renumbered(layer.name, kept.numbers))


def test_generation_from_the_cache_equals_generation_without(family: LanguageModel) -> None:
    model = family
    kept = Ranking(model).kept(third_and_quarter(model))
    reduced: Any = without(model.module, model.anatomy, kept)
    longer = TOKENS.repeat(1, 2)  # more than a sliding window
    with torch.inference_mode():
        whole = reduced(input_ids=longer, use_cache=False).logits
        first = reduced(input_ids=longer[:, :4], use_cache=True)
        cache, rows = first.past_key_values, [first.logits]
        for index in range(4, longer.shape[1]):
            step = reduced(input_ids=longer[:, index : index + 1], past_key_values=cache, use_cache=True)
            rows.append(step.logits)
    assert (torch.cat(rows, 1) - whole).abs().max() < 1e-4
    assert len(cache.layers) == 3
    assert {layer.keys.shape[1] for layer in cache.layers} == {len(kept.remaining[0].kv_groups)}
    assert reduced.generate(TOKENS, max_new_tokens=4, do_sample=False).shape == (1, 16)


@pytest.mark.parametrize("removed", [(0,), (3,), (0, 1, 2), (1, 3)])
def test_any_blocks_can_go(removed: tuple[int, ...], gemma3: LanguageModel) -> None:
    model = gemma3
    kept = Ranking(model).kept(Structure(removed))
    reduced: Any = without(model.module, model.anatomy, kept)
    with torch.inference_mode():
        found = reduced(input_ids=TOKENS, use_cache=False).logits
    assert (found - silenced(model, kept)).abs().max() < 1e-5
    kinds = model.module.config.layer_types
    assert reduced.config.layer_types == [kinds[number] for number in kept.numbers]


def test_the_ranking_is_nested_and_keeps_what_matters(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    down = weight_of(model.module, layer_named(model, 0, "down"))
    with torch.no_grad():
        down[:, 40] *= 100.0
        down[:, 41] = 0.0
    ranking = Ranking(model)
    before: set[int] = set()
    for count in (1, 2, 10, 63):
        kept = set(ranking.kept(Structure(channels=((0, count),))).remaining[0].channels)
        assert len(kept) == count
        assert before < kept
        before = kept
    assert 41 not in before
    assert ranking.kept(Structure(channels=((0, 1),))).remaining[0].channels == (40,)
    # Again, from nothing: the same.
    assert Ranking(model).kept(Structure(channels=((0, 10),))) == ranking.kept(Structure(channels=((0, 10),)))


def test_activations_decide_over_weights(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    up, down = (weight_of(model.module, layer_named(model, 0, role)) for role in ("up", "down"))
    with torch.no_grad():
        down[:, 3] *= 50.0  # large, and read of a channel that is silent
        up[3] = 0.0
    by_weights = Ranking(model).kept(Structure(channels=((0, 32),))).remaining[0].channels
    calibration = Calibration(model, [TOKENS[0].tolist()])
    by_both = Ranking(model, calibration).kept(Structure(channels=((0, 63),))).remaining[0].channels
    assert 3 in by_weights
    assert 3 not in by_both
    inputs = calibration.statistics("model.layers.0.mlp.down_proj")
    assert inputs is not None
    scores = down.double().norm(dim=0) * inputs.mean_square.sqrt()
    best = set(scores.argsort(descending=True)[:20].tolist())
    found = Ranking(model, calibration).kept(Structure(channels=((0, 20),))).remaining[0].channels
    assert set(found) == best


def test_blocks_that_turn_the_stream_least_are_found(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    with torch.no_grad():
        for role in ("o", "down"):
            weight_of(model.module, layer_named(model, 2, role)).mul_(1e-3)
    found = block_importance(model, [TOKENS[0].tolist(), TOKENS[0, :5].tolist()])
    assert len(found) == 4
    assert min(range(4), key=found.__getitem__) == 2
    assert found[2] < 1e-3 < found[0]
    with pytest.raises(ConfigError, match="one or more texts"):
        block_importance(model, [])


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (Structure((4,)), "block 4: the model has blocks 0 to 3"),
        (Structure((0, 1, 2, 3)), "all 4 blocks are removed; keep at least one"),
        (Structure(kv_groups=((2, 4),)), "block 2: expected to keep 1 to 3 kv groups.* got 4"),
        (Structure(channels=((1, 65),)), "block 1: expected to keep 1 to 64 channels.* got 65"),
        (Structure(channels=((7, 1),)), "block 7: the model has blocks 0 to 3"),
    ],
)
def test_a_structure_that_does_not_fit_is_refused(
    structure: Structure, message: str, llama: LanguageModel
) -> None:
    model = llama
    with pytest.raises(ConfigError, match=message):
        Ranking(model).kept(structure)
    with pytest.raises(ConfigError, match=message):
        remaining_layers(model.anatomy, structure)


def test_an_unknown_architecture_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    kind, options = CASES["gpt_neox"]
    model = load_model(saved(built(kind, options), tmp_path))
    with pytest.raises(ConfigError, match=r"among gemma, .*llama.*got 'gpt_neox'.*leave `structure` out"):
        Ranking(model).kept(Structure((0,)))


def test_weights_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = model_of("llama", tmp_path)
    with torch.no_grad():
        weight_of(model.module, layer_named(model, 0, "o"))[0, 0] = torch.nan
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.self_attn\.o_proj: expected finite weights"):
        Ranking(model).kept(Structure(kv_groups=((0, 1),)))


def test_keeping_all_there_is_changes_nothing(llama: LanguageModel) -> None:
    model = llama
    kept = Ranking(model).kept(Structure(kv_groups=((0, 3),), channels=((2, 64),)))
    assert kept.remaining[0] == KeptBlock(0, (0, 1, 2), tuple(range(64)))
    reduced = without(model.module, model.anatomy, kept).state_dict()
    assert all(torch.equal(value, reduced[path]) for path, value in model.module.state_dict().items())


def test_the_menu_offers_parts_and_blocks(llama: LanguageModel) -> None:
    model = llama
    menu = structure_menu(model.anatomy, (0.75, 0.5))
    assert sorted(menu) == [0, 1, 2, 3]
    assert menu[1] == (
        Structure(kv_groups=((1, 2),)),
        Structure(channels=((1, 48),)),
        Structure(channels=((1, 32),)),
        Structure((1,)),
    )
    for options in menu.values():
        for option in options:
            assert sum(layer.weights for layer in remaining_layers(model.anatomy, option)) < sum(
                layer.weights for layer in model.layers
            )
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        structure_menu(model.anatomy, (1.5,))
