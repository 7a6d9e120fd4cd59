"""Losses compared with transformers' logits and DPO's own formula."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hagane.lora.config import AdapterConfig
from hagane.lora.files import save_adapter
from hagane.lora.merge import merge_directory
from hagane.lora.train import attach, factors
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.objective import dpo_loss, supervised_loss
from hagane.weights.load import load_model
from transformers import AutoModelForCausalLM

CONFIG = AdapterConfig(rank=4, alpha=8.0)
BETA = 0.3


def sequence(length: int, prompt: int) -> MaskedSequence:
    tokens = np.random.default_rng(length).integers(5, 300, length).astype(np.int32)
    return MaskedSequence(tokens, np.arange(length) >= prompt)


@pytest.fixture
def adapted(tiny_model_dir, tmp_path):
    """Our model with an adapter that does something, and transformers' merged with it."""
    model, _ = load_model(tiny_model_dir, device="cpu", dtype=torch.float32, quantization=None)
    attach(model, CONFIG, torch.Generator().manual_seed(0))
    for _, b in factors(model, CONFIG).values():
        torch.nn.init.normal_(b, 0.0, 0.1)
    save_adapter(tmp_path / "adapter", CONFIG, factors(model, CONFIG))
    merge_directory(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    return model, AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


@torch.no_grad()
def logprob(model, of: MaskedSequence) -> torch.Tensor:
    ids = torch.from_numpy(of.tokens).long()
    scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    each = scores[:-1].gather(1, ids[1:, None])[:, 0]
    return each[torch.from_numpy(of.loss_mask[1:])].sum()


def test_supervised_loss(adapted):
    model, theirs = adapted
    sequences = [sequence(9, 4), sequence(20, 1), sequence(5, 3)]
    loss = supervised_loss(model, [Example((s,), b"") for s in sequences], BETA)
    wanted = -sum(logprob(theirs, s) for s in sequences)
    torch.testing.assert_close(loss.total.detach(), wanted, atol=1e-3, rtol=1e-5)
    assert loss.tokens == 5 + 19 + 2


def test_dpo_loss(adapted, tiny_model_dir):
    model, theirs = adapted
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    pairs = [Example((sequence(9, 4), sequence(12, 4)), b""),
             Example((sequence(20, 8), sequence(10, 8)), b"")]  # fmt: skip
    before = copy.deepcopy([b.detach() for _, b in factors(model, CONFIG).values()])
    loss = dpo_loss(model, pairs, BETA)
    wanted = torch.zeros(())
    for pair in pairs:
        gains = [logprob(theirs, s) - logprob(base, s) for s in pair.sequences]
        wanted -= torch.nn.functional.logsigmoid(BETA * (gains[0] - gains[1]))
    torch.testing.assert_close(loss.total.detach(), wanted, atol=1e-4, rtol=1e-4)
    loss.total.backward()
    # One small step down the slope prefers the preferred more.
    with torch.no_grad():
        for (_, b), old in zip(factors(model, CONFIG).values(), before, strict=True):
            b.copy_(old - 1e-4 * b.grad)
        assert dpo_loss(model, pairs, BETA).total < loss.total
