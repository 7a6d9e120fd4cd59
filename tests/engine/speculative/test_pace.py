"""How many tokens are guessed."""

from __future__ import annotations

import random

import pytest
from hagane.engine.speculative.pace import Pace, share_rows

CHEAP = [1.0, 1.07, 1.13, 1.2, 1.3, 1.4, 1.5, 1.6]
DEAR = [1.0, 2.0, 3.0, 4.0]


def best_length(acceptance, costs):
    """The room of one sequence alone."""
    rows = len(costs)
    (length,) = share_rows([acceptance], [rows], 1, rows, lambda count: costs[count - 1])
    return length


def test_good_guesses_are_made_long_and_bad_ones_not_at_all():
    assert best_length(1.0, CHEAP) == 7
    assert best_length(0.0, CHEAP) == 0
    assert 0 < best_length(0.5, CHEAP) < 7
    assert best_length(0.9, DEAR) == 0


@pytest.mark.parametrize("acceptance", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_no_other_length_yields_more(acceptance):
    def rate(guesses):
        return sum(acceptance**i for i in range(guesses + 1)) / CHEAP[guesses]

    chosen = best_length(acceptance, CHEAP)
    assert rate(chosen) >= max(map(rate, range(len(CHEAP)))) / 1.03


def test_rows_go_where_they_yield_most():
    assert share_rows([0.9, 0.1, 0.8], [9, 9, 2], 3, 8, lambda rows: 1.0) == [4, 0, 1]
    assert share_rows([0.9, 0.9], [0, 4], 2, 32, lambda rows: 1.0) == [0, 4]
    assert share_rows([0.9] * 16, [4] * 16, 16, 64, lambda rows: float(rows)) == [0] * 16


def test_the_pace_follows_what_is_seen():
    rng = random.Random(0)
    pace = Pace()
    assert pace.acceptance == 0.5
    for _ in range(200):
        pace.observe(rng.random() < 0.05)
    assert pace.acceptance < 0.3
    for _ in range(60):
        pace.observe(True)
    assert pace.acceptance > 0.95
