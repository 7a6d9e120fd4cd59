"""Tokens that grammars allow.

The mask of a grammar takes a hundred times as long as the question whether it allows one token.
Where logits are at hand, tokens are therefore drawn first, and asked about then, so that few rows
need a mask:

- The most likely token of all, if it is allowed, is the most likely of those allowed.
- Of tokens sampled one after another from a whole distribution, the first that is allowed is
  distributed as one of the masked distribution (rejection sampling; von Neumann, 1951). That holds
  as well if refused tokens are taken out between two samples.
- top_k, top_p and min_p cut what the mask leaves; `candidates.py` finds out what that is.

A row's token depends on its own logits, number and grammar alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from hagane.engine.sampling.candidates import sample_allowed
from hagane.engine.sampling.draws import Draw, on_device, tensors_of
from hagane.engine.schedule.sequence import Sequence
from hagane.kernels.transfer import send
from hagane.pool.messages import SamplingParams

# Samples of a row in each round, and rounds before its mask is made. A sample takes a microsecond,
# a round some hundred, a mask up to a thousand.
_TRIES = 8
_ROUNDS = 3
# Most filters keep fewer.
_CANDIDATES = 32


class Grammar(Protocol):
    """Which tokens the grammars of sequences let follow, such as `Constraints`.

    >>> grammar.admits(sequence, 17)
    True
    """

    def admits(self, sequence: Sequence, token: int) -> bool:
        """Whether one token may come next."""

    def allowed(self, sequence: Sequence) -> Tensor:
        """uint8 [ceil(vocab / 8)] on the host: a bit for each token, the lowest one first."""


def draw_masked(draw: Draw, grammar: Grammar) -> Tensor:
    """int64 [rows]: all masks first, which are made while a device is at work."""
    rows = draw.constrained
    logits = draw.logits.clone()
    logits[on_device(rows, logits.device)] = _restrict(draw, rows, grammar)
    every = range(len(draw.sequences))
    return draw.of(every, logits).tokens(1)[:, 0]


def draw_allowed(draw: Draw, grammar: Grammar) -> Tensor:
    """int64 [rows]: tokens that are allowed, with masks only for the rows that need one."""
    cut = [row for row in draw.constrained if _is_cut(draw.sequences[row].sampling)]
    others = sorted({*range(len(draw.sequences))} - {*cut})
    found = _try_samples(draw, others, grammar) | _try_candidates(draw, cut, grammar)
    refused = sorted(row for row, token in found.items() if token is None)
    if refused:
        masked = draw.of(refused, _restrict(draw, refused, grammar))
        drawn = masked.tokens(_ROUNDS * _TRIES + 1).tolist()
        for row, tokens in zip(refused, drawn, strict=True):
            # The next number after those whose tokens were refused.
            found[row] = tokens[0 if row in cut else -1]
    return torch.tensor([found[row] for row in range(len(draw.sequences))])


def _is_cut(params: SamplingParams) -> bool:
    """Whether a filter cuts the distribution that it is sampled from."""
    cut = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
    return cut and params.temperature > 0


def _try_samples(draw: Draw, rows: Rows[int], grammar: Grammar) -> dict[int, int | None]:
    """For each of `rows`, the first sample that is allowed; None if there is none among a few."""
    if not rows:
        return {}
    free = not any(draw.sequences[row].grammar for row in rows)
    part, waiting = draw.of(rows), list(rows)
    found: dict[int, int | None] = dict.fromkeys(rows)
    for last in range(_TRIES, (_ROUNDS + 1) * _TRIES, _TRIES):
        drawn = part.tokens(1 if free else last).tolist()
        refused: list[list[int]] = []
        left = []
        for place, (row, tokens) in enumerate(zip(waiting, drawn, strict=True)):
            tries = list(dict.fromkeys(tokens[-_TRIES:]))
            found[row] = _first_allowed(draw.sequences[row], tries, grammar)
            if found[row] is None:
                left.append(place)
                refused.append(tries)
        if not left or last == _ROUNDS * _TRIES:
            break
        waiting = [waiting[place] for place in left]
        part = part.without(left, refused)
    return found


def _first_allowed(sequence: Sequence, tokens: Rows[int], grammar: Grammar) -> int | None:
    if sequence.grammar is None:
        return tokens[0]
    return next((token for token in tokens if grammar.admits(sequence, token)), None)


def _try_candidates(draw: Draw, rows: Rows[int], grammar: Grammar) -> dict[int, int | None]:
    """For each of `rows`, the token that its filters leave; None where that takes a mask."""
    if not rows:
        return {}
    params = [draw.sequences[row].sampling for row in rows]
    uniforms = [draw.uniforms[row] for row in rows]
    temperature = tensors_of(params, uniforms).temperature
    at = torch.tensor(rows, dtype=torch.int64)
    heaviest = draw.operations.heaviest(draw.logits, at, temperature, _CANDIDATES)
    lists = (part.tolist() for part in heaviest)
    return {
        row: sample_allowed(
            [pair for pair in zip(tokens, weights, strict=True) if pair[1] > 0],
            total,
            draw.sequences[row].sampling,
            draw.uniforms[row],
            partial(grammar.admits, draw.sequences[row]),
        )
        for row, tokens, weights, total in zip(rows, *lists, strict=True)
    }


def _restrict(draw: Draw, rows: Rows[int], grammar: Grammar) -> Tensor:
    """Those rows of the logits, -inf where grammars allow no token."""
    allowed = torch.stack([grammar.allowed(draw.sequences[row]) for row in rows])
    at, allowed = send([torch.tensor(rows, dtype=torch.int64), allowed], draw.logits.device)
    return draw.operations.restrict(draw.logits, at, allowed)
