"""Llama, and the families whose blocks are Llama's: what others differ from.

Touvron et al., 2023, arXiv:2302.13971. Mistral adds a window, Qwen2 biases and Qwen3 norms of
queries and keys.
"""

from __future__ import annotations

from dataclasses import replace

from hagane.models.config import Activation, LayerSpec, ModelConfig
from hagane.models.families.keys import Found, Keys

_ACTIVATIONS: dict[str | None, Activation] = {
    None: "silu",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def base(found: Found[Keys]) -> ModelConfig:
    """Llama's block without biases and windows, with the sizes and the rotation that were read."""
    keys = found.keys
    activation = _ACTIVATIONS.get(found.activation)
    if activation is None:
        known = ", ".join(name for name in _ACTIVATIONS if name)
        raise found.error("hidden_act", f"is {found.activation!r}; supported are {known}")
    rope = found.rope()
    return ModelConfig(
        architecture=found.raw["architectures"][0],
        model_type=str(found.raw.get("model_type") or ""),
        vocab_size=keys.vocab_size,
        hidden_size=keys.hidden_size,
        intermediate_size=keys.intermediate_size,
        layers=keys.num_hidden_layers,
        heads=keys.num_attention_heads,
        kv_heads=found.kv_heads,
        head_dim=found.head_dim,
        max_position_embeddings=keys.max_position_embeddings,
        rope=rope,
        layer_specs=(LayerSpec(None, rope),) * keys.num_hidden_layers,
        norm_eps=found.epsilon,
        activation=activation,
        tie_word_embeddings=bool(keys.tie_word_embeddings),
        eos_token_ids=found.token_ids(keys.eos_token_id),
        bos_token_id=next(iter(found.token_ids(keys.bos_token_id)), None),
        dtype=found.dtype,
        quantization=found.quantization,
        raw=found.raw,
    )


def llama(found: Found[Keys]) -> ModelConfig:
    keys = found.keys
    biased = bool(keys.attention_bias)
    return replace(base(found), qkv_bias=biased, output_bias=biased, mlp_bias=bool(keys.mlp_bias))


def windowed(found: Found[Keys], *, period: int | None = None) -> ModelConfig:
    """As `base`, with a window in the layers that `layer_types` or the period names."""
    config = base(found)
    return replace(
        config, layer_specs=found.layers(found.kinds(period=period), config.rope, config.rope)
    )


class QwenKeys(Keys, frozen=True):
    use_sliding_window: bool | None = None
    max_window_layers: int = 28


def qwen2(found: Found[QwenKeys]) -> ModelConfig:
    return replace(_qwen(found), qkv_bias=True)


def qwen3(found: Found[QwenKeys]) -> ModelConfig:
    biased = bool(found.keys.attention_bias)
    return replace(_qwen(found), qk_norm="head", qkv_bias=biased, output_bias=biased)


def _qwen(found: Found[QwenKeys]) -> ModelConfig:
    config, keys = base(found), found.keys
    if not keys.use_sliding_window or not keys.sliding_window:
        return config
    kinds = found.kinds()
    if keys.layer_types is None:
        kinds[: max(keys.max_window_layers, 0)] = ["full_attention"] * min(
            max(keys.max_window_layers, 0), config.layers
        )
    return replace(config, layer_specs=found.layers(kinds, config.rope, config.rope))
