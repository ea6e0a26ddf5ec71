"""What is lowered in tests: tiny models, mixed formats, structure removed; and the requests that exporters take."""

from __future__ import annotations

from pathlib import Path

from architectures import CASES, built, saved

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.export import Request
from toggle_edge.model.load import LanguageModel, load_model
from toggle_edge.structure import WHOLE, Structure

TOKENS = [1, 100, 7, 301, 44, 12, 9, 200, 3, 77, 81, 15, 40, 41, 42, 43, 250, 19, 8, 300]
PROMPT = 8
SIZES = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 64}
MODELS = {
    "llama": ("llama_tied", {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80}),
    "gpt2": ("gpt2", {}),
}
MIXED = ("int8-axis", "int4-g32", "fp32", "int4-g32", "int8-axis", "fp16")
NARROW = Structure(kv_groups=((0, 1),), channels=((1, 40),))


def model_of(kind: str, folder: Path) -> LanguageModel:
    case, more = MODELS[kind]
    architecture, options = CASES[case]
    return load_model(saved(built(architecture, {**options, **SIZES, **more}), folder))


def request_of(model: LanguageModel, formats: tuple[str, ...], structure: Structure = WHOLE) -> Request:
    bank = LayerBank(model, narrow_scales=True)
    layers = model.remaining(structure)
    chosen = {layer.name: Format.parse(formats[index % len(formats)]) for index, layer in enumerate(layers)}
    config = Config.of(chosen, structure=structure)
    candidate = bank.assemble(config)
    return Request(
        model, config, bank.compressed(config), bank.kept(structure), lambda: candidate, TOKENS, PROMPT
    )
