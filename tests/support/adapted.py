"""An adapted tiny model beside transformers' own, and log-probabilities of the latter."""

from __future__ import annotations

import numpy as np
import torch
from hagane.lora.config import AdapterConfig
from hagane.lora.files import save_adapter
from hagane.lora.merge import merge_directory
from hagane.lora.train import attach, factors
from hagane.training.finetune.masking import MaskedSequence
from hagane.weights.load import load_model
from transformers import AutoModelForCausalLM

CONFIG = AdapterConfig(rank=4, alpha=8.0)


def sequence(length: int, prompt: int) -> MaskedSequence:
    """Random tokens, of which those after the first `prompt` are trained."""
    tokens = np.random.default_rng(length).integers(5, 300, length).astype(np.int32)
    return MaskedSequence(tokens, np.arange(length) >= prompt)


def adapted_pair(base, directory):
    """Our model with an adapter that does something, and transformers' merged with it."""
    model, _ = load_model(base, device="cpu", dtype=torch.float32, quantization=None)
    attach(model, CONFIG, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for _, b in factors(model, CONFIG).values():
        torch.nn.init.normal_(b, 0.0, 0.1, generator=generator)
    save_adapter(directory / "adapter", CONFIG, factors(model, CONFIG))
    merge_directory(base, directory / "adapter", directory / "merged")
    return model, AutoModelForCausalLM.from_pretrained(directory / "merged")


@torch.no_grad()
def token_logprobs(model, of: MaskedSequence) -> torch.Tensor:
    """What transformers' model gives to the trained tokens."""
    ids = torch.from_numpy(of.tokens).long()
    scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    each = scores[:-1].gather(1, ids[1:, None])[:, 0]
    return each[torch.from_numpy(of.loss_mask[1:])]


def logprob(model, of: MaskedSequence) -> torch.Tensor:
    """The joint log-probability of the trained tokens."""
    return token_logprobs(model, of).sum()
