"""Losses that learn from judgements: DPO, ORPO and KTO.

They compare log-probabilities of answers. The base model that DPO and KTO need is the same model
with its adapter switched off.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from hagane.lora.train import disabled
from hagane.models.decoder import Transformer
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.finetune.micro_batches import micro_batches
from hagane.training.finetune.objective import Loss, Scores, score

# Where an answer is certain, the logarithm of its odds has no bound.
_MOST_CERTAIN = -1e-6


def dpo_loss(model: Transformer, pairs: list[Example], beta: float) -> Loss:
    """-log sigmoid(beta * (gain of the preferred - gain of the other)), summed over pairs.

    A gain is the log-probability of an answer less the base model's (Rafailov et al., 2023,
    arXiv:2305.18290). Accuracy counts tokens, of both answers.
    """
    gains, own = _gains(model, [sequence for pair in pairs for sequence in pair.sequences])
    chosen, rejected = gains.view(-1, 2).unbind(1)
    total = -F.logsigmoid(beta * (chosen - rejected)).sum()
    return Loss(total, own.correct, len(own.logprobs))


def orpo_loss(model: Transformer, pairs: list[Example], beta: float) -> Loss:
    """Cross-entropy of the preferred answer - beta * log sigmoid(log of the odds ratio).

    Summed over pairs; an answer's log-probability is the mean of its tokens, and its odds are
    p / (1 - p) (Hong et al., 2024, arXiv:2403.07691). It needs no base model.
    """
    own = score(model, [s for pair in pairs for s in pair.sequences], share=True)
    means = torch.stack([each.mean() for each in own.logprobs.split(own.counts)])
    bounded = means.clamp(max=_MOST_CERTAIN)
    odds = bounded - torch.log(-torch.expm1(bounded))
    chosen, rejected = odds.view(-1, 2).unbind(1)
    total = -means.view(-1, 2)[:, 0].sum() - beta * F.logsigmoid(chosen - rejected).sum()
    return Loss(total, own.correct, len(own.logprobs))


def kto_loss(model: Transformer, examples: list[Example], beta: float, reference: float) -> Loss:
    """1 - sigmoid(beta * (gain - reference)) of answers to imitate, summed over examples.

    For those to avoid the difference has the opposite sign (Ethayarajh et al., 2024,
    arXiv:2402.01306).
    """
    gains, own = _gains(model, [sequence for e in examples for sequence in e.sequences])
    signs = torch.tensor([1.0 if e.desirable else -1.0 for e in examples], device=gains.device)
    total = (1 - torch.sigmoid(beta * signs * (gains - reference))).sum()
    return Loss(total, own.correct, len(own.logprobs))


@torch.no_grad()
def reference_point(model: Transformer, examples: list[Example]) -> float:
    """KTO's estimate of how far the model is from its base: a mean gain, at least 0.

    It is that of prompts with the answers of their neighbours, which say nothing about whether an
    answer is good. A single example has no neighbour: 0.
    """
    if len(examples) < 2:
        return 0.0
    shifted = [
        Example((_exchanged(own.sequences[0], other.sequences[0]),), b"")
        for own, other in zip(examples, [examples[-1], *examples[:-1]], strict=True)
    ]
    parts = [
        _gains(model, [sequence for e in part for sequence in e.sequences])[0]
        for part in micro_batches(shifted)
    ]
    return max(float(torch.cat(parts).mean()), 0.0)


def _exchanged(own: MaskedSequence, other: MaskedSequence) -> MaskedSequence:
    """The prompt of one with the answer of the other."""
    start, answer = (int(np.flatnonzero(s.loss_mask)[0]) for s in (own, other))
    return MaskedSequence(
        np.concatenate([own.tokens[:start], other.tokens[answer:]]),
        np.concatenate([own.loss_mask[:start], other.loss_mask[answer:]]),
    )


def _gains(model: Transformer, sequences: list[MaskedSequence]) -> tuple[Tensor, Scores]:
    """The gain of every sequence over the base [n], and the model's scores."""
    with torch.no_grad(), disabled(model):
        base = score(model, sequences, share=True)
    own = score(model, sequences, share=True)
    gains = (own.logprobs - base.logprobs).split(own.counts)
    return torch.stack([gain.sum() for gain in gains]), own
