"""Chooses the next token of every sequence of a step at once.

Order of operations per row: repetition, presence and frequency penalties, logit bias, the mask of
end tokens before `min_tokens`; then temperature, top_k, top_p, min_p; then one draw by inverting
the cumulative distribution. Log-probabilities are those of the model, before all of it.

A draw is a function of its row's logits and of one uniform number; the uniform number of a seeded
row is a hash of (seed, continuation, position). So what else is in the batch never matters.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from app.engine.messages import SamplingParams, TokenLogprobs
from app.engine.sequence import Sequence
from app.kernels import Cuts, Operations, reference

_MASK64 = (1 << 64) - 1


@dataclass(frozen=True)
class SampledTokens:
    """One entry per row; rows in `failed` had logits that are not numbers."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    failed: tuple[int, ...]


class Sampler:
    """Stateless but for the entropy source of rows without a seed."""

    def __init__(self, operations: Operations = reference) -> None:
        self._operations = operations
        self._entropy = random.SystemRandom()

    def sample(self, logits: Tensor, sequences: Rows[Sequence]) -> SampledTokens:
        """Draw from float32 logits [rows, vocab]; row i continues `sequences[i]`."""
        tokens, finite = self._operations.greatest(logits)
        adjusted = _adjust(logits, sequences)
        if adjusted is not logits:
            tokens, _ = self._operations.greatest(adjusted)
        drawn = [i for i, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if drawn:
            params = [sequences[i].sampling for i in drawn]
            cuts = _cuts(params, [self._uniform(sequences[i]) for i in drawn])
            if len(drawn) == len(sequences):
                tokens = self._operations.draw(adjusted, cuts)
            else:
                rows = torch.tensor(drawn).to(tokens.device, non_blocking=True)
                tokens[rows] = self._operations.draw(adjusted[rows], cuts)
        # One transfer: nothing else in a step waits for the device.
        ids, whole = torch.stack((tokens, finite.long())).tolist()
        failed = tuple(i for i, number in enumerate(whole) if not number)
        return SampledTokens(ids, _report(logits, sequences, ids), failed)

    def _uniform(self, sequence: Sequence) -> float:
        if sequence.sampling.seed is None:
            return self._entropy.random()
        return uniform(sequence.sampling.seed, sequence.index, sequence.generated)


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from a seed, a continuation's index and a token's position.

    Three rounds of splitmix64's mixing function (Steele et al., 2014).
    """
    state = 0
    for value in (seed, index, position):
        state = (state + value + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return (state >> 11) / (1 << 53)


def _cuts(params: Rows[SamplingParams], uniforms: Rows[float]) -> Cuts:
    def column(values: Rows[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return Cuts(
        temperature=column([p.temperature for p in params]),
        top_p=column([p.top_p for p in params]),
        min_p=column([p.min_p for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        uniform=column(uniforms),
    )


def _adjust(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Penalties, bias and end masks; returns `logits` itself where no row asks for any."""
    rows = [i for i, s in enumerate(sequences) if _needs_adjustment(s)]
    if not rows:
        return logits
    logits = logits.clone()
    for i in rows:
        sequence, row = sequences[i], logits[i]
        _penalize(row, sequence)
        bias = sequence.sampling.logit_bias
        if bias:
            ids = torch.tensor(list(bias), device=row.device)
            row[ids] += torch.tensor(list(bias.values()), device=row.device)
        if sequence.generated < sequence.sampling.min_tokens:
            ends = (*sequence.sampling.eos_token_ids, *sequence.sampling.stop_token_ids)
            row[list(ends)] = -torch.inf
    return logits


def _needs_adjustment(sequence: Sequence) -> bool:
    p = sequence.sampling
    return bool(
        p.repetition_penalty != 1
        or p.presence_penalty
        or p.frequency_penalty
        or p.logit_bias
        or sequence.generated < p.min_tokens
    )


def _penalize(row: Tensor, sequence: Sequence) -> None:
    """Repetition over prompt and answer (Keskar et al., 2019); the others over the answer."""
    params = sequence.sampling
    if params.repetition_penalty != 1:
        seen = torch.tensor(sequence.tokens, device=row.device).unique()
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    answer = sequence.tokens[sequence.prompt_length :]
    if answer and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.tensor(answer, device=row.device).unique(return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts


def _report(
    logits: Tensor, sequences: Rows[Sequence], tokens: Rows[int]
) -> list[TokenLogprobs | None]:
    report: list[TokenLogprobs | None] = [None] * len(tokens)
    by_width: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        if sequence.sampling.logprobs is not None:
            by_width.setdefault(sequence.sampling.logprobs, []).append(i)
    for width, rows in by_width.items():
        entries = prompt_logprobs(logits[rows], [tokens[i] for i in rows], width)
        for i, entry in zip(rows, entries, strict=True):
            report[i] = entry
    return report


def prompt_logprobs(logits: Tensor, targets: Rows[int], top: int) -> list[TokenLogprobs]:
    """Log-probability of each target under its row of logits [rows, vocab], and the `top` best."""
    logprobs = logits.log_softmax(dim=1)
    chosen = logprobs.gather(1, torch.tensor(targets, device=logits.device)[:, None])
    best = logprobs.topk(min(top, logits.shape[1]), dim=1)
    rows = zip(
        targets,
        chosen.flatten().tolist(),
        best.indices.tolist(),
        best.values.tolist(),
        strict=True,
    )
    return [
        TokenLogprobs(token, logprob, tuple(zip(ids, values, strict=True)))
        for token, logprob, ids, values in rows
    ]
