"""Decides who guesses for each sequence, and how much: look-up, a draft model, or nobody.

Look-up costs nothing but rows, a draft its steps as well. What is expected of either follows from
how often its guesses were right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakKeyDictionary

from hagane.engine.schedule.plan import Proposal
from hagane.engine.schedule.sequence import Phase, Sequence
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.drafting import Drafting
from hagane.engine.speculative.history import AnswerHistory
from hagane.engine.speculative.lookup import Lookup
from hagane.engine.speculative.pace import Offer, StepPlan, best_gain, share_rows
from hagane.pool.messages import Speculation
from hagane.system.errors import InvalidRequestError

# Rows beyond those of one sequence that a step verifies of it.
_MOST_GUESSES = 15


class Speculator:
    """Guesses for decoding sequences (Proposer).

    Args:
        most_rows: rows of a step that can be verified.
        follow: how many of some tokens a sequence's grammar would let follow.
        choice: who guesses for the sequences that leave it open.
        drafting: the draft model, if there is one.
        history: earlier answers, if they may be looked up in for later sequences.
        costs: what steps of the model cost, by default as measured.
    """

    def __init__(
        self,
        most_rows: int,
        follow: Callable[[Sequence, list[int]], int],
        choice: Speculation = "auto",
        drafting: Drafting | None = None,
        history: AnswerHistory | None = None,
        costs: StepCosts | None = None,
    ) -> None:
        self._most_rows, self._follow, self._choice = most_rows, follow, choice
        self.drafting, self._history = drafting, history
        self._costs = costs or StepCosts()
        self._lookups: WeakKeyDictionary[Sequence, Lookup] = WeakKeyDictionary()

    def propose(self, room: Mapping[Sequence, int], rows: int) -> dict[Sequence, Proposal]:
        guesses: dict[Sequence, list[int]] = {}
        offers = [self._offer(sequence, most, rows, guesses) for sequence, most in room.items()]
        if not any(offer.guesses for offer in offers):
            return {}
        lengths = share_rows(offers, rows, self._most_rows, self._costs, self._draft_cost)
        chosen = [part for part in zip(room, offers, lengths, strict=True) if part[2]]
        plan = StepPlan(rows, float(rows), self._costs)
        proposals: dict[Sequence, Proposal] = {}
        drafted: dict[Sequence, int] = {}
        for sequence, offer, length in chosen:
            if offer.drafted:
                drafted[sequence] = offer.guesses
                continue
            proposals[sequence] = Proposal(tuple(guesses[sequence][:length]), "lookup")
            for number in range(1, length + 1):
                plan.add(offer.acceptance**number)
        return proposals | self._draft(drafted, plan)

    def observe(self, rows: int, seconds: float) -> None:
        self._costs.observe(rows, seconds)
        if self.drafting is not None:
            self.drafting.earn(seconds)

    def forget(self, sequence: Sequence) -> None:
        known = self._lookups.pop(sequence, None)
        if self._history and known is not None and sequence.phase is Phase.FINISHED:
            self._history.remember(sequence)
        if self.drafting is not None:
            self.drafting.forget(sequence)

    def _offer(
        self, sequence: Sequence, most: int, rows: int, guesses: dict[Sequence, list[int]]
    ) -> Offer:
        """The better one of what look-up and the draft have; look-up's `guesses` are put there."""
        choice = self._choice if sequence.speculation == "auto" else sequence.speculation
        best = Offer()
        if choice != "draft":
            best = self._look_up(sequence, min(most, _MOST_GUESSES), guesses)
        if choice != "lookup" and self.drafting is not None:
            drafted = self.drafting.offer(sequence, most, rows, self._most_rows, self._costs)
            if drafted.guesses and self._gain(drafted, rows) > self._gain(best, rows):
                return drafted
        return best

    def _gain(self, offer: Offer, rows: int) -> float:
        return best_gain(offer, rows, self._most_rows, self._costs, self._draft_cost)

    def _look_up(self, sequence: Sequence, most: int, guesses: dict[Sequence, list[int]]) -> Offer:
        lookup = self._lookups.get(sequence)
        if lookup is None:
            others = self._history.recall(sequence) if self._history else ()
            lookup = self._lookups[sequence] = Lookup(others)
        found = lookup.guess(sequence, most)
        guesses[sequence] = found[: self._usable(sequence, found)]
        return Offer(lookup.acceptance, len(guesses[sequence]))

    def _draft_cost(self, sequences: int) -> float:
        return 0.0 if self.drafting is None else self.drafting.step_cost(sequences, self._costs)

    def _draft(self, offered: Mapping[Sequence, int], plan: StepPlan) -> dict[Sequence, Proposal]:
        """The draft's guesses, at most as many for each sequence as it has `offered`."""
        if self.drafting is None or not offered:
            return {}
        most = (self._most_rows - plan.rows) // len(offered)
        wanted = {sequence: min(count, most) for sequence, count in offered.items() if most}
        made = self.drafting.draft(wanted, plan, _ends, self._costs)
        usable = {s: guesses[: self._usable(s, guesses)] for s, guesses in made.items()}
        return {s: Proposal(tuple(guesses), "draft") for s, guesses in usable.items() if guesses}

    def _usable(self, sequence: Sequence, guess: list[int]) -> int:
        """How many leading tokens of a guess can be followed by more."""
        if not guess:
            return 0
        usable = next((n for n, token in enumerate(guess) if _ends(sequence, token)), len(guess))
        if sequence.grammar is None:
            return usable
        try:
            return self._follow(sequence, guess[:usable])
        except InvalidRequestError:
            # A grammar that cannot go on reports it again when its next token is sampled.
            return 0


def _ends(sequence: Sequence, token: int) -> bool:
    sampling = sequence.sampling
    return token in sampling.eos_token_ids or token in sampling.stop_token_ids
