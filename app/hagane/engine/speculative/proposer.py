"""Who guesses the next tokens of decoding sequences, for a step to verify."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from hagane.engine.schedule.plan import Proposal
from hagane.engine.schedule.sequence import Sequence


class Proposer(Protocol):
    """Proposes tokens that may follow; a step verifies them, so that wrong ones cost time alone.

    Example:

        proposals = proposer.propose({sequence: 100}, rows=1)
        proposals[sequence]  # Proposal(tokens=(17, 4), proposer="lookup")
    """

    def propose(self, room: Mapping[Sequence, int], rows: int) -> dict[Sequence, Proposal]:
        """Tokens for some of the sequences, at most `room` of each.

        `rows` counts the rows that the step has without proposals: one of each decoding sequence.
        """
        ...

    def observe(self, rows: int, seconds: float) -> None:
        """A step of so many rows, all of them decoding, took so long, proposals included."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended, or will not run for a while: what it holds is free."""
        ...
