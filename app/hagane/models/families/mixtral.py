"""Mixtral (Mistral AI, 2024, arXiv:2401.04088): Llama with a mixture of experts in every layer."""

from __future__ import annotations

from hagane.models.config import ExpertNames, ExpertsSpec, ModelConfig, Routing
from hagane.models.families.keys import Epsilon, Found, Keys
from hagane.models.families.llama import windowed
from hagane.models.families.mixture import Experts, mixed

NAMES = ExpertNames(
    router="block_sparse_moe.gate",
    experts=(
        "block_sparse_moe.experts.{}.w1",
        "block_sparse_moe.experts.{}.w3",
        "block_sparse_moe.experts.{}.w2",
    ),
)


class MixtralKeys(Keys, frozen=True):
    rms_norm_eps: Epsilon = 1e-5
    num_local_experts: Experts = 8
    num_experts_per_tok: Experts = 2


def mixtral(found: Found[MixtralKeys]) -> ModelConfig:
    keys = found.keys
    experts = ExpertsSpec(
        keys.num_local_experts,
        keys.intermediate_size,
        Routing(keys.num_experts_per_tok),
        names=NAMES,
    )
    return mixed(found, windowed(found), experts)
