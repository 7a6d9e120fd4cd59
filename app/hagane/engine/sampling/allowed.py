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
from hagane.engine.sampling.draws import Draw, TakenOut, on_device, tensors_of
from hagane.engine.schedule.sequence import Sequence
from hagane.kernels.transfer import send

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

    def first_of(self, sequence: Sequence, tokens: Rows[int]) -> int | None:
        """The first of `tokens` that may come next."""

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
    """int64 [rows]: tokens that are allowed, with masks only for the rows that need one.

    Logits change meanwhile.
    """
    greedy, cut, others = _kinds(draw)
    with TakenOut(draw.logits) as taken:
        found = _try_candidates(draw, cut, grammar)
        found |= _try_likeliest(draw, greedy, grammar, taken)
        found |= _try_samples(draw, others, grammar, taken)
    refused = sorted(row for row, token in found.items() if token is None)
    if refused:
        masked = draw.of(refused, _restrict(draw, refused, grammar))
        drawn = masked.tokens(_ROUNDS * _TRIES + 1).tolist()
        for row, tokens in zip(refused, drawn, strict=True):
            # The next number after those whose tokens were refused.
            found[row] = tokens[0 if row in cut else -1]
    return torch.tensor([found[row] for row in range(len(draw.sequences))])


def _kinds(draw: Draw) -> tuple[list[int], list[int], list[int]]:
    """The rows whose likeliest token is wanted, those of grammars that filters cut, the others."""
    greedy: list[int] = []
    cut: list[int] = []
    others: list[int] = []
    for row, sequence in enumerate(draw.sequences):
        params = sequence.sampling
        if params.temperature <= 0:
            greedy.append(row)
        elif sequence.grammar is not None and (
            params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        ):
            cut.append(row)
        else:
            others.append(row)
    return greedy, cut, others


def _try_likeliest(
    draw: Draw, rows: Rows[int], grammar: Grammar, taken: TakenOut
) -> dict[int, int | None]:
    """For each of `rows`, the likeliest token that is allowed; None if the first few are not."""
    found: dict[int, int | None] = {}
    for row in rows:
        sequence, token = draw.sequences[row], int(draw.likeliest[row])
        if sequence.grammar is None:
            found[row] = token
            continue
        found[row] = grammar.first_of(sequence, [token])
        for _ in range(_TRIES - 1):
            if found[row] is not None:
                break
            taken.take(row, [token])
            token = int(draw.operations.argmax(draw.logits[row : row + 1])[0])
            found[row] = grammar.first_of(sequence, [token])
    return found


def _try_samples(
    draw: Draw, rows: Rows[int], grammar: Grammar, taken: TakenOut
) -> dict[int, int | None]:
    """For each of `rows`, the first sample that is allowed; None if there is none among a few."""
    found: dict[int, int | None] = {}
    waiting = rows
    for last in range(_TRIES, (_ROUNDS + 1) * _TRIES, _TRIES):
        if not waiting:
            break
        drawn = draw.samples(waiting, last)[:, -_TRIES:].tolist()
        for row, tokens in zip(waiting, drawn, strict=True):
            sequence = draw.sequences[row]
            if sequence.grammar is None:
                found[row] = tokens[0]
                continue
            tries = list(dict.fromkeys(tokens))
            found[row] = grammar.first_of(sequence, tries)
            if found[row] is None:
                taken.take(row, tries)
        waiting = [row for row in waiting if found[row] is None]
    return found


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
