"""Writes a Hugging Face directory as a GGUF file, with the `gguf` package."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from safetensors.torch import load_file

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name.replace("model.layers.", "blk.")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of query or key as llama.cpp's converter puts them."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(
    directory: Path, path: Path, kind: str = "F32", *, shards: int = 1, **extra: object
) -> Path:
    """The Llama in `directory` with matrices of type `kind`; returns the (first) file.

    `extra` are more metadata, texts and numbers, with dots in their names as double underscores.
    """
    config = json.loads((directory / "config.json").read_text())
    largest = -(-len(load_file(directory / "model.safetensors")) // shards)
    writer = gguf.GGUFWriter(path, "llama", split_max_tensors=largest if shards > 1 else 0)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    _add_tokenizer(writer, directory)
    for key, value in extra.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32
        add(key.replace("__", "."), value)
    for name, tensor in load_file(directory / "model.safetensors").items():
        weight = tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:
            weight = interleaved(weight, heads if "q_proj" in name else kv_heads)
        if weight.ndim == 1 or kind == "F32":
            writer.add_tensor(gguf_name(name), weight)
            continue
        stored = GGMLQuantizationType[kind]
        writer.add_tensor(gguf_name(name), gguf.quantize(weight, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if shards == 1 else path.with_name(f"{path.stem}-00001-of-{shards:05}.gguf")


def _add_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> None:
    stored = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    vocabulary = stored["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    special = {token["content"] for token in stored["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in special else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in stored["model"]["merges"]])
    writer.add_eos_token_id(vocabulary[settings["eos_token"]])
    writer.add_chat_template(settings["chat_template"])


def dequantized(directory: Path, kind: str) -> dict[str, torch.Tensor]:
    """The directory's tensors as a file of type `kind` holds them, by Hugging Face's names."""
    stored = GGMLQuantizationType[kind]
    return {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(t.float().numpy(), stored), stored))
        if t.ndim > 1
        else t.float()
        for name, t in load_file(directory / "model.safetensors").items()
    }
