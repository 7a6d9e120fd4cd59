"""The cost of a decode step by its rows, as measured while serving."""

from __future__ import annotations

from bisect import bisect_left

# The share that a row adds to a step of one row until it is measured: decoding waits for weights.
_ROW_SHARE = 0.05
# How far one measurement moves what is known.
_RATE = 0.15
# A step that took this many times what is known was disturbed, and counts as no slower.
_MOST_RATIO = 1.5
# Steps after which a number of rows that no longer occurs is forgotten.
_KEPT_STEPS = 400


class StepCosts:
    """Seconds of a step of so many rows; between measured ones a straight line.

    Steps are reported by `observe`. The first one of each number of rows is passed over: it also
    prepares the following ones.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._prepared: set[int] = set()
        self._known_rows: list[int] = []
        self._steps = 0

    def observe(self, rows: int, seconds: float) -> None:
        """A step of `rows` rows took so long."""
        if rows not in self._prepared:
            self._prepared.add(rows)
            return
        self._steps += 1
        self._seen[rows] = self._steps
        known = self._seconds.get(rows)
        if known is None:
            self._seconds[rows] = seconds
            self._known_rows = sorted(self._seconds)
        else:
            self._seconds[rows] = known + _RATE * (min(seconds, _MOST_RATIO * known) - known)
        if self._steps % _KEPT_STEPS == 0:
            self._forget()

    @property
    def measured(self) -> bool:
        """Whether anything was: before, times are in units of one row's."""
        return bool(self._known_rows)

    def __call__(self, rows: int) -> float:
        """Seconds that a step of `rows` rows takes; in units of one row's before any is known."""
        measured = self._known_rows
        if not measured:
            return 1.0 + _ROW_SHARE * (rows - 1)
        at = bisect_left(measured, rows)
        if at < len(measured) and measured[at] == rows:
            return self._seconds[rows]
        if 0 < at < len(measured):
            low, high = measured[at - 1], measured[at]
            share = (rows - low) / (high - low)
            return (1 - share) * self._seconds[low] + share * self._seconds[high]
        nearest = measured[min(at, len(measured) - 1)]
        model = 1.0 + _ROW_SHARE * (rows - 1)
        return self._seconds[nearest] * model / (1.0 + _ROW_SHARE * (nearest - 1))

    def _forget(self) -> None:
        for rows in [r for r, step in self._seen.items() if step < self._steps - _KEPT_STEPS]:
            del self._seen[rows], self._seconds[rows]
        self._known_rows = sorted(self._seconds)
