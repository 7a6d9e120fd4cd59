"""Guessed tokens as the scheduler sees them: who makes them, and how many were right."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

from hagane.engine.schedule.plan import Chunk, Proposal, ProposerName
from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.proposer import Proposer
from hagane.pool.messages import ProposerStats

logger = logging.getLogger(__name__)


class Guesses:
    """A scheduler's `proposer`, if it has one, and the figures of what it has proposed."""

    def __init__(self, proposer: Proposer | None) -> None:
        self._proposer = proposer
        self._proposed: Counter[ProposerName] = Counter()
        self._accepted: Counter[ProposerName] = Counter()

    def propose(self, room: Mapping[Sequence, int], rows: int) -> dict[Sequence, Proposal]:
        """As `Proposer.propose`, for the sequences that may be guessed for."""
        if self._proposer is None:
            return {}
        room = {s: most for s, most in room.items() if s.speculation != "off" and s.generated}
        try:
            return self._proposer.propose(room, rows) if room else {}
        except Exception:
            # A guess must not cost an answer. Nobody guesses on devices that can be lost.
            logger.exception("guessing failed: the step goes without")
            for sequence in room:
                self._proposer.forget(sequence)
            return {}

    def count(self, chunk: Chunk, accepted: int) -> None:
        """A chunk was verified, and so many of its guesses were right."""
        self._proposed[chunk.proposer] += len(chunk.proposed)
        self._accepted[chunk.proposer] += accepted

    def forget(self, sequence: Sequence) -> None:
        """As `Proposer.forget`."""
        if self._proposer is not None:
            self._proposer.forget(sequence)

    def stats(self, proposer: ProposerName) -> ProposerStats:
        """The figures of one who proposes."""
        return ProposerStats(self._proposed[proposer], self._accepted[proposer])
