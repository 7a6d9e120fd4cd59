"""Llama under other names: what is read of these families is a Llama, and is saved as one.

InternLM 2 and 3 (Shanghai AI Laboratory, 2024, arXiv:2403.17297), Baichuan 2 (2023,
arXiv:2309.10305), EXAONE 3 (LG AI Research, 2024, arXiv:2408.03541). Their code is not in
transformers, or was not; none is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hagane.models.config import ModelConfig
from hagane.models.families.keys import Epsilon, Found, Keys, Size
from hagane.models.families.llama import llama
from hagane.models.layouts import Layout
from hagane.system.shapes import shaped

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
# Of repositories with code of their own.
_CODE = ("auto_map",)
_INTERNLM2 = Layout(
    outer={"model.embed_tokens": "model.tok_embeddings", "lm_head": "output"},
    names={
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
    },
    joint="attention.wqkv",
    groups="kv_heads",
)
_BAICHUAN2 = Layout(joint="self_attn.W_pack", unit_head=True)
_EXAONE = Layout(
    outer={"model.embed_tokens": "transformer.wte", "model.norm": "transformer.ln_f"},
    layer="transformer.h",
    names={
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.o_proj": "attn.attention.out_proj",
        "self_attn": "attn.attention",
        "mlp.gate_proj": "mlp.c_fc_0",
        "mlp.up_proj": "mlp.c_fc_1",
        "mlp.down_proj": "mlp.c_proj",
    },
)


class InternKeys(Keys, frozen=True):
    bias: bool = False
    qkv_bias: bool = False


def internlm2(found: Found[InternKeys]) -> ModelConfig:
    own = {"attention_bias": found.keys.bias, **_static(found)}
    return replace(_as_llama(found, own), layout=_INTERNLM2)


def internlm3(found: Found[InternKeys]) -> ModelConfig:
    keys = found.keys
    biased = keys.bias or bool(keys.mlp_bias)
    if biased != (keys.qkv_bias or bool(keys.attention_bias)):
        raise found.error("qkv_bias", "that differs from bias is not supported")
    return _as_llama(found, {"attention_bias": biased, "mlp_bias": biased, **_static(found)})


class BaichuanKeys(Keys, frozen=True, kw_only=True):
    max_position_embeddings: Size | None = None  # type: ignore[assignment]


def baichuan2(found: Found[BaichuanKeys]) -> ModelConfig:
    """The head's rows have the length 1. The 13B model's positions are biases of scores."""
    if found.keys.max_position_embeddings is None:
        raise found.error("max_position_embeddings", "is not given: ALiBi (13B) is not supported")
    return replace(_as_llama(found, {}), layout=_BAICHUAN2)


class ExaoneKeys(Keys, frozen=True, kw_only=True):
    num_hidden_layers: Size | None = None  # type: ignore[assignment]
    num_layers: Size | None = None
    activation_function: str = "silu"
    layer_norm_epsilon: Epsilon = 1e-5


def exaone(found: Found[ExaoneKeys]) -> ModelConfig:
    keys = found.keys
    own = {
        "num_hidden_layers": keys.num_layers or keys.num_hidden_layers,
        "hidden_act": keys.activation_function,
        "rms_norm_eps": keys.layer_norm_epsilon,
    }
    return replace(_as_llama(found, own), layout=_EXAONE)


def _as_llama(found: Found[Any], own: Mapping[str, Any]) -> ModelConfig:
    kept = {key: value for key, value in found.raw.items() if key not in _CODE}
    raw: dict[str, Any] = {**kept, **own, **_LLAMA}
    return llama(Found(shaped(raw, Keys, found.source), raw, found.source))


def _static(found: Found[Any]) -> dict[str, Any]:
    """Keys without a dynamic rotation, which is plain up to the model's own context."""
    scaling = found.raw.get("rope_scaling") or found.raw.get("rope_parameters")
    if not isinstance(scaling, dict):
        return {}
    if scaling.get("rope_type", scaling.get("type")) != "dynamic":
        return {}
    theta = scaling.get("rope_theta", found.raw.get("rope_theta", 10000.0))
    return {"rope_scaling": None, "rope_parameters": None, "rope_theta": theta}
