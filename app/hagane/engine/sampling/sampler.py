"""Chooses the next token of every sequence of a step at once.

Order of operations per row: repetition, presence and frequency penalties, logit bias, the mask of
end tokens before `min_tokens`, that of a grammar; then temperature, top_k, top_p, min_p; then one
sample by inverting the cumulative distribution. Log-probabilities are those of the model, before
all of it.

A sample is a function of its row's logits and of one uniform number, a hash of (seed, continuation,
position). So what else is in the batch never matters.
`allowed.py` chooses tokens that grammars allow.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hagane.engine.sampling.allowed import Grammar, draw_allowed, draw_masked
from hagane.engine.sampling.draws import Draw, on_device
from hagane.engine.schedule.sequence import Sequence
from hagane.kernels import reference
from hagane.kernels.backend import Operations
from hagane.kernels.sampling import SPLITMIX64_STEP, splitmix64
from hagane.kernels.transfer import Fetch, send
from hagane.pool.messages import TokenLogprobs


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
    """Stateless: chooses by the logits and by what sequences say."""

    def __init__(self, operations: Operations = reference) -> None:
        self._operations = operations

    def sample(
        self, logits: Tensor, sequences: Rows[Sequence], grammar: Grammar | None = None
    ) -> TokensInFlight:
        """From float32 logits [rows, vocab], of which row i continues `sequences[i]`.

        `grammar` is asked about the sequences that have one. Waits for no device; logits may change
        once this has returned.
        """
        likeliest, finite = self._operations.argmax(logits)
        adjusted = _adjust(logits, sequences)
        draw = Draw(
            self._operations,
            adjusted,
            sequences,
            [_uniform(sequence) for sequence in sequences],
            likeliest if adjusted is logits else None,
        )
        if grammar is None or not draw.constrained:
            tokens = draw.tokens(1)[:, 0]
        else:
            choose = draw_allowed if logits.device.type == "cpu" else draw_masked
            tokens = choose(draw, grammar)
        return TokensInFlight(sequences, tokens, finite, _measure(logits, sequences, tokens))


def _uniform(sequence: Sequence) -> float:
    """0 for those that sample nothing."""
    if sequence.sampling.temperature <= 0:
        return 0.0
    return uniform(sequence.seed, sequence.index, sequence.sampled)


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) from a seed, a continuation's index and a token's position.

    Three rounds of splitmix64's mixing function.
    """
    state = 0
    for value in (seed, index, position):
        state = splitmix64(state + value + SPLITMIX64_STEP)
    return (state >> 11) / (1 << 53)


def _adjust(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Penalties, bias, end masks; returns `logits` itself where no row needs any."""
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
        # A grammar decides itself when the text may end.
        if sequence.grammar is None and sequence.sampled < sequence.sampling.min_tokens:
            ends = (*sequence.sampling.eos_token_ids, *sequence.sampling.stop_token_ids)
            known = [token for token in ends if 0 <= token < len(row)]
            row.index_fill_(0, on_device(known, row.device), -torch.inf)
    return logits


def _penalize(row: Tensor, sequence: Sequence) -> None:
    """Repetition over prompt and answer (Keskar et al., 2019); the others over the answer."""
    params = sequence.sampling
    if params.repetition_penalty != 1:
        seen = on_device(sorted(set(sequence.tokens)), row.device)
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
        at = on_device(rows, logits.device)
        parts = _logprobs(logits[at], tokens[at], width)
        measured.append(_Logprobs(rows, Fetch(*parts)))
    return measured


def prompt_logprobs(logits: Tensor, targets: Rows[int], top: int) -> list[TokenLogprobs]:
    """Log-probability of each target under its row of logits [rows, vocab], and the `top` best."""
    return _entries(targets, *_logprobs(logits, on_device(targets, logits.device), top))


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
