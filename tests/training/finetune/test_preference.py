"""DPO, ORPO and KTO compared with their own formulas on transformers' logits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hagane.lora.train import factors
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.preference import dpo_loss, kto_loss, orpo_loss, reference_point
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from tests.support.adapted import CONFIG, adapted_pair, logprob, sequence, token_logprobs

BETA = 0.3
PAIRS = [Example((sequence(9, 4), sequence(12, 4)), b""),
         Example((sequence(20, 8), sequence(10, 8)), b"")]  # fmt: skip


@pytest.fixture
def adapted(tiny_model_dir, tmp_path):
    return adapted_pair(tiny_model_dir, tmp_path)


def test_dpo_loss(adapted, tiny_model_dir):
    model, theirs = adapted
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    before = copy.deepcopy([b.detach() for _, b in factors(model, CONFIG).values()])
    loss = dpo_loss(model, PAIRS, BETA)
    wanted = torch.zeros(())
    for pair in PAIRS:
        gains = [logprob(theirs, s) - logprob(base, s) for s in pair.sequences]
        wanted -= F.logsigmoid(BETA * (gains[0] - gains[1]))
    torch.testing.assert_close(loss.total.detach(), wanted, atol=1e-4, rtol=1e-4)
    loss.total.backward()
    # One small step down the slope prefers the preferred more.
    with torch.no_grad():
        for (_, b), old in zip(factors(model, CONFIG).values(), before, strict=True):
            b.copy_(old - 1e-4 * b.grad)
        assert dpo_loss(model, PAIRS, BETA).total < loss.total


def test_orpo_loss(adapted):
    model, theirs = adapted
    loss = orpo_loss(model, PAIRS, BETA)
    wanted = torch.zeros(())
    for pair in PAIRS:
        chosen, rejected = (token_logprobs(theirs, s).double().mean() for s in pair.sequences)
        odds = [p / (1 - p) for p in (chosen.exp(), rejected.exp())]
        wanted += -chosen - BETA * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))
    torch.testing.assert_close(loss.total.detach(), wanted.float(), atol=1e-4, rtol=1e-4)


def test_kto_loss(adapted, tiny_model_dir):
    model, theirs = adapted
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    examples = [Example((sequence(9, 4),), b"", True), Example((sequence(12, 5),), b"", False),
                Example((sequence(15, 6),), b"", True)]  # fmt: skip
    mismatched = []
    for own, other in ((0, 2), (1, 0), (2, 1)):
        one, two = examples[own].sequences[0], examples[other].sequences[0]
        prompt, answer = one.tokens[~one.loss_mask], two.tokens[two.loss_mask]
        mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
        mismatched.append(MaskedSequence(np.concatenate([prompt, answer]), mask))
    reference = torch.stack([logprob(theirs, s) - logprob(base, s) for s in mismatched]).mean()
    found = reference_point(model, examples)
    assert found == pytest.approx(max(float(reference), 0.0), abs=1e-4)
    wanted = torch.zeros(())
    for example in examples:
        gain = logprob(theirs, example.sequences[0]) - logprob(base, example.sequences[0])
        sign = 1 if example.desirable else -1
        wanted += 1 - torch.sigmoid(BETA * sign * (gain - 0.2))
    total = kto_loss(model, examples, BETA, 0.2).total
    torch.testing.assert_close(total.detach(), wanted, atol=1e-4, rtol=1e-4)
    assert reference_point(model, examples[:1]) == 0
