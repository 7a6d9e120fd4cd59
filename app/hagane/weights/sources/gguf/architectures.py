"""GGUF's architectures: their Hugging Face configuration and the names of their tensors.

A model asks for tensors by their Hugging Face names and is configured by a Hugging Face
`config.json`; each `Architecture` translates both. To read another one, add a line to
`ARCHITECTURES` once its family is among the models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hagane.weights.sources.gguf.eos import end_token_ids
from hagane.weights.sources.gguf.file import GGUFModel
from hagane.weights.sources.gguf.metadata import Metadata

_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    # Where files have one matrix for several, or another name.
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    # Mixtures: the router, all experts, and the one that all tokens have.
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.w3": "ffn_up_exps",
    "block_sparse_moe.experts.w2": "ffn_down_exps",
}
# Norms of what blocks add.
_OUTPUT_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_GLM_NORMS = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}
_EXPERT = re.compile(r"(model\.layers\.\d+\.\w+\.experts\.)(\d{1,6})\.(.+)")
_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
# Tensors that only repeat the configuration.
CONFIGURATION_TENSORS = frozenset(
    {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
)


def without_number(name: str) -> tuple[str, int | None]:
    """The Hugging Face name of an expert's tensor without its number, and that; None for others."""
    match = _EXPERT.fullmatch(name)
    return (match[1] + match[3], int(match[2])) if match else (name, None)


def _nothing(_: Metadata) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Architecture:
    """How one of GGUF's architectures reads as one of Hugging Face's.

    `permuted`: rows of query and key are stored with the two halves of each head interleaved.
    `norm_offset`: what norms' stored weights have been raised by. `writable`: whether `writer`
    knows all that the file must say. `mixture` is the one of Hugging Face's that a file with
    experts reads as, where others have none.
    """

    name: str
    permuted: bool = False
    mixture: str = ""
    norm_offset: float = 0.0
    writable: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    config: Callable[[Metadata], dict[str, Any]] = _nothing

    def tensor_name(self, name: str) -> str:
        """GGUF's name of the tensor that Hugging Face calls `name`."""
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            stem, _, kind = name.rpartition(".")
            return f"{_OUTER.get(stem, stem)}.{kind}"
        layer, part, kind = match.groups()
        return f"blk.{layer}.{self.names.get(part) or _LAYER.get(part, part)}.{kind}"


def _llama(metadata: Metadata) -> dict[str, Any]:
    return {
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "mlp_bias": metadata.has("blk.0.ffn_down.bias"),
    }


def _gemma(metadata: Metadata) -> dict[str, Any]:
    return {"hidden_act": None, "hidden_activation": "gelu_pytorch_tanh"}


def _gemma2(metadata: Metadata) -> dict[str, Any]:
    layers = metadata.layers()
    # Only the 27B model scales queries by something else than a head's size.
    scalar = 144 if layers == 46 else metadata.integer("attention.key_length")
    return {
        **_gemma(metadata),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: Metadata) -> dict[str, Any]:
    layers = metadata.layers()
    # Five layers with a window, then one without.
    kinds = ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)]
    return {
        **_gemma(metadata),
        "model_type": "gemma3_text",
        "sliding_window": metadata.integer("attention.sliding_window"),
        "layer_types": kinds,
        # Only the 27B model scales queries by something else than a head's size.
        "query_pre_attn_scalar": 168 if layers == 62 else metadata.integer("attention.key_length"),
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0),
        "rope_theta": metadata.number("rope.freq_base", 1e6),
    }


def _phi3(metadata: Metadata) -> dict[str, Any]:
    window = metadata.get("attention.sliding_window")
    # 0 or the context's length is none.
    context = metadata.integer("context_length")
    return {"sliding_window": window if window and window < context else None}


def _granite(metadata: Metadata) -> dict[str, Any]:
    return {
        **_llama(metadata),
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "attention_multiplier": metadata.number("attention.scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }


def _glm4(metadata: Metadata) -> dict[str, Any]:
    return {"attention_bias": metadata.has("blk.0.attn_q.bias")}


def _starcoder2(metadata: Metadata) -> dict[str, Any]:
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "use_bias": metadata.has("blk.0.attn_q.bias"),
    }


def _stablelm(metadata: Metadata) -> dict[str, Any]:
    return {
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "use_qkv_bias": metadata.has("blk.0.attn_q.bias"),
        "qk_layernorm": metadata.has("blk.0.attn_q_norm.weight"),
        "use_parallel_residual": not metadata.has("blk.0.ffn_norm.weight"),
    }


def _seed(metadata: Metadata) -> dict[str, Any]:
    return {
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "attention_out_bias": metadata.has("blk.0.attn_output.bias"),
    }


def _ernie(metadata: Metadata) -> dict[str, Any]:
    return {"use_bias": metadata.has("blk.0.attn_q.bias")}


def _experts(metadata: Metadata) -> dict[str, Any]:
    """The keys of a mixture, under the names that families have for them."""
    count = metadata.integer("expert_count")
    inner = metadata.integer("expert_feed_forward_length", metadata.integer("feed_forward_length"))
    return {
        "num_experts": count,
        "num_local_experts": count,
        "num_experts_per_tok": metadata.integer("expert_used_count"),
        "moe_intermediate_size": inner,
        "norm_topk_prob": False,
    }


def _mixtral(metadata: Metadata) -> dict[str, Any]:
    return _llama(metadata) if metadata.get("expert_count") is None else _experts(metadata)


def _qwen2_moe(metadata: Metadata) -> dict[str, Any]:
    shared = metadata.rows("blk.0.ffn_up_shexp.weight")
    return {**_experts(metadata), "shared_expert_intermediate_size": shared}


def _qwen3_moe(metadata: Metadata) -> dict[str, Any]:
    return {**_experts(metadata), "norm_topk_prob": True}


ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        permuted=True,
        mixture="MixtralForCausalLM",
        writable=True,
        config=_mixtral,
    ),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", config=_qwen2_moe),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", config=_qwen3_moe),
    "olmoe": Architecture("OlmoeForCausalLM", config=_experts),
    "qwen2": Architecture("Qwen2ForCausalLM", writable=True),
    "qwen3": Architecture("Qwen3ForCausalLM", writable=True),
    "gemma": Architecture("GemmaForCausalLM", norm_offset=1.0, config=_gemma),
    "gemma2": Architecture(
        "Gemma2ForCausalLM", norm_offset=1.0, names=_OUTPUT_NORMS, config=_gemma2
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", norm_offset=1.0, names=_OUTPUT_NORMS, config=_gemma3
    ),
    "phi3": Architecture("Phi3ForCausalLM", config=_phi3),
    "olmo2": Architecture("Olmo2ForCausalLM", names=_OUTPUT_NORMS),
    "granite": Architecture("GraniteForCausalLM", permuted=True, config=_granite),
    "smollm3": Architecture("SmolLM3ForCausalLM", permuted=True, config=_llama),
    "glm4": Architecture("Glm4ForCausalLM", names=_GLM_NORMS, config=_glm4),
    "starcoder2": Architecture("Starcoder2ForCausalLM", config=_starcoder2),
    "stablelm": Architecture("StableLmForCausalLM", config=_stablelm),
    "seed_oss": Architecture(
        "SeedOssForCausalLM",
        names={"post_attention_layernorm": "post_attention_norm"},
        config=_seed,
    ),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", config=_ernie),
}


def architecture(model: GGUFModel) -> Architecture:
    """Raises ModelError naming those that are read."""
    name = Metadata(model).architecture
    if name not in ARCHITECTURES:
        raise model.metadata.error(
            f"has the architecture {name!r}; read are {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def huggingface_config(model: GGUFModel) -> dict[str, Any]:
    """The `config.json` of the model. Raises ModelError naming the metadata key at fault."""
    found, metadata = architecture(model), Metadata(model)
    hidden, heads = metadata.integer("embedding_length"), metadata.integer("attention.head_count")
    kv_heads = metadata.integer("attention.head_count_kv", heads)
    head_dim = metadata.head_dim(hidden, heads, kv_heads)
    experts = found.mixture and metadata.get("expert_count")
    floats = all(info.type.name == "F32" for _, info in model.tensors.values())
    return {
        "architectures": [found.mixture if experts else found.name],
        "vocab_size": metadata.rows("token_embd.weight"),
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer("context_length"),
        "rms_norm_eps": metadata.number("attention.layer_norm_rms_epsilon", 1e-5),
        "tie_word_embeddings": not metadata.has("output.weight"),
        "torch_dtype": "float32" if floats else "bfloat16",
        "bos_token_id": model.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": end_token_ids(model.metadata),
        **_rope(metadata, head_dim),
        **found.config(metadata),
    }


def _rope(metadata: Metadata, head_dim: int) -> dict[str, Any]:
    turned = metadata.integer("rope.dimension_count", head_dim)
    theta = metadata.number("rope.freq_base", 10000.0)
    plain = {"rope_theta": theta, "partial_rotary_factor": turned / head_dim}
    if metadata.has("rope_freqs.weight"):
        return plain | {"rope_scaling": _llama3_scaling(metadata, turned, theta)}
    if metadata.has("rope_factors_long.weight"):
        return plain | {"rope_scaling": _longrope_scaling(metadata, turned)}
    kind = metadata.get("rope.scaling.type") or "none"
    if kind == "none":
        return plain
    if kind not in ("linear", "yarn"):
        raise metadata.file.error(f"has the rope.scaling.type {kind!r}; read are linear and yarn")
    scaling: dict[str, Any] = {"rope_type": kind, "factor": metadata.number("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.integer(
            "rope.scaling.original_context_length"
        )
        if metadata.get("rope.scaling.attn_factor") is not None:
            scaling["attention_factor"] = metadata.number("rope.scaling.attn_factor")
    return plain | {"rope_scaling": scaling}


def _longrope_scaling(metadata: Metadata, turned: int) -> dict[str, Any]:
    """Phi-3's scaling, whose divisors of short and long contexts are tensors."""
    scaling: dict[str, Any] = {
        "rope_type": "longrope",
        "short_factor": metadata.floats("rope_factors_short.weight", turned // 2),
        "long_factor": metadata.floats("rope_factors_long.weight", turned // 2),
        "original_max_position_embeddings": metadata.integer(
            "rope.scaling.original_context_length"
        ),
    }
    if metadata.get("rope.scaling.attn_factor") is not None:
        scaling["attention_factor"] = metadata.number("rope.scaling.attn_factor")
    return scaling


def _llama3_scaling(metadata: Metadata, head_dim: int, theta: float) -> dict[str, Any]:
    """Llama 3's scaling, which GGUF stores as the divisor of each frequency.

    All of these models have the same bounds; the divisors are computed again to be sure.
    """
    file = metadata.file
    stored = np.array(metadata.floats("rope_freqs.weight", head_dim // 2))
    factor, low, high, context = float(stored[-1]), 1.0, 4.0, 8192
    wavelength = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = ((context / wavelength - low) / (high - low)).clip(0, 1)
    if not factor > 0 or not np.allclose(stored, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise file.error("has rope_freqs.weight that are not Llama 3's: they are not supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
