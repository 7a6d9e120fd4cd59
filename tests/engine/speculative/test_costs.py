"""Estimates of the time of steps."""

from __future__ import annotations

import pytest
from hagane.engine.speculative.costs import StepCosts


def test_before_anything_is_measured_rows_are_cheap():
    costs = StepCosts()
    assert costs(1) == 1.0
    assert 1.0 < costs(8) < 2.0


def test_measured_steps_and_lines_between_them():
    costs = StepCosts()
    for _ in range(2):  # the first of each is passed over
        costs.observe(1, 0.010)
        costs.observe(5, 0.014)
    assert costs(1) == 0.010
    assert costs(3) == pytest.approx(0.012)
    assert costs(5) == 0.014
    assert costs(9) > 0.014


def test_one_disturbed_step_moves_little_and_a_lasting_change_is_followed():
    costs = StepCosts()
    for _ in range(50):
        costs.observe(1, 0.010)
    costs.observe(1, 1.0)
    assert costs(1) < 0.011
    for _ in range(100):
        costs.observe(1, 0.020)
    assert costs(1) == pytest.approx(0.020, rel=0.01)


def test_what_no_longer_occurs_is_forgotten():
    costs = StepCosts()
    for rows in (1, 8):
        costs.observe(rows, 0.01)
        costs.observe(rows, 0.01 if rows == 1 else 9.0)
    assert costs(8) == 9.0
    for _ in range(1000):
        costs.observe(1, 0.01)
    assert costs(8) < 0.02
