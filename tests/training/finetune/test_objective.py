"""The supervised loss compared with transformers' logits, and its noise with the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hagane.kernels import cpu, reference
from hagane.kernels.cpu import training
from hagane.lora.train import factors
from hagane.models.attention import PackedSequences
from hagane.models.decoder import use_operations
from hagane.training.finetune.examples import Example, SoftTargets
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.noise import embedding_noise
from hagane.training.finetune.objective import distillation_loss, score, supervised_loss

from tests.support.adapted import CONFIG, adapted_pair, logprob, sequence


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


def test_distillation_loss_and_its_gradient(adapted):
    model, theirs = adapted
    generator = np.random.default_rng(0)
    examples, wanted = [], torch.zeros(())
    for length, prompt in ((9, 4), (20, 1)):
        one = sequence(length, prompt)
        places = int(one.loss_mask.sum())
        ids = np.argsort(generator.random((places, 300)), axis=1)[:, :5].astype(np.int32)
        shares = generator.dirichlet(np.ones(5), places).astype(np.float32)
        examples.append(Example((one,), b"", soft=(SoftTargets(ids, shares),)))
        tokens = torch.from_numpy(one.tokens).long()
        rows = torch.from_numpy(np.flatnonzero(one.loss_mask)) - 1
        with torch.no_grad():
            scores = theirs(input_ids=tokens[None]).logits[0].log_softmax(-1)[rows]
        soft = (scores.gather(1, torch.from_numpy(ids).long()) * torch.from_numpy(shares)).sum()
        wanted -= 0.7 * soft + 0.3 * logprob(theirs, one)
        # The same through the whole vocabulary's logits, by autograd.
        hidden = model(tokens, PackedSequences([length], tokens.device, reference))
        dense = model.logits(hidden[rows]).log_softmax(-1)
        own = (dense.gather(1, torch.from_numpy(ids).long()) * torch.from_numpy(shares)).sum()
        (-0.7 * own - 0.3 * dense.gather(1, tokens[rows + 1][:, None]).sum()).backward()
    parameters = [p for pair in factors(model, CONFIG).values() for p in pair]
    gradients = [p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    loss = distillation_loss(model, examples, 0.7)
    torch.testing.assert_close(loss.total.detach(), wanted, atol=1e-3, rtol=1e-5)
    loss.total.backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("operations", [reference, training], ids=["reference", "training"])
def test_sequences_that_share_prompts_are_scored_as_by_themselves(adapted, operations):
    """Values and gradients; prompts of one and of several answers, with gaps between trained."""
    if operations is training and not cpu.available():
        pytest.skip("the kernels were not built")
    model, _ = adapted
    use_operations(model, operations)
    first, second = sequence(12, 7), sequence(20, 1)
    answers = [sequence(length, 0).tokens for length in (5, 1, 9)]
    several = [
        MaskedSequence(np.concatenate([first.tokens[:7], tokens]), np.arange(7 + len(tokens)) >= 7)
        for tokens in answers
    ]
    several[2].loss_mask[[9, 12]] = False
    parameters = [p for pair in factors(model, CONFIG).values() for p in pair]
    found = []
    for share in (False, True):
        scores = score(model, [second, *several, first], share=share)
        scores.logprobs.square().sum().backward()
        found.append((scores.counts, scores.logprobs, [p.grad.clone() for p in parameters]))
        for parameter in parameters:
            parameter.grad = None
    (counts, logprobs, gradients), (shared_counts, shared_logprobs, shared_gradients) = found
    assert shared_counts == counts == [19, 5, 1, 7, 5]
    torch.testing.assert_close(shared_logprobs, logprobs, atol=1e-4, rtol=1e-5)
    for shared, alone in zip(shared_gradients, gradients, strict=True):
        torch.testing.assert_close(shared, alone, atol=1e-3, rtol=1e-4)
