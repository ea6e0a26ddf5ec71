"""The files that `decode.py` measures: one random Llama of 100M parameters, as our artifacts and as GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from toggle_runtime.records import to_json
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from toggle_edge.compress.bank import LayerBank
from toggle_edge.config import Config, Format
from toggle_edge.export import build_skeleton
from toggle_edge.export.genai import GENAI_FILE
from toggle_edge.export.onnx import export_onnx
from toggle_edge.model.load import load_model

ROOT = Path(__file__).parents[1]
SHAPE = "shape.json"


def save_llama(folder: Path) -> Path:
    """100.7M parameters: width 768, 14 blocks, 12 heads in 4 groups, a vocabulary of 8,192, untied."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=14,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(2.0)  # else all logits are nearly equal
    module.save_pretrained(folder)
    AutoTokenizer.from_pretrained(ROOT / "demo" / "model").save_pretrained(folder)
    return folder


def export_formats(source: Path, formats: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """An artifact for each format, with what onnxruntime-genai and our backend want to know beside it."""
    model = load_model(source)
    skeleton = build_skeleton(model, folder / "skeletons")
    bank = LayerBank(model)
    found = {}
    for name in formats:
        config = Config.uniform([layer.name for layer in model.layers], Format.parse(name))
        found[name] = folder / name
        export_onnx(skeleton, bank.compressed(config), found[name])
        (found[name] / SHAPE).write_text(to_json(model.shape), encoding="utf-8")
        # One thread, as everybody here; else onnxruntime-genai takes what it wants.
        known = json.loads((found[name] / GENAI_FILE).read_text(encoding="utf-8"))
        known["model"]["decoder"]["session_options"]["intra_op_num_threads"] = 1
        (found[name] / GENAI_FILE).write_text(json.dumps(known), encoding="utf-8")
    return found


def write_gguf(source: Path, kind: str, path: Path) -> Path:
    """The same weights in llama.cpp's own format of that many bits, rounded by its own rule."""
    import gguf

    module: Any = LlamaForCausalLM.from_pretrained(source)
    config = module.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    pieces = ["<unk>", "<s>", "</s>", *(f"t{index}" for index in range(3, config.vocab_size))]
    writer.add_token_list(pieces)
    writer.add_token_scores([0.0] * len(pieces))
    writer.add_token_types([gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2, *[1] * (len(pieces) - 3)])
    to = gguf.GGMLQuantizationType[kind]
    for name, tensor in module.state_dict().items():
        values = tensor.detach().float()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # llama.cpp turns neighbouring pairs, transformers the two halves of a head.
            half = values.reshape(heads, 2, config.head_dim // 2, -1)
            values = half.transpose(1, 2).reshape(tensor.shape)
        array = values.contiguous().numpy()
        if array.ndim == 2:
            writer.add_tensor(_gguf_name(name), gguf.quants.quantize(array, to), raw_dtype=to)
        else:
            writer.add_tensor(_gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _gguf_name(name: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in fixed:
        return fixed[name]
    _, _, block, *rest = name.split(".")
    part = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }[".".join(rest[:-1])]
    return f"blk.{block}.{part}.weight"
