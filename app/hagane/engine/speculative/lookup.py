"""Proposes what followed when a sequence's last tokens stood in it before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.ngram import NgramIndex
from hagane.engine.speculative.pace import Pace, share_rows
from hagane.system.errors import InvalidRequestError

# Rows beyond those of one sequence that a step verifies of it.
_MOST_GUESSES = 15


@dataclass
class _State:
    """The history of one sequence, and the guess that its next tokens will be compared with."""

    index: NgramIndex = field(default_factory=NgramIndex)
    pace: Pace = field(default_factory=Pace)
    guess: list[int] = field(default_factory=list)


class PromptLookup:
    """Prompt look-up over the prompt and the answer so far (Proposer).

    Args:
        most_rows: rows of a step that can be verified.
        follow: how many of some tokens a sequence's grammar would let follow.
    """

    def __init__(
        self,
        most_rows: int,
        follow: Callable[[Sequence, list[int]], int],
        costs: StepCosts | None = None,
    ) -> None:
        self._most_rows, self._follow = most_rows, follow
        self._costs = costs or StepCosts()
        self._states: WeakKeyDictionary[Sequence, _State] = WeakKeyDictionary()

    def propose(self, room: Mapping[Sequence, int], rows: int) -> dict[Sequence, tuple[int, ...]]:
        sequences = list(room)
        states = [self._guess(sequence, room[sequence]) for sequence in sequences]
        guesses = [len(state.guess) for state in states]
        if not any(guesses):
            return {}
        acceptances = [state.pace.acceptance for state in states]
        lengths = share_rows(acceptances, guesses, rows, self._most_rows, self._costs)
        return {
            sequence: tuple(state.guess[:length])
            for sequence, state, length in zip(sequences, states, lengths, strict=True)
            if length
        }

    def observe(self, rows: int, seconds: float) -> None:
        self._costs.observe(rows, seconds)

    def _guess(self, sequence: Sequence, room: int) -> _State:
        state = self._states.get(sequence)
        if state is None:
            state = self._states[sequence] = _State()
        new = sequence.tokens[len(state.index) :]
        for guessed, token in zip(state.guess, new, strict=False):
            state.pace.observe(guessed == token)
            if guessed != token:
                break
        state.index.extend(new)
        guess = state.index.propose(min(room, _MOST_GUESSES))
        state.guess = guess[: self._usable(sequence, guess)]
        return state

    def _usable(self, sequence: Sequence, guess: list[int]) -> int:
        """How many leading tokens of a guess can be followed by more."""
        if not guess:
            return 0
        ends = (*sequence.sampling.eos_token_ids, *sequence.sampling.stop_token_ids)
        usable = next((place for place, token in enumerate(guess) if token in ends), len(guess))
        if sequence.grammar is None:
            return usable
        try:
            return self._follow(sequence, guess[:usable])
        except InvalidRequestError:
            # A grammar that cannot go on reports it again when its next token is sampled.
            return 0
