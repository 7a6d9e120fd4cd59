"""When a draft model guesses, and how far: as long as that pays.

It has to read a sequence before it guesses for it, and learns nothing about a sequence for which it
does not guess. So it is tried where it may pay, by what is known of earlier sequences, and where
that says it does not, as often as a small part of all time allows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.costs import StepCosts
from hagane.engine.speculative.draft_model import PIECE, DraftModel
from hagane.engine.speculative.pace import (
    Calibration,
    Cost,
    Offer,
    Pace,
    StepPlan,
    best_gain,
)

_MOST_GUESSES = 10
# Of a sequence: more observations than look-up, whose guesses come and go with the text.
_MEMORY, _WEIGHT = 0.95, 4.0
# Of all sequences together.
_FIRST_PRIOR, _LONG_MEMORY = 0.65, 0.998
# Its times vary more than those of rows alone: gains below this are not worth the reading.
_LEAST_GAIN = 1.06
# A step of the draft, in steps of the model, and the time of a token that it reads in steps of its
# own, until they are measured.
_STEP_SHARE, _READ_SHARE = 0.35, 0.1
# Fewer rows are a step, more of them are reading.
_READING_ROWS = 24
# Tokens that a sequence is expected to have yet: as many as it has, at least so many.
_HORIZON = 64
# The part of all time that tries may take, the most seconds saved up for them, the steps of a try,
# and the acceptance that is hoped for.
_TRY_SHARE, _MOST_CREDIT, _TRY_STEPS, _HOPE = 0.01, 1.0, 3, 0.75


@dataclass
class _Record:
    """The acceptance of a sequence's drafts, and how many steps of a try are left.

    `cached` are the tokens that need not be read when the draft begins with it.
    """

    pace: Pace
    cached: int
    tries: int = 0


class Drafting:
    """Follows sequences with a draft model where that pays.

    `costs` are those of the draft's steps, by default as measured.
    """

    def __init__(self, model: DraftModel, costs: StepCosts | None = None) -> None:
        self.model = model
        self._costs = costs or StepCosts()
        self._records: WeakKeyDictionary[Sequence, _Record] = WeakKeyDictionary()
        self._overall = Pace(_FIRST_PRIOR, weight=20.0, memory=_LONG_MEMORY)
        self._calibration = Calibration()
        self._read_seconds: float | None = None
        self._credit = 0.0

    def earn(self, seconds: float) -> None:
        """A step took so long: a part of that may be spent on tries."""
        self._credit = min(self._credit + _TRY_SHARE * seconds, _MOST_CREDIT)

    def forget(self, sequence: Sequence) -> None:
        """Follow a sequence no more."""
        self._records.pop(sequence, None)
        self.model.forget(sequence)

    def step_cost(self, sequences: int, cost: Cost) -> float:
        """Seconds of a step of the draft, where one of the model has `cost`."""
        seconds = self._costs(sequences)
        return seconds if self._costs.measured else _STEP_SHARE * cost(1) * seconds

    def offer(self, sequence: Sequence, most: int, rows: int, most_rows: int, cost: Cost) -> Offer:
        """What can be expected of guesses for a sequence, in a step of `rows` rows without them."""
        record = self._records.get(sequence)
        if record is None:
            pace = Pace(self._overall.acceptance, _WEIGHT, _MEMORY)
            record = _Record(pace, self.model.cached(sequence))
            self._records[sequence] = record
        if self.model.behind(sequence) is not None:
            for guess, right in self.model.catch_up(sequence):
                record.pace.observe(right)
                self._overall.observe(right)
                self._calibration.observe(guess.confidence, right)
        guesses = min(most, _MOST_GUESSES, self.model.room(sequence))
        expected = Offer(record.pace.acceptance, guesses, drafted=True)
        hoped = Offer(max(_HOPE, expected.acceptance), guesses, drafted=True)
        missing = self._missing(sequence, record) * self._read_cost(cost)

        def step_cost(sequences: int) -> float:
            return self.step_cost(sequences, cost)

        def pays(offer: Offer) -> bool:
            gain = best_gain(offer, rows, most_rows, cost, step_cost)
            steps = max(sequence.generated, _HORIZON)
            return gain > _LEAST_GAIN and steps * cost(rows) * (1 - 1 / gain) > missing

        if record.tries:
            return hoped
        if pays(expected):
            return expected
        needed = missing + _TRY_STEPS * step_cost(1)
        if self._credit > needed and pays(hoped):
            self._credit -= needed
            record.tries = _TRY_STEPS
            return hoped
        return Offer()

    def draft(
        self,
        wanted: Mapping[Sequence, int],
        plan: StepPlan,
        ends: Callable[[Sequence, int], bool],
        cost: Cost,
    ) -> dict[Sequence, list[int]]:
        """Up to so many guesses for each sequence, as long as they pay in the step of `plan`.

        Texts end with a token that `ends` them; it is no guess.
        """
        made: dict[Sequence, list[int]] = {}
        active = {s: 1.0 for s in wanted if self._follows(s)}
        while active:
            seconds = self.step_cost(len(active), cost)
            started = time.perf_counter()
            found, read = self.model.guess(list(active))
            self._observe(read, time.perf_counter() - started)
            plan.spend(seconds)
            further: dict[Sequence, float] = {}
            for sequence, guess in found.items():
                if ends(sequence, guess.token):
                    continue
                record, guesses = self._records[sequence], made.setdefault(sequence, [])
                if not guesses and record.tries:
                    record.tries -= 1
                guesses.append(guess.token)
                chance = active[sequence] * self._calibration.chance(guess.confidence)
                plan.add(chance)
                goes_on = plan.pays(chance * record.pace.acceptance, seconds / len(active))
                if len(guesses) < wanted[sequence] and goes_on:
                    further[sequence] = chance
            active = further
        return made

    def _follows(self, sequence: Sequence) -> bool:
        return self.model.behind(sequence) is not None or self.model.follow(sequence)

    def _missing(self, sequence: Sequence, record: _Record) -> int:
        """Tokens to be read before the next guess, besides those of a usual step."""
        behind = self.model.behind(sequence)
        if behind is None:
            behind = len(sequence.tokens) - record.cached
        return max(behind - 2, 0)

    def _read_cost(self, cost: Cost) -> float:
        """Seconds of a token that is read."""
        if self._read_seconds is not None:
            return self._read_seconds
        return _READ_SHARE * self.step_cost(1, cost)

    def _observe(self, read: int, seconds: float) -> None:
        if read < _READING_ROWS:
            self._costs.observe(read, seconds)
        elif read >= PIECE:
            known = self._read_seconds or seconds / read
            self._read_seconds = known + 0.2 * (seconds / read - known)
