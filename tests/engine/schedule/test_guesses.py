"""Guesses that cannot be made cost no answer."""

from __future__ import annotations

from hagane.engine.schedule.guesses import Guesses
from hagane.engine.schedule.sequence import Sequence

from tests.support.scheduling import request


class Failing:
    """A proposer whose memory has run out."""

    def __init__(self) -> None:
        self.forgotten: list[Sequence] = []

    def propose(self, room, rows):
        raise MemoryError("no memory for a guess")

    def observe(self, rows, seconds):
        raise AssertionError("no step was measured")

    def forget(self, sequence):
        self.forgotten.append(sequence)


def test_a_proposer_that_fails_is_gone_without():
    proposer = Failing()
    sequence = Sequence.of(request("a"), 0, 0.0)
    sequence.tokens.append(5)
    assert Guesses(proposer).propose({sequence: 3}, 1) == {}
    assert proposer.forgotten == [sequence]
