"""How many tokens to guess: as many as pay, given how often guesses were right and what they cost.

A guess that is right with probability a, if all before it were, adds a^k tokens to a step on
average when it is the k-th (Leviathan et al., 2023, https://arxiv.org/abs/2211.17192), and one row.
One that a draft model makes also takes a step of that model, which sequences share.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

# How much of its weight an observation keeps when the next one comes.
_MEMORY = 0.9
# The prior for a sequence of which nothing is known, and its weight.
_PRIOR, _PRIOR_WEIGHT = 0.5, 2.0
# Expected gains below this drown in noise.
_LEAST_GAIN = 1.03

Cost = Callable[[int], float]
"""Seconds of a step of so many rows, or of any step in any unit."""


class Pace:
    """The acceptance of guesses of one kind.

    It needs no verification to learn: a guess that was not sent to the model is compared with the
    token that was sampled all the same, so that a sequence whose guesses become good is noticed.
    `memory` is the weight that an observation keeps when the next one comes.
    """

    def __init__(
        self, prior: float = _PRIOR, weight: float = _PRIOR_WEIGHT, memory: float = _MEMORY
    ) -> None:
        self._right, self._seen, self._memory = prior * weight, weight, memory

    @property
    def acceptance(self) -> float:
        """The probability that the next guess is right, between 0 and 1."""
        return self._right / self._seen

    def observe(self, right: bool) -> None:
        """One guessed token was compared with the sampled one."""
        self._right = self._memory * self._right + right
        self._seen = self._memory * self._seen + 1.0

    def compare(self, guesses: Sequence[int], tokens: Sequence[int]) -> None:
        """Observe all guesses up to the first wrong one, as far as `tokens` are known."""
        for guess, token in zip(guesses, tokens, strict=False):
            self.observe(guess == token)
            if guess != token:
                break


class Calibration:
    """How often a draft's guess is right, by the probability that the draft gave it."""

    _EDGES = (0.3, 0.5, 0.7, 0.85, 0.95, 0.99)
    _PRIORS = (0.3, 0.4, 0.55, 0.7, 0.8, 0.9, 0.97)

    def __init__(self) -> None:
        self._paces = [Pace(prior, weight=10.0, memory=0.995) for prior in self._PRIORS]

    def chance(self, confidence: float) -> float:
        """The probability that a guess is right."""
        return self._paces[bisect_right(self._EDGES, confidence)].acceptance

    def observe(self, confidence: float, right: bool) -> None:
        """A guess of that confidence was compared with the sampled token."""
        self._paces[bisect_right(self._EDGES, confidence)].observe(right)


@dataclass(frozen=True)
class Offer:
    """Up to `guesses` tokens for a sequence, each right with probability `acceptance`.

    Those that are `drafted` are yet to be made.
    """

    acceptance: float = 0.0
    guesses: int = 0
    drafted: bool = False


class StepPlan:
    """A step as it grows: its `rows`, the tokens expected of it, and the time of drafts before it.

    `expected` are the tokens of its first rows; `cost(rows)` is the time of the step itself.
    """

    def __init__(self, rows: int, expected: float, cost: Cost) -> None:
        self.rows, self._expected, self._cost = rows, expected, cost
        self._drafts = 0.0

    def add(self, chance: float) -> None:
        """One more row, for a guess that is accepted with this probability."""
        self.rows += 1
        self._expected += chance

    def spend(self, seconds: float) -> None:
        """A draft took so long."""
        self._drafts += seconds

    def pays(self, chance: float, seconds: float) -> bool:
        """Whether one more guess, drafted in so many seconds, makes the tokens come faster."""
        now = self._cost(self.rows)
        more = self._cost(self.rows + 1) - now + seconds
        return chance * (now + self._drafts) > self._expected * more


def share_rows(
    offers: Sequence[Offer], rows: int, most: int, cost: Cost, draft_cost: Cost
) -> list[int]:
    """How many guesses each sequence sends along, to yield most tokens a second together.

    The step has `rows` rows without them and may have `most`; `cost(rows)` is its time,
    `draft_cost(sequences)` that of a draft's step.
    """
    heap = [(-offer.acceptance, i) for i, offer in enumerate(offers) if offer.guesses > 0]
    heapify(heap)
    lengths = [0] * len(offers)
    chosen = list(lengths)
    # Of every step of the draft, how many sequences take part.
    drafting: list[int] = []
    drafts = 0.0
    expected, best = float(rows), _LEAST_GAIN * rows / cost(rows)
    for count in range(rows + 1, most + 1):
        if not heap:
            break
        gain, i = heappop(heap)
        offer = offers[i]
        if offer.drafted:
            drafts += _join(drafting, lengths[i], draft_cost)
        lengths[i] += 1
        expected -= gain
        if lengths[i] < offer.guesses:
            heappush(heap, (gain * offer.acceptance, i))
        rate = expected / (cost(count) + drafts)
        if rate > best:
            best, chosen = rate, list(lengths)
    return chosen


def best_gain(offer: Offer, rows: int, most: int, cost: Cost, draft_cost: Cost) -> float:
    """How many times as many tokens a second a step yields at best if this sequence has guesses.

    Steps of a draft are taken to be shared by all `rows` sequences. 1 where none pays.
    """
    best, expected, gain, drafts = 1.0, float(rows), 1.0, 0.0
    alone = cost(rows) / rows
    for count in range(1, min(offer.guesses, most - rows) + 1):
        gain *= offer.acceptance
        expected += gain
        drafts += draft_cost(rows) / rows if offer.drafted else 0.0
        best = max(best, expected * alone / (cost(rows + count) + drafts))
    return best


def _join(drafting: list[int], step: int, draft_cost: Cost) -> float:
    """Let one more sequence take part in a step of the draft; returns the seconds it adds."""
    if step == len(drafting):
        drafting.append(1)
        return draft_cost(1)
    drafting[step] += 1
    return draft_cost(drafting[step]) - draft_cost(drafting[step] - 1)
