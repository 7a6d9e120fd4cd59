"""Which pretrained models get a name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hagane.training.jobs.gate import judgement, opens
from hagane.training.report.listener import PretrainResult


def result(bits: float, base: float | None = None) -> PretrainResult:
    """A run on two corpora, whose mean is asked about."""
    before = None if base is None else {"a": base - 0.5, "b": base + 0.5}
    return PretrainResult(Path("made"), {"a": bits + 1, "b": bits - 1}, before)


@pytest.mark.parametrize(
    ("most", "bits", "base", "passes"),
    [
        (None, 2.0, None, True),
        (None, math.nan, None, False),
        (None, math.inf, None, False),
        (None, 2.0, 2.1, True),
        (None, 2.0, 2.0, False),
        (2.0, 2.0, None, True),
        (1.9, 2.0, None, False),
        (1.9, 2.0, 2.1, False),
        (2.0, 2.0, 1.9, False),
        (2.0, math.nan, 3.0, False),
    ],
)
def test_a_model_has_to_beat_the_bar_and_the_model_it_came_from(most, bits, base, passes):
    assert opens("if_better", most, result(bits, base)) == passes
    assert opens("always", most, result(bits, base))
    assert not opens("manual", most, result(bits, base))


def test_the_log_says_what_decided():
    text = judgement("small-1", False, 1.5, result(2.0, 1.8))
    assert "made, but not promoted" in text
    assert "2.0000" in text
    assert "1.8000 before" in text
    assert "at most 1.5" in text
    assert "created: small-1" in judgement("small-1", True, None, result(2.0))
