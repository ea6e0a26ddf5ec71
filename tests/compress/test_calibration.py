"""Statistics of layers' inputs equal those computed from the inputs themselves, whatever fits into memory."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

from tests.architectures import CASES, built, saved
from toggle_edge.compress.calibration import Calibration
from toggle_edge.errors import ConfigError
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel, load_model

SEQUENCES = [list(range(3, 40)), list(range(100, 112)), [7]]
EMBEDDING = "model.embed_tokens"


def inputs_of(model: LanguageModel, module: str) -> torch.Tensor:
    """All that a module reads while the model reads the sequences, tokens x columns."""
    found: list[torch.Tensor] = []
    hook = model.module.get_submodule(module).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0].flatten(0, 1).clone())
    )
    with torch.inference_mode():
        for sequence in SEQUENCES:
            model.module(torch.tensor([sequence]))
    hook.remove()
    return torch.cat(found).double()


@pytest.mark.parametrize("kind", ["tiny", "gpt2"])
def test_mean_squares_and_gram_matrices_are_those_of_the_inputs(
    kind: str, request: pytest.FixtureRequest
) -> None:
    model: LanguageModel = request.getfixturevalue(kind)
    calibration = Calibration(model, SEQUENCES)
    for layer in model.layers[1:]:
        inputs = inputs_of(model, layer.name)
        found = calibration.statistics(layer.name, gram=True)
        assert found is not None
        assert found.gram is not None
        assert found.tokens == len(inputs) == sum(map(len, SEQUENCES))
        assert torch.allclose(found.mean_square, inputs.square().mean(0), rtol=1e-9)
        dense = inputs.T @ inputs / len(inputs)
        assert torch.allclose(found.gram.double(), dense, atol=1e-5 * float(dense.abs().max()))


def test_a_tied_embedding_has_its_heads_inputs_and_as_much_for_its_lookups(tiny: LanguageModel) -> None:
    inputs = inputs_of(tiny, "lm_head")
    found = Calibration(tiny, SEQUENCES).statistics(EMBEDDING, gram=True)
    assert found is not None
    assert found.gram is not None
    squares = inputs.square().mean(0)
    assert torch.allclose(found.mean_square, squares + squares.mean(), rtol=1e-9)
    assert torch.allclose(found.gram.diagonal().double(), found.mean_square, rtol=1e-4)
    assert torch.allclose(found.gram[0, 1:].double(), (inputs.T @ inputs / len(inputs))[0, 1:], atol=1e-4)


def test_an_embedding_that_is_only_looked_up_has_none(tiny: LanguageModel) -> None:
    untied = copy.deepcopy(tiny.module)
    untied.lm_head.weight = torch.nn.Parameter(untied.lm_head.weight.detach().clone())
    head = Layer("lm_head", "head", 512, 64)
    model = dataclasses.replace(tiny, module=untied, layers=(*tiny.layers, head))
    calibration = Calibration(model, SEQUENCES)
    assert calibration.statistics(EMBEDDING, gram=True) is None
    assert calibration.statistics("lm_head") is not None


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "deepseek_v2"])
def test_an_expert_has_the_statistics_of_the_tokens_routed_to_it(name: str, tmp_path: Path) -> None:
    """Run alone on them, an expert's matrices would see just these: its output, by its own two layers, says so."""
    model = load_model(saved(built(*CASES[name]), tmp_path))
    path = "model.layers.1.mlp.experts"
    owner = model.module.get_submodule(path)
    read: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = owner.register_forward_pre_hook(lambda _, given: read.append((given[0].clone(), given[1].clone())))
    with torch.inference_mode():
        for sequence in SEQUENCES:
            model.module(torch.tensor([sequence]))
    hook.remove()
    states = torch.cat([each.flatten(0, -2) for each, _ in read])
    chosen = torch.cat([each.flatten(0, -2) for _, each in read])
    calibration, seen = Calibration(model, SEQUENCES), 0
    for expert in range(4):
        routed = [row for row, experts in zip(states, chosen.tolist(), strict=True) if expert in experts]
        enter = calibration.statistics(f"{path}.gate_up_proj.{expert}", gram=True)
        leave = calibration.statistics(f"{path}.down_proj.{expert}", gram=True)
        if not routed:
            assert enter is None
            assert leave is None
            continue
        assert enter is not None
        assert leave is not None
        assert enter.tokens == leave.tokens == len(routed)
        seen += len(routed)
        inputs = torch.stack(routed).double()
        assert torch.allclose(enter.mean_square, inputs.square().mean(0), rtol=1e-6)
        weights = owner.gate_up_proj[expert].double()
        inner = weights.shape[0] // 2
        gate, up = inputs @ weights[:inner].T, inputs @ weights[inner:].T
        middle = gate * torch.sigmoid(gate) * up
        assert torch.allclose(leave.mean_square, middle.square().mean(0), rtol=1e-4)
        assert leave.gram is not None
        assert torch.allclose(leave.gram.double(), middle.T @ middle / len(routed), atol=1e-5)
    assert seen == chosen.numel(), "every token counts once for each expert that it is routed to"


def passes(model: LanguageModel, gram_bytes: int, order: list[str]) -> tuple[list[torch.Tensor], int]:
    """Every layer's Gram matrix, asked for in this order, and how often the first block read something."""
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1

    hook = model.module.get_submodule("model.layers.0").register_forward_pre_hook(note)
    calibration = Calibration(model, SEQUENCES, gram_bytes=gram_bytes)
    found = [calibration.statistics(name, gram=True) for name in order]
    hook.remove()
    return [each.gram for each in found if each is not None and each.gram is not None], count


def test_little_memory_costs_passes_and_changes_nothing(tiny: LanguageModel) -> None:
    order = [layer.name for layer in tiny.layers]
    plenty, once = passes(tiny, 2**30, order)
    scarce, often = passes(tiny, 0, order)
    two, fewer = passes(tiny, 2 * 4 * 96 * 96, order)
    assert len(plenty) == len(scarce) == len(two) == len(order)
    for a, b, c in zip(plenty, scarce, two, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    # One pass for the squares, one look at the first text, and one for all Gram matrices. With no memory one for each
    # input: the head's, and per block that of q, k and v, that of o, that of gate and up, and that of down.
    assert once == 2 * len(SEQUENCES) + 1
    assert often == (1 + 9) * len(SEQUENCES) + 1
    assert once < fewer < often


def test_statistics_leave_no_hook_and_the_model_as_it_was(tiny: LanguageModel) -> None:
    before = {name: value.clone() for name, value in tiny.module.state_dict().items()}
    Calibration(tiny, SEQUENCES).statistics("model.layers.0.mlp.up_proj", gram=True)
    assert not any(module._forward_pre_hooks for module in tiny.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in tiny.module.state_dict().items())


def test_the_digest_names_the_texts(tiny: LanguageModel) -> None:
    digest = Calibration(tiny, SEQUENCES).digest
    assert digest == Calibration(tiny, [tuple(sequence) for sequence in SEQUENCES]).digest
    assert digest != Calibration(tiny, SEQUENCES[::-1]).digest
    assert digest != Calibration(tiny, [[3, 4], [5]]).digest != Calibration(tiny, [[3], [4, 5]]).digest


@pytest.mark.parametrize("sequences", [[], [[]], [[1, 2], []]])
def test_texts_without_a_token_are_refused(tiny: LanguageModel, sequences: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="at least one token"):
        Calibration(tiny, sequences)


def test_an_unknown_layer_is_refused(tiny: LanguageModel) -> None:
    with pytest.raises(ConfigError, match="no layer 'nonsense'"):
        Calibration(tiny, SEQUENCES).statistics("nonsense")


def test_a_damaged_model_is_refused_with_the_layer_that_saw_it(tiny: LanguageModel) -> None:
    module = copy.deepcopy(tiny.module)
    with torch.no_grad():
        module.get_submodule("model.layers.0.mlp.up_proj").weight[3, 3] = torch.nan
    calibration = Calibration(dataclasses.replace(tiny, module=module), SEQUENCES)
    assert calibration.statistics("model.layers.0.self_attn.q_proj") is not None
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.down_proj: its inputs are not finite"):
        calibration.statistics("model.layers.0.mlp.down_proj")
