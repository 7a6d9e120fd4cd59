"""Models of random weights in well-known shapes, written as Hugging Face directories."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file


@dataclass(frozen=True)
class Shape:
    """A Llama- or Qwen3-like decoder in bfloat16."""

    architecture: str
    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 128
    context: int = 16384

    @property
    def layer_weights(self) -> int:
        """Weights of the layers' matrices: two operations each for every token."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_weights(self) -> int:
        """Weights of the head, read once a step for all tokens that are sampled."""
        return self.vocab_size * self.hidden

    def attention_operations(self, tokens: int) -> int:
        """Of a causal prefill: two products, half of each masked."""
        return 2 * self.layers * self.heads * self.head_dim * tokens**2

    def training_operations(self, length: int, frozen: bool) -> int:
        """Of a token in rows of `length`, as MFU counts them (arXiv:2204.02311, appendix B): frozen
        weights have no gradient; dequantizing and recomputing do not count.
        """
        weights = (4 if frozen else 6) * (self.layer_weights + self.head_weights)
        return weights + 12 * self.layers * self.heads * self.head_dim * length

    def config(self) -> dict:
        return {
            "architectures": [self.architecture],
            "model_type": self.architecture.removesuffix("ForCausalLM").lower(),
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "torch_dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": None,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of the checkpoint."""
        yield "model.embed_tokens.weight", (self.vocab_size, self.hidden)
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            yield at + "self_attn.q_proj.weight", (query, self.hidden)
            yield at + "self_attn.k_proj.weight", (key, self.hidden)
            yield at + "self_attn.v_proj.weight", (key, self.hidden)
            yield at + "self_attn.o_proj.weight", (self.hidden, query)
            yield at + "mlp.gate_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.up_proj.weight", (self.intermediate, self.hidden)
            yield at + "mlp.down_proj.weight", (self.hidden, self.intermediate)
            yield at + "input_layernorm.weight", (self.hidden,)
            yield at + "post_attention_layernorm.weight", (self.hidden,)
            if self.architecture == "Qwen3ForCausalLM":
                yield at + "self_attn.q_norm.weight", (self.head_dim,)
                yield at + "self_attn.k_norm.weight", (self.head_dim,)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab_size, self.hidden)


LLAMA_8B = Shape("LlamaForCausalLM", 128_256, 4096, 14_336, 32, 32, 8, tied=False)
QWEN3_06B = Shape("Qwen3ForCausalLM", 151_936, 1024, 3072, 28, 16, 8, tied=True)
TINY = Shape("LlamaForCausalLM", 512, 64, 128, 2, 4, 2, tied=False, head_dim=16, context=512)


def write_model(shape: Shape, directory: Path, device: str) -> Path:
    """Normal(0, 0.02) matrices and norms of 1; drawn on `device`, as drawing takes longest."""
    if (directory / "config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator(device).manual_seed(0)
    weights = {}
    for name, size in shape.tensors():
        tensor = torch.ones(size, dtype=torch.bfloat16, device=device)
        if len(size) == 2:
            tensor.normal_(0.0, 0.02, generator=generator)
        weights[name] = tensor.cpu()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(shape.config()))
    return directory
