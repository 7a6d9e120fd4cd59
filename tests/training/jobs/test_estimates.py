"""Estimates of memory compared with the memory of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hagane.models.families import read_config
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.model import load_finetune_model
from hagane.training.finetune.objective import supervised_loss
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan
from hagane.training.jobs import estimates
from torch.autograd.graph import saved_tensors_hooks
from transformers import LlamaConfig, LlamaForCausalLM

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 4096,
    "intermediate_size": 14_336, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "eos_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
SMALL = LLAMA_8B | {
    "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 1792, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
LENGTH = 480  # as no width of the model


def spec_of(model: Path) -> FineTuneSpec:
    return FineTuneSpec(
        model=model, training_file=model / "unread", dtype="bfloat16", device="cpu",
        quantize="int4", rank=16,
    )  # fmt: skip


def test_time_follows_from_work_and_threads(tmp_path):
    config = read_config(SMALL)
    plan = TrainingPlan(
        epochs=2,
        batch_size=4,
        steps=100,
        warmup_steps=3,
        learning_rate=1e-4,
        beta=0.1,
        checkpoint_every=50,
    )

    def seconds(**changes):
        held_out = changes.pop("held_out", 0)
        spec = spec_of(tmp_path).model_copy(update={"quantize": "none", "threads": 2} | changes)
        # Less the start, which is the same for all.
        nothing = estimates.seconds(config, spec, plan, 0, 0)
        return estimates.seconds(config, spec, plan, 10_000, held_out) - nothing

    assert seconds(threads=4) == pytest.approx(seconds() / 2)
    assert seconds(full=True) == pytest.approx(seconds() * 1.5)
    assert seconds(method="dpo") == pytest.approx(seconds() * 1.5)
    # Forward only, before the first step and at both checkpoints; an epoch of training is as much.
    assert seconds(held_out=10_000) == pytest.approx(seconds() * 1.75)
    assert seconds(quantize="int8") == seconds(quantize="int4") < seconds()


def test_reinforcement_holds_the_served_weights_on_a_cpu_alone(monkeypatch, tmp_path):
    config = read_config(LLAMA_8B)

    def memory(**changes):
        spec = spec_of(tmp_path).model_copy(update={"method": "reinforcement"} | changes)
        return estimates.memory(config, spec, 1024, checkpointing=True)

    on_cpu, with_dora = memory(), memory(dora=True)
    monkeypatch.setattr(estimates, "cuda_driver_present", lambda: True)
    on_gpu = memory(device="cuda")
    served = estimates.answering(config, spec_of(tmp_path), 1) - estimates.ANSWERING_CACHE
    assert on_cpu - on_gpu == pytest.approx(served, abs=2)
    assert with_dora < on_cpu and memory() == on_cpu
    # Attention repeats prompts.
    supervised = estimates.memory(config, spec_of(tmp_path), 1024, checkpointing=True)
    rows = 2 * estimates.REPEATED_TOKENS * 4 * (32 + 8) * 128
    assert on_gpu - supervised == pytest.approx(rows, abs=2)


@pytest.mark.parametrize("length", [512, 1024])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_lora_on_8b_in_int4_fits_24_gb(length, checkpointing):
    config = read_config(LLAMA_8B)
    found = estimates.memory(config, spec_of(Path()), length, checkpointing=checkpointing)
    # The weights alone: 7 G of 4 bits, and an embedding and a head of 0.5 G each in 16.
    assert 5.6e9 < found < 24e9


def test_the_estimate_holds_what_a_step_on_torch_s_operators_does(tmp_path):
    """As a GPU has it: weights, what is kept for the backward pass, gradients and moments."""
    config = read_config(SMALL)
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(tmp_path)
    made = load_finetune_model(spec_of(tmp_path), LENGTH, checkpointing=False, native=False)
    weights = storages([*made.transformer.parameters(), *made.transformer.buffers()])
    tokens = np.arange(LENGTH, dtype=np.int32)
    example = Example((MaskedSequence(tokens, np.ones(LENGTH, dtype=bool)),), b"")
    kept: list[torch.Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t), made.autocast():
        supervised_loss(made.transformer, [example, example])
    # No weight in 16 bits among them: the backward pass dequantizes its 4 again.
    kept = [t for t in kept if t.untyped_storage().data_ptr() not in weights]
    assert all(
        {LENGTH, 2 * LENGTH} & {*t.shape} for t in kept if t.numel() >= SMALL["hidden_size"] * 128
    )
    # A gradient and two moments of each of the adapter's weights.
    trained = 3 * sum(p.nbytes for p in made.parameters())
    held = sum((weights | storages(kept)).values()) + trained
    found = estimates.memory(config, spec_of(tmp_path), LENGTH, checkpointing=False)
    # It also has the logits and a CPU's transposed weights.
    assert 0.3 * found < held < found


def storages(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Bytes by address: views count once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
