"""Intervals by what defines them, and against simulated trials that are looked at all along."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hagane.evaluation.sequential import confidence_sequence, discordant, wilson


@pytest.mark.parametrize(("wins", "count"), [(15, 20), (1, 7), (500, 1000)])
def test_wilson_s_bounds_are_where_the_score_test_turns(wins, count):
    found = wilson(wins, count)
    for bound in (found.low, found.high):
        score = (wins / count - bound) / (bound * (1 - bound) / count) ** 0.5
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


def test_wilson_at_the_ends():
    assert (wilson(0, 10).low, wilson(10, 10).high) == pytest.approx((0, 1), abs=1e-12)
    assert wilson(0, 0).share == 0.5


def test_the_bounds_enclose_the_share_and_close_in():
    widths = []
    for scale in (1, 10, 100):
        found = confidence_sequence(7 * scale, 3 * scale)
        assert found.low < 0.7 < found.high
        widths.append(found.high - found.low)
    assert widths == sorted(widths, reverse=True)
    assert confidence_sequence(0, 0).low == 0
    assert confidence_sequence(0, 50).high < 0.2
    assert confidence_sequence(50, 0).low > 0.8
    mirrored = confidence_sequence(3, 7)
    assert mirrored.low == pytest.approx(1 - confidence_sequence(7, 3).high)


def test_looking_after_every_judgement_keeps_the_promise():
    """Of trials in which nobody is better at most 5% are ever decided, by Wilson many more."""
    generator = random.Random(0)
    bounds_of, wilson_of = cache(confidence_sequence), cache(wilson)
    wrong, fixed = 0, 0
    for _ in range(300):
        wins = losses = 0
        sequence = interval = False
        for _ in range(150):
            win = generator.random() < 0.5
            wins, losses = wins + win, losses + (not win)
            bounds = bounds_of(wins, losses)
            sequence |= not bounds.low <= 0.5 <= bounds.high
            bounds = wilson_of(wins, wins + losses)
            interval |= not bounds.low <= 0.5 <= bounds.high
        wrong, fixed = wrong + sequence, fixed + interval
    assert wrong / 300 <= 0.05
    assert fixed / 300 > 0.2


def test_pairs_that_agree_count_for_nothing():
    assert discordant([True, True, False, False, True], [True, False, True, False]) == (1, 1)
    assert discordant([], [True]) == (0, 0)
