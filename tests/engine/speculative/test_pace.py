"""How many tokens are guessed."""

from __future__ import annotations

import random

import pytest
from hagane.engine.speculative.pace import (
    Calibration,
    Offer,
    Pace,
    StepPlan,
    best_gain,
    share_rows,
)

CHEAP = [1.0, 1.07, 1.13, 1.2, 1.3, 1.4, 1.5, 1.6]
DEAR = [1.0, 2.0, 3.0, 4.0]


def no_draft(sequences):
    raise AssertionError("there is no draft")


def lengths(acceptances, guesses, rows, most, cost):
    offers = [Offer(*pair) for pair in zip(acceptances, guesses, strict=True)]
    return share_rows(offers, rows, most, cost, no_draft)


def best_length(acceptance, costs):
    """The room of one sequence alone."""
    rows = len(costs)
    offers = [Offer(acceptance, rows)]
    (length,) = share_rows(offers, 1, rows, lambda count: costs[count - 1], no_draft)
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
    assert lengths([0.9, 0.1, 0.8], [9, 9, 2], 3, 8, lambda rows: 1.0) == [4, 0, 1]
    assert lengths([0.9, 0.9], [0, 4], 2, 32, lambda rows: 1.0) == [0, 4]
    assert lengths([0.9] * 16, [4] * 16, 16, 64, lambda rows: float(rows)) == [0] * 16


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


def drafted(acceptances, rows, draft_cost, guesses=8):
    offers = [Offer(acceptance, guesses, drafted=True) for acceptance in acceptances]
    return share_rows(offers, rows, 16, lambda count: 1.0 + 0.07 * (count - 1), draft_cost)


def test_a_draft_guesses_where_its_steps_pay():
    assert drafted([0.8], 1, lambda sequences: 0.3)[0] >= 2
    assert drafted([0.3], 1, lambda sequences: 0.3) == [0]
    assert drafted([0.8], 1, lambda sequences: 1.0) == [0]


def test_sequences_share_the_steps_of_a_draft():
    assert drafted([0.45], 1, lambda sequences: 0.5, guesses=1) == [0]
    assert drafted([0.9, 0.45], 2, lambda sequences: 0.5, guesses=1) == [1, 1]


def test_guesses_that_are_there_go_before_those_that_are_to_be_made():
    offers = [Offer(0.8, 4), Offer(0.8, 4, drafted=True)]
    lookup, draft = share_rows(offers, 2, 16, lambda rows: 1.0 + 0.1 * rows, lambda _: 1.5)
    assert lookup > 0
    assert draft == 0


def test_the_best_gain_is_that_of_the_best_number():
    def cost(rows):
        return 1.0 + 0.1 * (rows - 1)

    assert best_gain(Offer(), 1, 16, cost, no_draft) == 1.0
    assert best_gain(Offer(0.0, 4), 1, 16, cost, no_draft) == 1.0
    rates = [sum(0.8**i for i in range(n + 1)) / (cost(1 + n) + 0.3 * n) for n in range(5)]
    offer = Offer(0.8, 4, drafted=True)
    assert best_gain(offer, 1, 16, cost, lambda _: 0.3) == pytest.approx(max(rates))


def test_a_step_grows_as_long_as_one_more_guess_pays():
    plan = StepPlan(1, 1.0, lambda rows: 1.0 + 0.1 * (rows - 1))
    assert plan.pays(0.9, 0.3)
    assert not plan.pays(0.3, 0.3)
    plan.spend(0.3)
    plan.add(0.9)
    # 1.9 tokens in 1.4: what comes next needs as many in its time.
    assert plan.pays(0.55, 0.3)
    assert not plan.pays(0.53, 0.3)


def test_confidence_is_calibrated_by_what_was_right():
    calibration = Calibration()
    assert calibration.chance(0.1) < calibration.chance(0.6) < calibration.chance(0.999)
    for _ in range(400):
        calibration.observe(0.6, True)
    assert calibration.chance(0.6) > 0.9
    assert calibration.chance(0.4) < 0.5
