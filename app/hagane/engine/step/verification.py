"""Verifies guessed tokens: what is sampled after each of them, and how many were right.

Each row of a chunk that verifies is sampled as if the tokens guessed before it had been. The row
after the last right guess is therefore sampled from what it would have been sampled from without
guesses: logits, history, random number and grammar alike. So the answer is the same, bit for bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from hagane.engine.sampling.constraints import Constraints
from hagane.engine.sampling.sampler import SampledTokens
from hagane.engine.schedule.plan import Chunk, Schedule
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import TokenLogprobs
from hagane.system.errors import InvalidRequestError


@dataclass(frozen=True)
class Accepted:
    """The tokens that a step adds to a sequence, and their log-probabilities if requested.

    `failed` says that one of them was sampled from logits that are not numbers.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    failed: bool


def rows_of(schedule: Schedule, constraints: Constraints) -> Rows[Sequence]:
    """For each row that a step samples, the sequence that it continues, as it is there."""
    if not any(chunk.proposed for chunk in schedule.chunks):
        return schedule.samplers
    rows: list[Sequence] = []
    for chunk in schedule.chunks:
        rows += chunk.samplers
        rows += _ahead(chunk, constraints)
    return rows


def accept(schedule: Schedule, rows: Rows[Sequence], sampled: SampledTokens) -> list[Accepted]:
    """Of each of `schedule.samplers`; `rows` are those of `rows_of`, `sampled` what they got.

    Raises ValueError if not every row got a token.
    """
    if len(sampled.tokens) != len(rows):
        raise ValueError(f"{len(sampled.tokens)} tokens for {len(rows)} rows")
    accepted: list[Accepted] = []
    failed = frozenset(sampled.failed)
    row = 0
    for chunk in schedule.chunks:
        for _ in chunk.samplers:
            end = row + 1 + _right(chunk.proposed, sampled.tokens[row:])
            logprobs = [sampled.logprobs.get(sequence) for sequence in rows[row:end]]
            known = tuple([entry for entry in logprobs if entry is not None])
            accepted.append(
                Accepted(
                    tuple(sampled.tokens[row:end]),
                    known or None,
                    not failed.isdisjoint(range(row, end)),
                )
            )
            row += 1 + len(chunk.proposed)
    return accepted


def _ahead(chunk: Chunk, constraints: Constraints) -> list[Sequence]:
    found = []
    for count in range(1, len(chunk.proposed) + 1):
        tokens = chunk.proposed[:count]
        ahead = chunk.sequence.ahead(tokens)
        # A grammar that cannot go on reports it again when the row is sampled.
        with contextlib.suppress(InvalidRequestError):
            constraints.branch(chunk.sequence, ahead, tokens)
        found.append(ahead)
    return found


def _right(proposed: Rows[int], sampled: Rows[int]) -> int:
    """How many guesses are what was sampled, before the first that is not."""
    pairs = enumerate(zip(proposed, sampled, strict=False))
    return next((n for n, (guess, token) in pairs if guess != token), len(proposed))
