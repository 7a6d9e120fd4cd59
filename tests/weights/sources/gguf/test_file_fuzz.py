"""Damaged files: read, or refused in one line that names the file, in bounded time and memory."""

from __future__ import annotations

import pytest

from tests.support.gguf_fuzz import run


def test_some_damage_is_survived():
    outcomes = run(1000, seed=1)
    assert outcomes["refused"] > 500
    assert outcomes["read"] > 0


@pytest.mark.slow
def test_much_damage_is_survived():
    run(100_000, seed=0)
