"""Finds stop strings in a text that comes in pieces, in time linear in the text.

Knuth, Morris and Pratt, "Fast pattern matching in strings" (1977): after every character it is
known how much of each stop string the text ends with. That much is held back and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopStrings:
    """Stop strings of one request, none of them empty, prepared for all of its continuations.

    `borders[k][i]` is the length of the longest proper beginning of string k that its first i + 1
    characters end with.
    """

    strings: tuple[str, ...] = ()
    borders: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def prepare(cls, strings: Sequence[str]) -> StopStrings:
        """Takes time linear in the length of all of them."""
        return cls(tuple(strings), tuple(map(_borders, strings)))


NO_STOPS = StopStrings()


class StopMatcher:
    """The search in one continuation. `stopped` is the string that ended it.

    The text ends before the stop string that is complete first; of several that end with the same
    character, before the longest.
    """

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._matched = [0] * len(stops.strings)
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown after `text` has arrived."""
        if not self._matched or self.stopped is not None:
            return "" if self.stopped is not None else text
        held = self._held + text
        for end, character in enumerate(text, len(self._held) + 1):
            if (found := self._advance(character)) is not None:
                self.stopped, self._held = found, ""
                return held[: end - len(found)]
        shown = len(held) - max(self._matched)
        self._held = held[shown:]
        return held[:shown]

    def finish(self) -> str:
        """The text held back, after an end without a stop string."""
        rest, self._held = self._held, ""
        return rest

    def _advance(self, character: str) -> str | None:
        found = None
        for k, string in enumerate(self._stops.strings):
            matched = self._matched[k]
            while matched and string[matched] != character:
                matched = self._stops.borders[k][matched - 1]
            matched += string[matched] == character
            if matched == len(string):
                found = max(found or "", string, key=len)
                matched = 0
            self._matched[k] = matched
        return found


def _borders(string: str) -> tuple[int, ...]:
    borders = [0] * len(string)
    length = 0
    for i in range(1, len(string)):
        while length and string[length] != string[i]:
            length = borders[length - 1]
        length += string[length] == string[i]
        borders[i] = length
    return tuple(borders)
