"""Statistics of comparisons: intervals that hold at any time, and pairs of judgements.

The confidence sequence is that of the beta-binomial mixture martingale with a uniform prior
(Robbins, Annals of Mathematical Statistics 41, 1970): looking after every judgement, and stopping
at any of them, keeps the promised confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

_STEPS = 60


@dataclass(frozen=True)
class Interval:
    """A share from 0 to 1 with its bounds."""

    low: float
    share: float
    high: float


def confidence_sequence(wins: int, losses: int, confidence: float = 0.95) -> Interval:
    """Bounds of the probability of a win that hold at all times together."""
    count = wins + losses
    if not count:
        return Interval(0.0, 0.5, 1.0)
    mixture = math.lgamma(wins + 1) + math.lgamma(losses + 1) - math.lgamma(count + 2)
    limit = -math.log(1 - confidence)
    share = wins / count

    def excluded(p: float) -> bool:
        likelihood = (wins and wins * math.log(p)) + (losses and losses * math.log1p(-p))
        return mixture - likelihood >= limit

    def bound(inside: float, outside: float) -> float:
        for _ in range(_STEPS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if excluded(middle) else (middle, outside)
        return outside

    low = bound(share, 0.0) if wins else 0.0
    high = bound(share, 1.0) if losses else 1.0
    return Interval(low, share, high)


def wilson(wins: float, count: int, confidence: float = 0.95) -> Interval:
    """Bounds for a number of trials fixed beforehand (Wilson, JASA 22, 1927)."""
    if not count:
        return Interval(0.0, 0.5, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = wins / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = z / (1 + z * z / count)
    spread *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return Interval(max(middle - spread, 0.0), share, min(middle + spread, 1.0))


def discordant(candidate: Sequence[bool], target: Sequence[bool]) -> tuple[int, int]:
    """(wins, losses) of independent judgements, paired in the order in which they came.

    Pairs that agree say nothing of a difference (Wald, Sequential Analysis, 1947, chapter 6).
    """
    pairs = list(zip(candidate, target, strict=False))
    return sum(c and not t for c, t in pairs), sum(t and not c for c, t in pairs)
