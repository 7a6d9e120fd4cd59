"""StarCoder2 (BigCode, 2024, arXiv:2402.19173): LayerNorm, GELU without a gate, biases."""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys
from hagane.models.families.llama import windowed


class Starcoder2Keys(Keys, frozen=True):
    hidden_act: str | None = "gelu_pytorch_tanh"
    norm_epsilon: Epsilon = 1e-5
    use_bias: bool = True
    tie_word_embeddings: bool | None = True


def starcoder2(found: Found[Starcoder2Keys]) -> ModelConfig:
    biased = found.keys.use_bias
    return replace(
        windowed(found),
        norm="layer",
        norm_bias=True,
        norm_eps=found.keys.norm_epsilon,
        gated=False,
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=biased,
        names={"up_proj": "c_fc", "down_proj": "c_proj"},
    )
