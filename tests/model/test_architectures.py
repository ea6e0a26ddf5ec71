"""Every architecture: layers named by role, compressed, put back, evaluated, counted."""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import CASES, SLIDING, built, saved
from transformers.pytorch_utils import Conv1D

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import FP16, Config, Format
from toggle_edge.cost import predicted_cost
from toggle_edge.errors import ModelError
from toggle_edge.model.discovery import layers_of
from toggle_edge.model.layers import Layer
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.model.recording import recording
from toggle_edge.model.weights import weight_of
from toggle_edge.probes import load_probes
from toggle_edge.signals import baseline_outputs, traces_of

TOKENS = torch.arange(3, 27).reshape(2, 12)
PROBES = Path(__file__).parents[2] / "demo" / "probes.jsonl"
OUTSIDE = {"embedding": (512, 32), "head": (512, 32)}
TIED = {"embedding": (512, 32)}
HEADS = {"q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32)}
MLP = {"gate": (48, 32), "up": (48, 32), "down": (32, 48)}
EXPERT = {"gate_up": (32, 32), "down": (32, 16)}
FUSED = {"qkv": (96, 32), "o": (32, 32), "up": (48, 32), "down": (32, 48)}
OPT = {**dict.fromkeys("qkvo", (32, 32)), "up": (48, 32), "down": (32, 48)}
LATENT = {"kv_a": (12, 32), "kv_b": (56, 8), "o": (32, 24), **EXPERT}
LATENT |= {"shared_gate": (32, 32), "shared_up": (32, 32), "shared_down": (32, 32)}
SHARED = {"shared_gate": (24, 32), "shared_up": (24, 32), "shared_down": (32, 24)}

# Outputs x inputs by role, of what lies outside the blocks and in the last block.
EXPECTED: dict[str, tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]] = {
    "gpt2": (TIED, {**FUSED, "up": (128, 32), "down": (32, 128)}),
    "gpt_neox": (OUTSIDE, FUSED),
    "opt": (TIED, OPT),
    "opt_projected": (
        {"embedding": (512, 16), "project_in": (32, 16), "project_out": (16, 32)},
        OPT,
    ),
    **dict.fromkeys(("llama", "mistral", "qwen2"), (OUTSIDE, {**HEADS, **MLP})),
    **dict.fromkeys(("llama_tied", "qwen3", "gemma", "gemma2", "gemma3"), (TIED, {**HEADS, **MLP})),
    "phi3": (OUTSIDE, {"qkv": (64, 32), "o": (32, 32), "gate_up": (96, 32), "down": (32, 48)}),
    "mixtral": (OUTSIDE, {**HEADS, "gate_up": (96, 32), "down": (32, 48)}),
    "qwen2_moe": (OUTSIDE, {**HEADS, **EXPERT, **SHARED}),
    "qwen3_moe": (OUTSIDE, {**HEADS, **EXPERT}),
    "deepseek_v2": (OUTSIDE, {"q": (48, 32), **LATENT}),
    "deepseek_v2_queries": (OUTSIDE, {"q_a": (16, 32), "q_b": (48, 16), **LATENT}),
}
MIXTURES = {
    "mixtral": 0.25,
    "qwen2_moe": 0.5,
    "qwen3_moe": 0.5,
    "deepseek_v2": 0.5,
    "deepseek_v2_queries": 0.5,
}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, LanguageModel]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, load_model(saved(built(*CASES[request.param]), folder))


@pytest.fixture(scope="module")
def model(case: tuple[str, LanguageModel]) -> LanguageModel:
    return case[1]


def logits_of(module: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = module(input_ids=TOKENS, use_cache=False).logits
    return found


def uniform(model: LanguageModel, text: str) -> Config:
    return Config.uniform(tuple(layer.name for layer in model.layers), Format.parse(text))


def test_layers_have_the_roles_and_shapes_of_the_architecture(case: tuple[str, LanguageModel]) -> None:
    name, model = case
    outside, block = EXPECTED[name]
    inside = [layer for layer in model.layers if ".1." in layer.name]
    assert {layer.role: (layer.rows, layer.columns) for layer in inside} == block
    assert {
        layer.role: (layer.rows, layer.columns) for layer in model.layers if layer.role in outside
    } == outside
    experts = 4 if name in MIXTURES else 1
    assert len(inside) == sum(experts if role in EXPERT and experts > 1 else 1 for role in block)
    assert len({layer.name for layer in model.layers}) == len(model.layers)


def test_every_parameter_is_counted_once(model: LanguageModel) -> None:
    stored = {values.data_ptr(): values.numel() for values in model.module.state_dict().values()}
    buffers = {values.data_ptr() for values in model.module.buffers()}
    total = sum(count for pointer, count in stored.items() if pointer not in buffers)
    assert sum(layer.weights for layer in model.layers) + model.kept_parameters == total


def test_what_is_kept_is_small_and_no_layer(case: tuple[str, LanguageModel]) -> None:
    name, model = case
    covered = {weight_of(model.module, layer).untyped_storage().data_ptr() for layer in model.layers}
    kept = {
        path.rpartition(".")[0].rpartition(".")[2]
        for path, values in model.module.named_parameters()
        if values.ndim > 1 and values.untyped_storage().data_ptr() not in covered
    }
    positions = {"gpt2": {"wpe"}, "opt": {"embed_positions"}, "opt_projected": {"embed_positions"}}
    routers = {"qwen2_moe": {"gate", "shared_expert_gate"}}
    assert kept == positions.get(name, routers.get(name, {"gate"} if name in MIXTURES else set()))


def test_all_of_fp16_has_the_baselines_logits(model: LanguageModel) -> None:
    baseline, assembled = logits_of(model.module), LayerBank(model).assemble(uniform(model, "fp16"))
    assert float(baseline.std()) > 0.1
    assert float((logits_of(assembled) - baseline).abs().max()) <= 4e-3 * float(baseline.abs().max())
    for layer in model.layers:
        stored = weight_of(model.module, layer).half().float()
        assert torch.equal(weight_of(assembled, layer), stored), layer.name


def test_int8_is_close_and_int2_is_not(model: LanguageModel) -> None:
    baseline, bank = logits_of(model.module), LayerBank(model)

    def error(text: str) -> float:
        found = logits_of(bank.assemble(uniform(model, text)))
        # The median of tokens: one that is routed to another expert now is far off, and rightly so.
        return float(((found - baseline).norm(dim=-1) / baseline.norm(dim=-1)).median())

    close = error("int8-axis")
    assert 1e-5 < close < 0.08
    assert error("int2-axis") > 5 * close
    assert torch.equal(logits_of(model.module), baseline)


def test_every_layer_alone_reaches_the_logits(model: LanguageModel) -> None:
    """A layer whose weights were a copy, or another's, would leave them as they were. Experts: some token's."""
    changed = copy.deepcopy(model.module)
    before = logits_of(changed)
    idle = 0
    for layer in model.layers:
        weight = weight_of(changed, layer)
        kept = weight.clone()
        weight.mul_(0.5)
        if torch.equal(logits_of(changed), before):
            assert layer.expert is not None, layer.name
            idle += 1
        weight.copy_(kept)
        assert torch.equal(logits_of(changed), before), layer.name
    experts = sum(layer.expert is not None for layer in model.layers)
    assert idle <= experts // 2


def test_weights_are_outputs_by_inputs(model: LanguageModel) -> None:
    """Each module's own output is its input times the transposed weights, plus its bias."""
    by_name = {layer.name: layer for layer in model.layers}
    seen = set()
    hooks = []

    def compare(name: str) -> Any:
        def see(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            expected = inputs[0] @ weight_of(model.module, by_name[name]).T
            expected = expected if module.bias is None else expected + module.bias
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
            seen.add(name)

        return see

    for name, module in model.module.named_modules():
        if name in by_name and isinstance(module, torch.nn.Linear | Conv1D):
            hooks.append(module.register_forward_hook(compare(name)))
    logits_of(model.module)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(hooks) > 0


def test_a_group_is_what_reads_one_input(case: tuple[str, LanguageModel]) -> None:
    _, model = case
    groups, inputs, held = defaultdict(set), defaultdict(set), []
    by_name = {layer.name: layer for layer in model.layers}

    def see(name: str, tensor: torch.Tensor) -> None:
        held.append(tensor)  # an address may be used again once its tensor is gone
        inputs[id(tensor)].add(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, name=name: see(name, given[0]))
        for name, module in model.module.named_modules()
        if name in by_name and isinstance(module, torch.nn.Linear | Conv1D)
    ]
    logits_of(model.module)
    for hook in hooks:
        hook.remove()
    multiplied = set().union(*inputs.values())
    for name in multiplied:
        groups[by_name[name].group].add(name)
    assert sorted(map(sorted, groups.values())) == sorted(map(sorted, inputs.values()))
    others = [layer.group for layer in model.layers if layer.name not in multiplied]
    assert len(set(others)) == len(others), "embeddings and fused experts are groups of their own"


def test_what_passes_by_is_what_transformers_returns(case: tuple[str, LanguageModel]) -> None:
    name, model = case
    maps: list[torch.Tensor] = []
    states: list[torch.Tensor] = []
    with recording(model.module, lambda _, each: maps.append(each), lambda _, each: states.append(each)):
        logits_of(model.module)
    with torch.inference_mode():
        whole: Any = model.module(input_ids=TOKENS, output_attentions=True, output_hidden_states=True)
    assert len(maps) == len(states) == 2
    for ours, theirs in zip(maps, whole.attentions, strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(states[0], whole.hidden_states[1])
    # There transformers' last state is already normed and projected to the embedding's width.
    if name == "opt_projected":
        decoder: Any = model.module.get_submodule("model.decoder")
        projected = decoder.project_out(decoder.final_layer_norm(states[1]))
        torch.testing.assert_close(projected, whole.hidden_states[2])
    else:
        assert torch.equal(states[1], whole.hidden_states[2])


def test_signals_are_finite_and_say_how_far_a_config_departs(model: LanguageModel, tmp_path: Path) -> None:
    texts = tmp_path / "probes.jsonl"
    texts.write_text("\n".join(PROBES.read_text("utf-8").splitlines()[:3]), "utf-8")
    probes = load_probes(texts, model.tokenizer, steps=12, context_tokens=model.shape.context_tokens)
    baseline, bank = baseline_outputs(model.module, probes), LayerBank(model)
    for outputs in baseline:
        assert outputs.attention.shape[0] == outputs.hidden.shape[0] == 2
        np.testing.assert_allclose(outputs.attention.sum(-1), 1.0, atol=1e-4)
    means = {}
    for text in ("fp16", "int2-axis"):
        traces = traces_of(bank.assemble(uniform(model, text)), probes, baseline)
        for trace in traces:
            assert {"jsd", "attention", "attention_min", "context", "factual"} <= set(trace.lower)
            for name, values in trace.lower.items():
                assert np.isfinite(values).all(), name
        means[text] = float(np.mean([trace.lower["jsd"].mean() for trace in traces]))
        if text == "fp16":
            assert min(trace.lower["context_min"].min() for trace in traces) > 0.99
    assert means["fp16"] < 1e-3 < means["int2-axis"]


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_a_sliding_window_shows_in_the_maps(name: str) -> None:
    maps: list[torch.Tensor] = []
    module = built(*CASES[name])
    with recording(module, lambda _, weights: maps.append(weights), lambda *_: None):
        logits_of(module)
    query = TOKENS.shape[1] - 1
    windowed = [bool((each[:, :, query, : query - SLIDING + 1] == 0).all()) for each in maps]
    assert any(windowed)
    assert all(bool((each[:, :, query, query - SLIDING + 1 :] > 0).all()) for each in maps)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_multiply_for_their_share_of_tokens(name: str) -> None:
    """What the experts' module gives is what their layers' views give, each for the tokens routed to it."""
    module = built(*CASES[name])
    layers = layers_of(module)
    path = "model.layers.1.mlp.experts"
    seen: list[tuple[Any, torch.Tensor]] = []
    hook = module.get_submodule(path).register_forward_hook(
        lambda _, given, output: seen.append((given, output))
    )
    logits_of(module)
    hook.remove()
    ((states, chosen, shares), output), *_ = seen
    own = [layer for layer in layers if layer.name.startswith(path)]
    assert {layer.activity for layer in own} == {MIXTURES[name]} == {chosen.shape[-1] / 4}
    assert all(layer.activity == 1.0 for layer in layers if layer.expert is None)
    expected = torch.zeros_like(states)
    for expert in range(4):
        enter, leave = (
            weight_of(module, next(each for each in own if (each.role, each.expert) == (role, expert)))
            for role in ("gate_up", "down")
        )
        gate, up = (states @ enter.T).chunk(2, dim=-1)
        share = (shares * (chosen == expert)).sum(-1, keepdim=True)
        expected += share * ((torch.nn.functional.silu(gate) * up) @ leave.T)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_flops_of_experts_are_those_of_the_active_ones() -> None:
    module = built(*CASES["mixtral"])
    layers = layers_of(module)
    found = predicted_cost(layers, Config.uniform(tuple(each.name for each in layers), FP16), 0).proxy_flops
    attention, expert, head = 2 * 32 * 32 + 2 * 16 * 32, 96 * 32 + 32 * 48, 512 * 32
    assert found == 2 * (2 * (attention + 1 * expert) + head)


@pytest.mark.parametrize(
    ("name", "kv_heads", "head_size"),
    [
        ("gpt2", 4, 8),
        ("opt", 4, 8),
        ("gpt_neox", 4, 8),
        ("mistral", 2, 8),
        ("phi3", 2, 8),
        ("deepseek_v2", 4, 12),
    ],
)
def test_the_shape_is_what_the_cache_holds(name: str, kv_heads: int, head_size: int, tmp_path: Path) -> None:
    model = load_model(saved(built(*CASES[name]), tmp_path))
    shape = model.shape
    assert (shape.layers, shape.kv_heads, shape.head_size) == (2, kv_heads, head_size)
    assert (shape.vocabulary, shape.context_tokens, shape.end_token) == (512, 128, 2)
    if name != "deepseek_v2":
        cache = model.module(input_ids=TOKENS, use_cache=True).past_key_values
        assert cache.layers[0].keys.shape[1::2] == (kv_heads, head_size)


def test_a_matrix_that_nobody_knows_is_named() -> None:
    module = built(*CASES["llama"])
    module.model.layers[1].mlp.adapter = torch.nn.Linear(32, 4)
    with pytest.raises(ModelError, match=r"found model\.layers\.1\.mlp\.adapter, which is neither"):
        layers_of(module)


def test_a_layer_that_is_not_there_or_has_another_shape_is_named() -> None:
    module = built(*CASES["mixtral"])
    present = {layer.name: layer for layer in layers_of(module)}
    name = "model.layers.0.self_attn.q_proj"
    with pytest.raises(ModelError, match=rf"{name}: expected 32 x 31 .* got 32 x 32"):
        weight_of(module, Layer(name, "q", 32, 31))
    for absent in ("model.layers.7.self_attn.q_proj", "model.layers.0.mlp.experts"):
        with pytest.raises(ModelError, match=f"expected a layer {absent}"):
            weight_of(module, Layer(absent, "q", 32, 32))
    with pytest.raises(ModelError, match=r"down_proj\.9"):
        weight_of(module, Layer("model.layers.0.mlp.experts.down_proj.9", "down", 32, 48, expert=9))
    expert = present["model.layers.0.mlp.experts.down_proj.3"]
    weight_of(module, expert).fill_(2.0)
    assert bool((module.model.layers[0].mlp.experts.down_proj[3] == 2.0).all())
    assert not bool((module.model.layers[0].mlp.experts.down_proj[2] == 2.0).any())


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("olmo2", {"embedding", "head", "q", "k", "v", "o", "gate", "up", "down"}),
        ("starcoder2", {"embedding", "q", "k", "v", "o", "up", "down"}),
        ("gpt_bigcode", {"embedding", "qkv", "o", "up", "down"}),
    ],
)
def test_an_unknown_architecture_is_discovered(kind: str, roles: set[str], tmp_path: Path) -> None:
    model = load_model(saved(built(kind, CASES["llama"][1]), tmp_path))
    assert {layer.role for layer in model.layers} == roles
    module = LayerBank(model).assemble(uniform(model, "fp16"))
    torch.testing.assert_close(logits_of(module), logits_of(model.module), atol=0.02, rtol=0.02)


def test_names_that_say_nothing_have_the_role_other() -> None:
    module = built("olmo2", CASES["llama"][1])
    for block in module.model.layers:
        block.mlp.mystery = torch.nn.Linear(32, 32)
    assert [layer.role for layer in layers_of(module) if "mystery" in layer.name] == ["other"] * 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mamba", r"backbone\.layers\.0\.mixer\.A_log.*neither; found backbone\.embeddings \(embedding\)"),
        ("gpt_oss", r"model\.layers\.0\.mlp\.experts\.gate_up_proj.*neither; found .*q_proj \(q\)"),
        (
            "gptj",
            r"gptj: expected attention maps.*; found transformer\.wte \(embedding\).*known architectures",
        ),
    ],
)
def test_an_architecture_without_what_is_needed_is_refused_with_what_was_found(
    kind: str, message: str
) -> None:
    options = {**CASES["llama"][1], "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4}
    with pytest.raises(ModelError, match=message):
        layers_of(built(kind, options))


@pytest.mark.parametrize("active", [0, 5])
def test_experts_without_a_number_of_active_ones_are_refused(active: int) -> None:
    module = built(*CASES["mixtral"])
    module.config.num_experts_per_tok = active
    with pytest.raises(ModelError, match=f"num_experts_per_tok between 1 and 4.*got {active}"):
        layers_of(module)
