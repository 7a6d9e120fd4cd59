"""Log-probabilities of trained tokens, and the loss of supervised training.

Logits are computed for trained tokens only, a few hundred rows at a time: with a vocabulary of
152,000 they take 0.6 MB per token. The gradient of a token's log-probability depends on its own
hidden state alone, so the forward pass computes it and the backward pass only scales it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from hagane.kernels import reference
from hagane.kernels.backend import Differentiable
from hagane.kernels.cpu import served, training
from hagane.lora.trained_rows import TrainedRows
from hagane.models.attention import PackedSequences, SharedPrompts
from hagane.models.config import ModelConfig
from hagane.models.decoder import Transformer
from hagane.models.formats.dense import DenseEmbedding
from hagane.models.formats.int8 import Int8Embedding
from hagane.models.frozen import DequantizedHead, TrainingEmbedding
from hagane.training.finetune.examples import Example
from hagane.training.finetune.masking import MaskedSequence

_ROWS = 256


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of the trained tokens of all sequences, in order, float32 [n].

    `correct` counts those that are the model's most likely token, `counts` all of each sequence.
    """

    logprobs: Tensor
    correct: int
    counts: list[int]


@dataclass(frozen=True, eq=False)
class Loss:
    """`total` is a differentiable sum; of `tokens` trained tokens, `correct` were most likely."""

    total: Tensor
    correct: int
    tokens: int


def supervised_loss(model: Transformer, examples: list[Example]) -> Loss:
    """Cross-entropy in nats, summed over trained tokens."""
    scores = score(model, [sequence for e in examples for sequence in e.sequences])
    return Loss(-scores.logprobs.sum(), scores.correct, len(scores.logprobs))


def score(model: Transformer, sequences: list[MaskedSequence], *, share: bool = False) -> Scores:
    """Score all sequences in one forward pass.

    With `share` those that follow each other with the same tokens before the first trained one send
    these through the model once.
    """
    groups = _by_prompt(sequences) if share else []
    if len(groups) < len(sequences) and share:
        hidden, targets = _before_answers(model, groups)
    else:
        hidden, targets = _before_trained(model, sequences)
    logprobs, correct = _logprobs(model, hidden, targets)
    return Scores(logprobs, int(correct.sum()), [int(s.loss_mask.sum()) for s in sequences])


def distillation_loss(model: Transformer, examples: list[Example], weight: float) -> Loss:
    """(1 - weight) * cross-entropy of the tokens + weight * that of the teacher's distribution.

    In nats, summed over trained tokens (Hinton et al., 2015, arXiv:1503.02531, at temperature 1).
    The examples have `soft` targets.
    """
    sequences = [sequence for e in examples for sequence in e.sequences]
    hidden, targets = _before_trained(model, sequences)
    hard, correct = _logprobs(model, hidden, targets)
    soft = [targets for e in examples for targets in e.soft]
    ids = torch.cat([torch.from_numpy(one.ids) for one in soft]).long().to(hidden.device)
    shares = torch.cat([torch.from_numpy(one.shares) for one in soft]).to(hidden.device)
    expected: Tensor = _SoftHead.apply(hidden, _frozen_head(model.head, hidden), ids, shares, model)  # type: ignore[no-untyped-call]
    total = -(1 - weight) * hard.sum() - weight * expected.sum()
    return Loss(total, int(correct.sum()), len(hard))


def _before_trained(model: Transformer, sequences: list[MaskedSequence]) -> tuple[Tensor, Tensor]:
    """Hidden states [n, hidden] before the trained tokens of all sequences, and their ids [n]."""
    device = next(model.parameters()).device
    tokens = torch.cat([torch.from_numpy(s.tokens) for s in sequences]).long().to(device)
    trained = torch.cat([torch.from_numpy(s.loss_mask) for s in sequences])
    rows = trained.nonzero()[:, 0].to(device)
    lengths = [len(s) for s in sequences]
    hidden = model(tokens, PackedSequences(lengths, device, _operations(model)))
    # A sequence's first token is never trained, so the row before a trained one is in its sequence.
    return hidden[rows - 1], tokens[rows]


def _by_prompt(sequences: list[MaskedSequence]) -> list[list[MaskedSequence]]:
    """Neighbours with the same tokens before the first trained one."""
    groups: list[list[MaskedSequence]] = []
    for one in sequences:
        first = groups[-1][0] if groups else one
        if groups and np.array_equal(one.tokens[: _prompt(one)], first.tokens[: _prompt(first)]):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _prompt(sequence: MaskedSequence) -> int:
    """The tokens before the first trained one."""
    return int(sequence.loss_mask.argmax())


def _before_answers(
    model: Transformer, groups: list[list[MaskedSequence]]
) -> tuple[Tensor, Tensor]:
    """`_before_trained` of sequences whose prompts are shared within a group."""
    tokens, before, targets, shape = [], [], [], []
    row = 0
    for group in groups:
        prompt = _prompt(group[0])
        tokens.append(group[0].tokens[:prompt])
        shape.append((prompt, [len(one) - prompt for one in group]))
        shared, row = np.arange(row, row + prompt), row + prompt
        for one in group:
            tokens.append(one.tokens[prompt:])
            rows = np.concatenate([shared, np.arange(row, row + len(one) - prompt)])
            trained = np.flatnonzero(one.loss_mask)
            before.append(rows[trained - 1])
            targets.append(one.tokens[trained])
            row += len(one) - prompt
    device = next(model.parameters()).device
    ids, places, wanted = (
        torch.from_numpy(np.concatenate(parts)).long().to(device)
        for parts in (tokens, before, targets)
    )
    hidden = model(ids, SharedPrompts(shape, device, _operations(model)))
    # Rows that come twice get their gradients in order.
    return hidden.index_select(0, places), wanted


def _operations(model: Transformer) -> Differentiable:
    """The model's operations if they are differentiable, else the reference."""
    for operations in (training, served):
        if model.operations is operations:
            return operations
    return reference


def _logprobs(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 [n] log-probabilities of int64 targets [n], and bool [n]: the likeliest tokens."""
    head: nn.Module = model.head
    ids = rows = None
    if isinstance(head, TrainedRows):
        ids, rows = (head.ids, head.rows) if head.enabled else (None, None)
        head = head.base
    trains_head = any(p.requires_grad for p in head.parameters())
    if not (trains_head and torch.is_grad_enabled()):
        frozen, operations = _frozen_head(head, hidden), _operations(model)
        logprobs, correct = _FrozenHead.apply(
            hidden, rows, ids, frozen, targets, operations, model.config
        )  # type: ignore[no-untyped-call]
        return logprobs, correct
    parts = [
        checkpoint(_chunk, model, rows, wanted, use_reentrant=False)
        for rows, wanted in zip(hidden.split(_ROWS), targets.split(_ROWS), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in parts]), torch.cat([first for _, first in parts])


def _frozen_head(head: nn.Module, hidden: Tensor) -> DequantizedHead | TrainingEmbedding:
    if isinstance(head, TrainingEmbedding):
        return head
    if not isinstance(head, DenseEmbedding | Int8Embedding):
        raise TypeError("a model packed for serving cannot be trained")
    bias = None if head.bias is None else head.bias.detach().to(hidden.dtype)
    return DequantizedHead(head.matrix(hidden.dtype), bias)


def _chunk(model: Transformer, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = model.logits(hidden)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.logsumexp(1), (chosen >= logits.amax(1)).detach()


def _bounded(
    logits: Tensor, config: ModelConfig, operations: Differentiable
) -> tuple[Tensor, Tensor | None]:
    """A head's products as logits, and the derivative of these by the former; None: it is 1."""
    scale, cap = config.logit_scale, config.logit_cap
    if scale == 1 and not cap:
        return logits, None
    bounded = operations.softcap(logits.float(), scale, cap)
    derivative = scale * (1 - (bounded / cap).square()) if cap else torch.full_like(bounded, scale)
    return bounded.to(logits.dtype), derivative.to(logits.dtype)


class _FrozenHead(torch.autograd.Function):
    """hidden [n, hidden], a head, int64 targets [n] -> log-probabilities, bools.

    The `rows` float32 [k, hidden] of tokens `ids` int64 [k] are trained, if there are any.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        rows: Tensor | None,
        ids: Tensor | None,
        head: DequantizedHead | TrainingEmbedding,
        targets: Tensor,
        operations: Differentiable,
        config: ModelConfig,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        learns = ctx.needs_input_grad[0]
        own = None if rows is None else rows.to(hidden.dtype)
        parts, of_hidden, of_rows = [], [], []
        for x, wanted in zip(hidden.split(_ROWS), targets.split(_ROWS), strict=True):
            logits = head.logits(x)
            if own is not None:
                logits[:, ids] = (x @ own.t()).to(logits.dtype)
            logits, derivative = _bounded(logits, config, operations)
            parts.append(operations.token_scores(logits, wanted, gradients=learns))
            if not learns:
                continue
            slopes = logits if derivative is None else logits.mul_(derivative)
            if own is None:
                of_hidden.append(head.gradient(slopes))
                continue
            of_rows.append(slopes[:, ids].to(own.dtype))
            slopes[:, ids] = 0
            of_hidden.append(head.gradient(slopes).addmm_(of_rows[-1], own))
        logprobs, correct = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.mark_non_differentiable(correct)
        ctx.gradients = torch.cat(of_hidden) if of_hidden else None
        ctx.rows = (hidden, torch.cat(of_rows)) if of_rows else None
        return logprobs, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        rest = (None,) * 5
        if grad is None:
            return None, None, *rest
        of_rows = None
        if ctx.rows is not None:
            hidden, slopes = ctx.rows
            of_rows = (slopes.float() * grad[:, None]).t() @ hidden.float()
        return ctx.gradients * grad[:, None].to(ctx.gradients.dtype), of_rows, *rest


class _SoftHead(torch.autograd.Function):
    """hidden [n, hidden], a head, int64 ids [n, k], float32 shares [n, k] that sum to 1.

    Gives sum(share * log-probability) [n], float32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: DequantizedHead | TrainingEmbedding,
        ids: Tensor,
        shares: Tensor,
        model: Transformer,
    ) -> Tensor:
        parts, gradients = [], torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        operations = _operations(model)
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            logits, slope = _bounded(head.logits(hidden[rows]), model.config, operations)
            wide = logits.float().log_softmax(1)
            parts.append((wide.gather(1, ids[rows]) * shares[rows]).sum(1))
            if gradients is not None:
                grad = wide.exp_().neg_().scatter_add_(1, ids[rows], shares[rows])
                grad = grad if slope is None else grad.mul_(slope)
                gradients[rows] = head.gradient(grad.to(logits.dtype))
        ctx.gradients = gradients
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.gradients * grad[:, None].to(ctx.gradients.dtype), None, None, None, None
