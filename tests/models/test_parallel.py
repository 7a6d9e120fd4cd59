"""The logits of a model of which two processes have a part each, against those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hagane.kernels import cpu
from hagane.models.config import Quantization
from hagane.weights.load import load_model, save_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.mixture import SHAPE
from tests.support.ranks import Case, logits, second_rank

pytestmark = pytest.mark.skipif(not cpu.available(), reason="kernels not built")

# Between them: biases of both axes, stored matrices that are several of ours, tied and divided
# tables and an odd one, norms around and side by side, routers with a correction and a shared gate.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "vocab_size": 161},
    "phi3": {"head_dim": None},
    "gemma2": {"sliding_window": 5, "query_pre_attn_scalar": 30, "final_logit_softcapping": 2.0},
    "starcoder2": {"tie_word_embeddings": True},
    "stablelm": {"use_qkv_bias": True, "use_parallel_residual": True},
    "qwen2_moe": {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                  "shared_expert_intermediate_size": 64},
    "glm4_moe": {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                 "first_k_dense_replace": 1},
}  # fmt: skip
INT8 = Quantization("int8", rotated=True)
INT4 = Quantization("int4", group_size=32, rotated=True)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    directory = tmp_path_factory.mktemp("families")
    found = [Case(_write(directory / kind, kind, changes)) for kind, changes in FAMILIES.items()]
    llama, mixture = found[0].directory, found[5].directory
    found += [Case(llama, dtype=torch.bfloat16), Case(llama, INT8), Case(llama, INT4)]
    found += [Case(mixture, INT8)]
    stored, _ = load_model(llama, device="cpu", dtype=torch.float32, quantization=None)
    save_model(stored, directory / "saved", dtype=torch.float32)
    return [*found, Case(directory / "saved")]


def _write(directory: Path, kind: str, changes: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    shape = {key: value for key, value in (SHAPE | changes).items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape))
    with torch.no_grad():
        for parameter in model.parameters():
            # Norm scales of one and zero biases would hide mistakes.
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim == 1 else 0.08))
    model.save_pretrained(directory)
    return directory


def test_logits_are_those_of_one_process(cases, tmp_path):
    cpu.start(1)
    alone = [logits(case) for case in cases]
    with second_rank(cases, tmp_path / "meeting") as group:
        together = [logits(case, group) for case in cases]
    exact = dict(zip((case.directory for case in cases[: len(FAMILIES)]), alone, strict=False))
    for case, one, two in zip(cases, alone, together, strict=True):
        whole = exact.get(case.directory, one)
        if case.quantization is None and case.dtype == torch.float32:
            assert (two - one).abs().max() < 1e-4, case
        else:
            # Scales of a rank's own weights and inputs: other errors, of the same size.
            assert (two - whole).std() < 1.5 * (one - whole).std(), case
            assert (two - one).std() > 0, case
