"""Write a model of equal function whose weights are off the grid of an earlier quantization.

Usage: python benchmarks/off_grid.py MODEL TARGET

Channels between a norm and the products that read it, between up and down projection and between
values and outputs are multiplied by random factors of 0.78 to 1.28 on one side and divided by them
on the other. MODEL is a directory of a Qwen2 or Llama in one safetensors file.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


class Weights(dict[str, Tensor]):
    def multiply(self, name: str, factors: Tensor) -> None:
        if name in self:
            self[name] = (self[name].float() * factors).to(self[name].dtype)


def change(weights: Weights, config: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(7)

    def factors(count: int) -> Tensor:
        return torch.exp((2 * torch.rand(count, generator=generator) - 1) * math.log(1.28))

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm, readers in (
            ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        ):
            scale = factors(hidden)
            weights.multiply(f"{prefix}.{norm}.weight", scale)
            for reader in readers:
                weights.multiply(f"{prefix}.{reader}.weight", 1 / scale)
        scale = factors(inner)
        weights.multiply(f"{prefix}.mlp.up_proj.weight", scale[:, None])
        weights.multiply(f"{prefix}.mlp.down_proj.weight", 1 / scale)
        scale = factors(kv_heads * head_dim)
        weights.multiply(f"{prefix}.self_attn.v_proj.weight", scale[:, None])
        weights.multiply(f"{prefix}.self_attn.v_proj.bias", scale)
        shared = scale.view(kv_heads, 1, head_dim).expand(-1, heads // kv_heads, -1).reshape(-1)
        weights.multiply(f"{prefix}.self_attn.o_proj.weight", 1 / shared)
    if "lm_head.weight" in weights:
        scale = factors(hidden)
        weights.multiply("model.norm.weight", scale)
        weights.multiply("lm_head.weight", 1 / scale)


def main() -> None:
    source, target = map(Path, sys.argv[1:3])
    weights = Weights(load_file(source / "model.safetensors"))
    change(weights, json.loads((source / "config.json").read_text()))
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, target / file.name)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
