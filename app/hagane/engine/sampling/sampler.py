"""Chooses the next token of every sequence of a step at once.

Order of operations per row: repetition, presence and frequency penalties, logit bias, the mask of
end tokens before `min_tokens`; then temperature, top_k, top_p, min_p; then one sample by inverting
the cumulative distribution. Log-probabilities are those of the model, before all of it.

A sample is a function of its row's logits and of one uniform number; the uniform number of a seeded
row is a hash of (seed, continuation, position). So what else is in the batch never matters.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from hagane.engine.schedule.sequence import Sequence
from hagane.kernels import reference
from hagane.kernels.backend import Operations
from hagane.kernels.sampling import SamplingTensors
from hagane.kernels.transfer import Fetch, send
from hagane.pool.messages import SamplingParams, TokenLogprobs

_MASK64 = (1 << 64) - 1
# Anything smaller is as good as greedy, and overflows logits where they are divided by it.
_LEAST_TEMPERATURE = 1e-5


@dataclass(frozen=True)
class SampledTokens:
    """One token per row, and the log-probabilities of the sequences that requested theirs.

    Rows in `failed` had logits that are not numbers.
    """

    tokens: list[int]
    logprobs: dict[Sequence, TokenLogprobs]
    failed: tuple[int, ...]


@dataclass(frozen=True)
class _Logprobs:
    """Of some rows: the chosen token's, then ids and values of the most likely ones."""

    rows: list[int]
    found: Fetch


class TokensInFlight:
    """One token for each of `sequences`, known to the device and on its way to the host.

    `tokens` int64 [rows] is there already for the step that follows on the device.
    """

    def __init__(
        self,
        sequences: Rows[Sequence],
        tokens: Tensor,
        finite: Tensor,
        logprobs: Rows[_Logprobs],
    ) -> None:
        self.sequences, self.tokens = sequences, tokens
        self._found = Fetch(tokens, finite)
        self._logprobs = logprobs

    @cached_property
    def rows(self) -> dict[Sequence, int]:
        """Which row is whose."""
        return {sequence: row for row, sequence in enumerate(self.sequences)}

    def wait(self) -> SampledTokens:
        """The tokens on the host: the one thing in a step that waits for the device."""
        tokens, finite = self._found.wait()
        ids, whole = tokens.tolist(), finite.tolist()
        report: dict[Sequence, TokenLogprobs] = {}
        for part in self._logprobs:
            entries = _entries([ids[row] for row in part.rows], *part.found.wait())
            for row, entry in zip(part.rows, entries, strict=True):
                report[self.sequences[row]] = entry
        failed = tuple([row for row, number in enumerate(whole) if not number])
        return SampledTokens(ids, report, failed)


class Sampler:
    """Stateless but for the entropy source of rows without a seed."""

    def __init__(self, operations: Operations = reference) -> None:
        self._operations = operations
        self._entropy = random.SystemRandom()

    def sample(
        self,
        logits: Tensor,
        sequences: Rows[Sequence],
        masks: Mapping[Sequence, Tensor] = MappingProxyType({}),
    ) -> TokensInFlight:
        """From float32 logits [rows, vocab], of which row i continues `sequences[i]`.

        `masks` are the tokens that a grammar allows, bool [vocab] on the host. Waits for nothing;
        logits may change once this has returned.
        """
        tokens, finite = self._operations.argmax(logits)
        adjusted = _adjust(logits, sequences, masks)
        if adjusted is not logits:
            tokens, _ = self._operations.argmax(adjusted)
        sampled = [i for i, sequence in enumerate(sequences) if sequence.sampling.temperature > 0]
        if sampled:
            params = [sequences[i].sampling for i in sampled]
            tensors = _tensors(params, [self._uniform(sequences[i]) for i in sampled])
            if len(sampled) == len(sequences):
                tokens = self._operations.sample(adjusted, tensors)
            else:
                rows = _sent(sampled, logits.device)
                tokens[rows] = self._operations.sample(adjusted[rows], tensors)
        return TokensInFlight(sequences, tokens, finite, _measure(logits, sequences, tokens))

    def _uniform(self, sequence: Sequence) -> float:
        if sequence.sampling.seed is None:
            return self._entropy.random()
        return uniform(sequence.sampling.seed, sequence.index, sequence.sampled)


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


def _tensors(params: Rows[SamplingParams], uniforms: Rows[float]) -> SamplingTensors:
    def column(values: Rows[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return SamplingTensors(
        temperature=column([max(p.temperature, _LEAST_TEMPERATURE) for p in params]),
        top_p=column([p.top_p for p in params]),
        min_p=column([p.min_p for p in params]),
        top_k=torch.tensor([p.top_k for p in params]),
        uniform=column(uniforms),
    )


def _sent(ids: Rows[int], device: torch.device) -> Tensor:
    return send([torch.tensor(ids, dtype=torch.int64)], device)[0]


def _adjust(logits: Tensor, sequences: Rows[Sequence], masks: Mapping[Sequence, Tensor]) -> Tensor:
    """Penalties, bias, grammars, end masks; returns `logits` itself where no row needs any."""
    rows = [i for i, sequence in enumerate(sequences) if sequence.adjusts]
    if not rows:
        return logits
    logits = logits.clone()
    for i in rows:
        sequence, row = sequences[i], logits[i]
        _penalize(row, sequence)
        bias = sequence.sampling.logit_bias
        if bias:
            ids, values = torch.tensor(list(bias)), torch.tensor(list(bias.values()))
            ids, values = send([ids, values], row.device)
            row[ids] += values
        if (allowed := masks.get(sequence)) is not None:
            # The grammar itself decides when the text may end.
            row.masked_fill_(~send([allowed], row.device)[0], -torch.inf)
        elif sequence.sampled < sequence.sampling.min_tokens:
            ends = (*sequence.sampling.eos_token_ids, *sequence.sampling.stop_token_ids)
            known = [token for token in ends if 0 <= token < len(row)]
            row.index_fill_(0, _sent(known, row.device), -torch.inf)
    return logits


def _penalize(row: Tensor, sequence: Sequence) -> None:
    """Repetition over prompt and answer (Keskar et al., 2019); the others over the answer."""
    params = sequence.sampling
    if params.repetition_penalty != 1:
        seen = _sent(sorted(set(sequence.tokens)), row.device)
        scores = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    answer = sequence.tokens[sequence.prompt_length :]
    if answer and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.tensor(answer).unique(return_counts=True)
        ids, counts = send([ids, counts], row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts


def _measure(logits: Tensor, sequences: Rows[Sequence], tokens: Tensor) -> list[_Logprobs]:
    by_width: dict[int, list[int]] = {}
    for i, sequence in enumerate(sequences):
        if sequence.sampling.logprobs is not None:
            by_width.setdefault(sequence.sampling.logprobs, []).append(i)
    measured = []
    for width, rows in by_width.items():
        at = _sent(rows, logits.device)
        parts = _logprobs(logits[at], tokens[at], width)
        measured.append(_Logprobs(rows, Fetch(*parts)))
    return measured


def prompt_logprobs(logits: Tensor, targets: Rows[int], top: int) -> list[TokenLogprobs]:
    """Log-probability of each target under its row of logits [rows, vocab], and the `top` best."""
    return _entries(targets, *_logprobs(logits, _sent(targets, logits.device), top))


def _logprobs(logits: Tensor, targets: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of the targets [rows], then ids and values of the best, each [rows, top]."""
    logprobs = logits.log_softmax(dim=1)
    best = logprobs.topk(min(top, logits.shape[1]), dim=1)
    return logprobs.gather(1, targets[:, None]).flatten(), best.indices, best.values


def _entries(
    targets: Rows[int], chosen: Tensor, ids: Tensor, values: Tensor
) -> list[TokenLogprobs]:
    rows = zip(targets, chosen.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprobs(token, logprob, tuple(zip(best, scores, strict=True)))
        for token, logprob, best, scores in rows
    ]
