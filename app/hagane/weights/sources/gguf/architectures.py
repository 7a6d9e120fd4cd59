"""GGUF's architectures: their Hugging Face configuration and the names of their tensors.

A model asks for tensors by their Hugging Face names and is configured by a Hugging Face
`config.json`; each `Architecture` translates both. To read another one, add a line to
`ARCHITECTURES` once its family is among the models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hagane.weights.sources.gguf import keys, mixtures
from hagane.weights.sources.gguf.eos import end_token_ids
from hagane.weights.sources.gguf.file import GGUFModel
from hagane.weights.sources.gguf.metadata import Metadata
from hagane.weights.sources.gguf.rope import rope

_OUTER = {
    "model.embed_tokens": "token_embd",
    "model.embed_positions": "position_embd",
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
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
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
_AFTER_ATTENTION = {"post_attention_layernorm": "post_attention_norm"}
_LLAMA4 = {
    f"feed_forward.{theirs}": _LAYER[f"mlp.{ours}"]
    for theirs, ours in {
        "router": "gate",
        **{f"{part}_proj": f"{part}_proj" for part in ("gate", "up", "down")},
        **{f"experts.{part}_proj": f"experts.{part}_proj" for part in ("gate", "up", "down")},
        **{f"shared_expert.{p}_proj": f"shared_expert.{p}_proj" for p in ("gate", "up", "down")},
    }.items()
}
_LATENT = {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_b_proj": "attn_kv_b",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
}
_HUNYUAN = {
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
}
# What Granite has as one matrix, or under a name without a number's place.
_GRANITE = {
    "block_sparse_moe.router.layer": ("mlp.gate",),
    "block_sparse_moe.input_linear": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj"),
    "block_sparse_moe.output_linear": ("mlp.experts.{}.down_proj",),
    "shared_mlp.input_linear": ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
    "shared_mlp.output_linear": ("mlp.shared_expert.down_proj",),
}
# Whole names within a layer.
_PLAIN = {
    "self_attn.sinks": "attn_sinks.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
}
_PLAIN_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_NUMBERED = re.compile(r"(model\.layers\.\d+)\.(.+?)(?:\.(\d{1,6}))?\.weight")
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

    `pieces` are the matrices that files have for one of Hugging Face's, within a layer; `{}` is an
    expert's number. `permuted`: rows of query and key are stored with the two halves of each head
    interleaved. `norm_offset`: what norms' stored weights have been raised by. `writable`: whether
    `writer` knows all that the file must say. `mixture` is the one of Hugging Face's that a file
    with experts reads as, where others have none.
    """

    name: str
    permuted: bool = False
    mixture: str = ""
    norm_offset: float = 0.0
    writable: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    pieces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: Callable[[Metadata], dict[str, Any]] = _nothing

    def tensor_name(self, name: str) -> str:
        """GGUF's name of the tensor that Hugging Face calls `name`."""
        plain = _PLAIN_IN_LAYER.fullmatch(name)
        if plain is not None and plain[2] in _PLAIN:
            return f"blk.{plain[1]}.{_PLAIN[plain[2]]}"
        match = _IN_LAYER.fullmatch(name)
        if match is None:
            stem, _, kind = name.rpartition(".")
            return f"{_OUTER.get(stem, stem)}.{kind}"
        layer, part, kind = match.groups()
        return f"blk.{layer}.{self.names.get(part) or _LAYER.get(part, part)}.{kind}"

    def pieces_of(self, name: str) -> list[str]:
        """Names, as Hugging Face would have them, of what the file has for the tensor `name`."""
        match = _NUMBERED.fullmatch(name) if self.pieces else None
        if match is None or match[2] not in self.pieces:
            return [name]
        return [f"{match[1]}.{piece.format(match[3])}.weight" for piece in self.pieces[match[2]]]


ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        permuted=True,
        mixture="MixtralForCausalLM",
        writable=True,
        config=keys.mixtral,
    ),
    "qwen2moe": Architecture("Qwen2MoeForCausalLM", config=mixtures.qwen2_moe),
    "qwen3moe": Architecture("Qwen3MoeForCausalLM", config=mixtures.qwen3_moe),
    "olmoe": Architecture("OlmoeForCausalLM", config=mixtures.experts),
    "qwen2": Architecture("Qwen2ForCausalLM", writable=True),
    "qwen3": Architecture("Qwen3ForCausalLM", writable=True),
    "gemma": Architecture("GemmaForCausalLM", norm_offset=1.0, config=keys.gemma),
    "gemma2": Architecture(
        "Gemma2ForCausalLM", norm_offset=1.0, names=_OUTPUT_NORMS, config=keys.gemma2
    ),
    "gemma3": Architecture(
        "Gemma3ForCausalLM", norm_offset=1.0, names=_OUTPUT_NORMS, config=keys.gemma3
    ),
    "phi3": Architecture("Phi3ForCausalLM", config=keys.phi3),
    "olmo": Architecture("OlmoForCausalLM", permuted=True, config=keys.olmo),
    "olmo2": Architecture("Olmo2ForCausalLM", names=_OUTPUT_NORMS, config=keys.olmo2),
    "exaone": Architecture("LlamaForCausalLM", config=keys.llama),
    "exaone4": Architecture("Exaone4ForCausalLM", names=_OUTPUT_NORMS, config=keys.exaone4),
    "internlm2": Architecture("LlamaForCausalLM", permuted=True, config=keys.llama),
    "hunyuan-dense": Architecture("HunYuanDenseV1ForCausalLM", names=_HUNYUAN, config=keys.llama),
    "gpt2": Architecture("GPT2LMHeadModel", config=keys.gpt2),
    "gptneox": Architecture("GPTNeoXForCausalLM", config=keys.neox),
    "llama4": Architecture("Llama4ForCausalLM", names=_LLAMA4, config=mixtures.llama4),
    "deepseek2": Architecture("DeepseekV2ForCausalLM", names=_LATENT, config=mixtures.deepseek2),
    "gpt-oss": Architecture("GptOssForCausalLM", names=_AFTER_ATTENTION, config=mixtures.gpt_oss),
    "phimoe": Architecture("PhimoeForCausalLM", config=mixtures.phimoe),
    "granitemoe": Architecture(
        "GraniteMoeForCausalLM", permuted=True, pieces=_GRANITE, config=keys.granite_moe
    ),
    "glm4moe": Architecture("Glm4MoeForCausalLM", names=_AFTER_ATTENTION, config=mixtures.glm4_moe),
    "ernie4_5-moe": Architecture("Ernie4_5_MoeForCausalLM", config=mixtures.ernie_moe),
    "granite": Architecture("GraniteForCausalLM", permuted=True, config=keys.granite),
    "smollm3": Architecture("SmolLM3ForCausalLM", permuted=True, config=keys.llama),
    "glm4": Architecture("Glm4ForCausalLM", names=_GLM_NORMS, config=keys.glm4),
    "starcoder2": Architecture("Starcoder2ForCausalLM", config=keys.starcoder2),
    "stablelm": Architecture("StableLmForCausalLM", config=keys.stablelm),
    "seed_oss": Architecture(
        "SeedOssForCausalLM",
        names=_AFTER_ATTENTION,
        config=keys.seed,
    ),
    "ernie4_5": Architecture("Ernie4_5ForCausalLM", config=keys.ernie),
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
        **rope(metadata, head_dim),
        **found.config(metadata),
    }
