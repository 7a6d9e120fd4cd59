"""Qwen 1.5 and 2 MoE (2024), Qwen 3 MoE (2025, arXiv:2505.09388): many narrow experts.

Qwen 2 MoE has an expert of all tokens, too, with a gate of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

from msgspec import Meta

from hagane.models.config import ExpertNames, ExpertsSpec, ModelConfig, Routing
from hagane.models.families.keys import Found, Size
from hagane.models.families.llama import QwenKeys, qwen2, qwen3
from hagane.models.families.mixture import Experts, mixed

_SHARED = ExpertNames(
    shared=(
        "mlp.shared_expert.gate_proj",
        "mlp.shared_expert.up_proj",
        "mlp.shared_expert.down_proj",
    )
)


class QwenMoeKeys(QwenKeys, frozen=True):
    num_experts_per_tok: Experts = 8
    norm_topk_prob: bool | None = False
    moe_intermediate_size: Size = 768
    # Of the two names for it, the first is that of most files.
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    decoder_sparse_step: Size = 1
    mlp_only_layers: list[int] | None = None


class Qwen2MoeKeys(QwenMoeKeys, frozen=True):
    num_experts_per_tok: Experts = 4
    moe_intermediate_size: Size = 1408
    shared_expert_intermediate_size: Size = 5632
    qkv_bias: bool = True
    # 0, too, is none.
    sliding_window: Annotated[int, Meta(ge=0, le=1 << 24)] | None = None


def qwen2_moe(found: Found[Qwen2MoeKeys]) -> ModelConfig:
    keys = found.keys
    if not keys.qkv_bias:
        raise found.error("qkv_bias", "false is not supported")
    experts = replace(
        _experts(keys, 60),
        shared=keys.shared_expert_intermediate_size,
        shared_gate=True,
        names=_SHARED,
    )
    return mixed(found, qwen2(found), experts, _sparse(keys))


def qwen3_moe(found: Found[QwenMoeKeys]) -> ModelConfig:
    return mixed(found, qwen3(found), _experts(found.keys, 128), _sparse(found.keys))


def _experts(keys: QwenMoeKeys, count: int) -> ExpertsSpec:
    routing = Routing(keys.num_experts_per_tok, normalised=bool(keys.norm_topk_prob))
    count = keys.num_experts or keys.num_local_experts or count
    return ExpertsSpec(count, keys.moe_intermediate_size, routing)


def _sparse(keys: QwenMoeKeys) -> Callable[[int], bool]:
    dense = keys.mlp_only_layers or []
    return lambda layer: layer not in dense and (layer + 1) % keys.decoder_sparse_step == 0
