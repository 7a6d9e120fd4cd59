"""Two runs side by side: how often the candidate's answer is the better one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, mean, stdev

from hagane.evaluation.sequential import Interval, wilson


@dataclass(frozen=True)
class SideBySide:
    """Of `items` that both have: the candidate's wins, ties and losses by score.

    `win_rate` counts a tie as half a win, with Wilson's bounds; `difference` is the mean of the
    scores' differences, with the bounds of a normal distribution.
    """

    items: int
    wins: int
    ties: int
    losses: int
    win_rate: Interval
    difference: Interval

    def __str__(self) -> str:
        rate, change = self.win_rate, self.difference
        return (
            f"{self.wins} wins, {self.ties} ties, {self.losses} losses: win rate {rate.share:.3f} "
            f"({rate.low:.3f} to {rate.high:.3f}), difference {change.share:+.4f} "
            f"({change.low:+.4f} to {change.high:+.4f})"
        )


def compare_scores(
    baseline: Mapping[int, float], candidate: Mapping[int, float], confidence: float = 0.95
) -> SideBySide:
    """Compare scores by item."""
    common = sorted(baseline.keys() & candidate.keys())
    changes = [candidate[item] - baseline[item] for item in common]
    wins, losses = sum(c > 0 for c in changes), sum(c < 0 for c in changes)
    ties = len(common) - wins - losses
    middle = mean(changes) if changes else 0.0
    spread = stdev(changes) / len(changes) ** 0.5 if len(changes) > 1 else 0.0
    reach = NormalDist().inv_cdf(0.5 + confidence / 2) * spread
    difference = Interval(middle - reach, middle, middle + reach)
    rate = wilson(wins + ties / 2, len(common), confidence)
    return SideBySide(len(common), wins, ties, losses, rate, difference)
