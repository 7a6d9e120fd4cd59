"""What prompt look-up knows of one sequence: where its tokens stood before, how often that helped.

After a long match a guess is right more often than after a short one, so each kind has a pace of
its own.
"""

from __future__ import annotations

from collections.abc import Iterable

from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.ngram import NOTHING, NgramIndex
from hagane.engine.speculative.pace import Pace

# Tokens from which a match is long.
_LONG = 10


class Lookup:
    """Guesses for one sequence, from its prompt and its answer so far, and `others`.

    These are answers that the same conversation got before.
    """

    def __init__(self, others: Iterable[list[int]] = ()) -> None:
        self._index = NgramIndex()
        for other in others:
            self._index.extend(other)
        self._before = len(self._index)
        self._short, self._long = Pace(), Pace()
        self._match = NOTHING

    @property
    def acceptance(self) -> float:
        """The probability that the next token of the guess is right."""
        return self._pace.acceptance

    def guess(self, sequence: Sequence, most: int) -> list[int]:
        """Up to `most` tokens that may follow those that the sequence has by now.

        Those of the last time are compared with what has followed, whether they were proposed or
        not.
        """
        new = sequence.tokens[len(self._index) - self._before :]
        self._pace.compare(self._match.tokens, new)
        self._index.extend(new)
        self._match = self._index.propose(most)
        return self._match.tokens

    @property
    def _pace(self) -> Pace:
        return self._long if self._match.length >= _LONG else self._short
