"""The supervised loss compared with transformers' logits, and its noise with the formula."""

from __future__ import annotations

import pytest
import torch
from hagane.training.finetune.examples import Example
from hagane.training.finetune.noise import embedding_noise
from hagane.training.finetune.objective import supervised_loss

from tests.support.adapted import adapted_pair, logprob, sequence


@pytest.fixture
def adapted(tiny_model_dir, tmp_path):
    return adapted_pair(tiny_model_dir, tmp_path)


def test_supervised_loss(adapted):
    model, theirs = adapted
    sequences = [sequence(9, 4), sequence(20, 1), sequence(5, 3)]
    loss = supervised_loss(model, [Example((s,), b"") for s in sequences])
    wanted = -sum(logprob(theirs, s) for s in sequences)
    torch.testing.assert_close(loss.total.detach(), wanted, atol=1e-3, rtol=1e-5)
    assert loss.tokens == 5 + 19 + 2


def test_noise_is_bounded_by_each_sequence_and_ends_with_the_block(adapted):
    model, _ = adapted
    embed, lengths = model.model.embed_tokens, [4, 16]
    ids = torch.arange(20)
    clean = embed(ids)
    with embedding_noise(model, lengths, 5.0, torch.Generator().manual_seed(0)):
        noise = embed(ids) - clean
    width = clean.shape[1]
    for part, length in zip(noise.split(lengths), lengths, strict=True):
        bound = 5.0 / (length * width) ** 0.5
        # The standard deviation of the uniform distribution.
        assert part.abs().max() <= bound * (1 + 1e-5)
        assert part.std() == pytest.approx(bound / 3**0.5, rel=0.15)
    assert torch.equal(embed(ids), clean)
