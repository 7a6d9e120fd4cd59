"""The log of loading."""

from __future__ import annotations

import logging

from hagane.weights.load_progress import LoadProgress


def test_progress_is_logged_once_a_second_with_what_is_left(caplog):
    clock = iter([0.0, 0.5, 1.2, 1.9, 4.0, 5.0])
    progress = LoadProgress(100_000_000, now=lambda: next(clock))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            progress.advance(20_000_000)
    assert [record.getMessage() for record in caplog.records] == [
        "loading weights: 40% (40 of 100 M parameters), about 2 s left",
        "loading weights: 80% (80 of 100 M parameters), about 1 s left",
    ]
