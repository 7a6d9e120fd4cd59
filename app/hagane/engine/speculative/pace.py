"""How many tokens to guess: as many as pay, given how often guesses were right and what rows cost.

A guess that is right with probability a, if all before it were, adds a^k tokens to a step on
average when it is the k-th (Leviathan et al., 2023, https://arxiv.org/abs/2211.17192), and one row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush

# How much of its weight an observation keeps when the next one comes.
_MEMORY = 0.9
# The prior for a sequence of which nothing is known, and its weight.
_PRIOR, _PRIOR_WEIGHT = 0.5, 2.0
# Expected gains below this drown in noise.
_LEAST_GAIN = 1.03


class Pace:
    """The acceptance of one sequence's guesses.

    It needs no verification to learn: a guess that was not sent to the model is compared with the
    token that was sampled all the same, so that a sequence whose guesses become good is noticed.
    """

    def __init__(self) -> None:
        self._right = _PRIOR * _PRIOR_WEIGHT
        self._seen = _PRIOR_WEIGHT

    @property
    def acceptance(self) -> float:
        """The probability that the next guess is right, between 0 and 1."""
        return self._right / self._seen

    def observe(self, right: bool) -> None:
        """One guessed token was compared with the sampled one."""
        self._right = _MEMORY * self._right + right
        self._seen = _MEMORY * self._seen + 1.0


def share_rows(
    acceptances: Sequence[float],
    guesses: Sequence[int],
    rows: int,
    most: int,
    cost: Callable[[int], float],
) -> list[int]:
    """How many of its guesses each sequence sends along, to yield most tokens a second together.

    Sequence i has `guesses[i]` tokens guessed, each right with probability `acceptances[i]`. The
    step has `rows` rows without them and may have `most`; `cost(rows)` is its time, in any unit.
    """
    # The next guess of each sequence, the likeliest to be accepted first.
    heap = [(-a, i) for i, a in enumerate(acceptances) if guesses[i] > 0]
    heap.sort()
    lengths = [0] * len(acceptances)
    chosen = list(lengths)
    expected, best = float(rows), _LEAST_GAIN * rows / cost(rows)
    for count in range(rows + 1, most + 1):
        if not heap:
            break
        gain, i = heappop(heap)
        lengths[i] += 1
        expected -= gain
        if lengths[i] < guesses[i]:
            heappush(heap, (gain * acceptances[i], i))
        rate = expected / cost(count)
        if rate > best:
            best, chosen = rate, list(lengths)
    return chosen
