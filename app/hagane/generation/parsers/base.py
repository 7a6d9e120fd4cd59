"""The contract of parsers, how they follow each other, and the search for markers in streams."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from hagane.generation.events import Event, TextDelta


class Parser(Protocol):
    """Turns text into events as it arrives.

    The text may be cut anywhere: the events of `feed("ab")` and of `feed("a")`, `feed("b")` are the
    same once neighbouring deltas are joined. Text is held back only while it may still turn out to
    be a marker. `finish` gives what was held back; nothing is ever lost.

        parser = ReasoningParser("<think>", "</think>")
        parser.feed("<thi")            # []
        parser.feed("nk>Hm.</think>")  # [ReasoningDelta("Hm.")]
        parser.feed("Yes.")            # [TextDelta("Yes.")]

    `markers` are the special tokens whose text the detokenizer must not leave out.
    """

    @property
    def markers(self) -> Sequence[str]: ...

    def feed(self, text: str) -> list[Event]: ...

    def finish(self) -> list[Event]: ...


class Chain:
    """A pipeline of parsers: each sees the text that the previous one let through."""

    def __init__(self, parsers: Sequence[Parser]) -> None:
        self._parsers = parsers
        self.markers = tuple(marker for parser in parsers for marker in parser.markers)

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        return self._pass([TextDelta(text)], self._parsers)

    def finish(self) -> list[Event]:
        """The events that the parsers still hold, at the end of the text."""
        events: list[Event] = []
        for place, parser in enumerate(self._parsers):
            events += self._pass(parser.finish(), self._parsers[place + 1 :])
        return events

    @staticmethod
    def _pass(events: Iterable[Event], parsers: Sequence[Parser]) -> list[Event]:
        passing = [event for event in events if event != TextDelta("")]
        for parser in parsers:
            following: list[Event] = []
            for event in passing:
                if isinstance(event, TextDelta):
                    following += parser.feed(event.text)
                else:
                    following.append(event)
            passing = following
        return passing


def find_marker(text: str, markers: Sequence[str]) -> tuple[int, str] | None:
    """Where the first of `markers` begins in `text`, and which one; the longest of equals."""
    found = [(text.find(marker), -len(marker), marker) for marker in markers if marker in text]
    if not found:
        return None
    place, _, marker = min(found)
    return place, marker


def held_back(text: str, markers: Sequence[str]) -> int:
    """How many letters at the end of `text` may be the beginning of a marker."""
    longest = max((len(marker) for marker in markers), default=0)
    for count in range(min(len(text), longest - 1), 0, -1):
        tail = text[-count:]
        if any(marker.startswith(tail) for marker in markers):
            return count
    return 0
