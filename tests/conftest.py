"""Fixtures that many tests share: a tiny model with real structure, probes for it, and where the demo lies."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# No test may make, or use, the signing key of whoever runs the tests; commands that tests start inherit this.
_HOME = tempfile.TemporaryDirectory(prefix="toggle-edge-home-")
os.environ["TOGGLE_EDGE_HOME"] = _HOME.name
torch.set_num_threads(2)

from architectures import CASES, built, saved  # noqa: E402
from covered_agent import measure_agents  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from toggle_edge.compress.bank import LayerBank  # noqa: E402
from toggle_edge.export.general import why_not_traced  # noqa: E402
from toggle_edge.export.graphs import build_skeleton  # noqa: E402
from toggle_edge.export.skeleton import Skeleton  # noqa: E402
from toggle_edge.model.load import LanguageModel, load_model  # noqa: E402
from toggle_edge.probes import Probe, load_probes  # noqa: E402

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session", autouse=True)
def _measured_agents() -> Iterator[None]:
    """Agents that tests install measure themselves under `make coverage`; otherwise this does nothing."""
    with pytest.MonkeyPatch.context() as patch:
        measure_agents(patch)
        yield


DEMO = ROOT / "demo"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-block Llama with grouped queries and tied embeddings, and the demo model's tokenizer."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 2:  # random matrices this small give flat logits otherwise
                parameter.mul_(3.0)
            assert torch.isfinite(parameter).all(), name
    # fp16 on disk, so that the fp16 format is lossless and the baseline is the fp16 config.
    module.half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> LanguageModel:
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random two-block GPT-2, whose matrices are stored the other way round."""
    folder = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=512, n_embd=64, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    )
    module = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    module.half().save_pretrained(folder)
    AutoTokenizer.from_pretrained(DEMO / "model").save_pretrained(folder)
    return load_model(folder)


@pytest.fixture(scope="session")
def gpt_neox(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """A random two-block GPT-NeoX, whose graph is traced."""
    if (why := why_not_traced()) is not None:
        pytest.skip(why)
    kind, options = CASES["gpt_neox"]
    module = built(kind, {**options, "max_position_embeddings": 256})
    return load_model(saved(module.half(), tmp_path_factory.mktemp("gpt_neox")))


@pytest.fixture
def bank(tiny: LanguageModel) -> LayerBank:
    return LayerBank(tiny)


@pytest.fixture(scope="session")
def skeleton(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Skeleton:
    return build_skeleton(tiny, tmp_path_factory.mktemp("skeletons"))


@pytest.fixture(scope="session")
def probes(tiny: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Probe, ...]:
    """Probes of different lengths; the last one has no answer."""
    lines = [json.loads(line) for line in (DEMO / "probes.jsonl").read_text().splitlines()[:7]]
    del lines[-1]["answer"]
    path = tmp_path_factory.mktemp("probes") / "probes.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return load_probes(path, tiny.tokenizer, steps=32, context_tokens=tiny.shape.context_tokens)
