"""GPT-2 (OpenAI, 2019) and GPT-NeoX (EleutherAI, 2022, arXiv:2204.06745; Pythia): LayerNorm, GELU.

GPT-2 adds an embedding of each position; GPT-NeoX turns a quarter of each head, and gives both
blocks of a layer the same input.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys, Size
from hagane.models.families.llama import base
from hagane.models.layouts import Layout

_GPT2 = Layout(
    outer={
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
    },
    layer="transformer.h",
    names={
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    joint="attn.c_attn",
    others=(("transformer.", ""),),
    transposed=("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    written=True,
)
_NEOX = Layout(
    outer={
        "model.embed_tokens": "gpt_neox.embed_in",
        "model.norm": "gpt_neox.final_layer_norm",
        "lm_head": "embed_out",
    },
    layer="gpt_neox.layers",
    names={
        "self_attn.o_proj": "attention.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    joint="attention.query_key_value",
    groups="heads",
    written=True,
)


class Gpt2Keys(msgspec.Struct, frozen=True):
    vocab_size: Size = 50257
    n_positions: Size = 1024
    n_embd: Size = 768
    n_layer: Size = 12
    n_head: Size = 12
    n_inner: Size | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: Epsilon = 1e-5
    tie_word_embeddings: bool | None = True
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    bos_token_id: int | list[int] | None = 50256
    eos_token_id: int | list[int] | None = 50256
    dtype: str | None = None
    torch_dtype: str | None = None


def gpt2(found: Found[Any]) -> ModelConfig:
    keys: Gpt2Keys = found.keys
    if keys.scale_attn_by_inverse_layer_idx or not keys.scale_attn_weights:
        raise found.error("scale_attn_weights", "and its like are not supported")
    own = Keys(
        vocab_size=keys.vocab_size,
        hidden_size=keys.n_embd,
        intermediate_size=keys.n_inner or 4 * keys.n_embd,
        num_hidden_layers=keys.n_layer,
        num_attention_heads=keys.n_head,
        max_position_embeddings=keys.n_positions,
        hidden_act=keys.activation_function,
        tie_word_embeddings=keys.tie_word_embeddings,
        bos_token_id=keys.bos_token_id,
        eos_token_id=keys.eos_token_id,
        dtype=keys.dtype,
        torch_dtype=keys.torch_dtype,
    )
    config = _gpt(replace(found, keys=own), keys.layer_norm_epsilon, biased=True)
    specs = tuple(replace(spec, rope=None) for spec in config.layer_specs)
    return replace(config, layout=_GPT2, position_embeddings=True, layer_specs=specs)


class NeoxKeys(Keys, frozen=True):
    hidden_act: str | None = "gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_bias: bool | None = True
    use_parallel_residual: bool = True


def gpt_neox(found: Found[NeoxKeys]) -> ModelConfig:
    keys, raw = found.keys, found.raw
    older = {
        "rope_theta": raw.get("rotary_emb_base") or 10000.0,
        "partial_rotary_factor": raw.get("rotary_pct") or 0.25,
    }
    known = replace(found, raw=older | dict(raw))
    return replace(
        _gpt(known, keys.layer_norm_eps, biased=bool(keys.attention_bias)),
        layout=_NEOX,
        norms="parallel" if keys.use_parallel_residual else "before",
        raw=raw,
    )


def _gpt(found: Found[Any], epsilon: float, *, biased: bool) -> ModelConfig:
    return replace(
        base(found),
        norm="layer",
        norm_bias=True,
        norm_eps=epsilon,
        gated=False,
        qkv_bias=biased,
        output_bias=biased,
        mlp_bias=True,
    )
