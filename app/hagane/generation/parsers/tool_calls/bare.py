"""Calls whose markers a model forgot: small models of the Hermes notation often do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence

from hagane.generation.events import Event, TextDelta
from hagane.generation.parsers.base import find_marker, held_back
from hagane.generation.parsers.json_calls import JsonValue

_FENCE = "```"
_TAGS = ("tools", "tool", "tool_calls", "function_call", "function", "response", "json", "xml")
_OPENINGS = (_FENCE, "[", *(f"<{tag}>" for tag in _TAGS))
_CLOSING_TAGS = tuple(f"</{tag}>" for tag in _TAGS)
# A fence with its language, a tag, the bracket of a list, and one within another.
_WRAPPED = re.compile(rf" ?(?:(?:```\w{{0,16}}|\[|<(?:{'|'.join(_TAGS)})>)\s*){{0,3}}")
_ANY_FENCE = re.compile(r"[ \t]{0,8}(`{0,3})")
# White space that JSON does not need around the names of a call.
_SPACE = re.compile(r"(?<=[{,:])\s+|\s+(?=[{,:])|\s+\Z")
_ARGUMENTS, _PARAMETERS = '"arguments":{', '"parameters":{'
_SCHEMA = '"type":"object"'
_LONGEST_SPACE = 160
_UNSURE = -1


class BareCalls:
    """Restores the markers of calls for the parser of marked ones, which goes after it.

    A call is an object `{"name": ..., "arguments": {...}}` (or "parameters") with the name of a
    known tool at the beginning of the answer or of a line: alone, or within a fence, a tag or a
    list, which are dropped. Further ones may follow it directly. Everything else is passed on as
    it came: fences that begin with anything else, definitions of tools, marked calls.

    At most a line's beginning is held back, as long as a call may become of it.

        parser = BareCalls(["f"], ("<tool_call>", "</tool_call>"))
        parser.feed('```json\\n{"name": "f", "argu')  # []
        parser.feed('ments": {"a')  # [TextDelta('<tool_call>{"name": "f", "arguments": {"a')]
    """

    def __init__(self, names: Iterable[str], frame: tuple[str, str]) -> None:
        self.markers: Sequence[str] = ()
        self._opening, self._closing = frame
        self._heads = [
            f'{{"name":{json.dumps(name, ensure_ascii=False)},{key}'
            for name in names
            for key in (_ARGUMENTS, _PARAMETERS)
        ]
        self._longest = max(map(len, self._heads), default=0) + len(_SCHEMA) + _LONGEST_SPACE
        self._held = ""
        self._step: Callable[[], str | None] = self._at_line_start
        self._in_fence = False
        self._value = JsonValue()  # the object of a call, as far as it was read
        self._unclosed: list[str] = []  # what closes the wrappers of calls

    def feed(self, text: str) -> list[Event]:
        """The text with markers, as far as it is certain."""
        self._held += text
        passed = ""
        while (piece := self._step()) is not None:
            passed += piece
        return [TextDelta(passed)] if passed else []

    def finish(self) -> list[Event]:
        """The text held back."""
        rest, self._held = self._held, ""
        return [TextDelta(rest)] if rest else []

    def _take(self, count: int) -> str:
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _at_line_start(self) -> str | None:
        """Each step returns text to pass on, and None where it needs more."""
        if not self._in_fence:
            place = self._find_call(self._held)
            if place == _UNSURE:
                return None
            if place is not None:
                return self._begin_call(self._held, place)
        fence = _ANY_FENCE.match(self._held)
        if fence is not None and fence.end() == len(self._held) and fence[1] != _FENCE:
            return None
        if fence is not None and fence[1] == _FENCE:
            self._in_fence = not self._in_fence
        self._step = self._within_line
        return ""

    def _within_line(self) -> str | None:
        found = find_marker(self._held, (self._opening, "\n"))
        if found is None:
            return self._take(len(self._held) - held_back(self._held, (self._opening,))) or None
        place, marker = found
        self._step = self._at_line_start if marker == "\n" else self._within_marked
        return self._take(place + len(marker))

    def _within_marked(self) -> str | None:
        place = self._held.find(self._closing)
        if place < 0:
            return self._take(len(self._held) - held_back(self._held, (self._closing,))) or None
        self._step = self._within_line
        return self._take(place + len(self._closing))

    def _within_call(self) -> str | None:
        for place, letter in enumerate(self._held):
            self._value.take(letter)
            if self._value.complete:
                self._step = self._after_call
                return self._take(place + 1) + self._closing
        return self._take(len(self._held)) or None

    def _after_call(self) -> str | None:
        """Drops what closes wrappers, markers that were remembered late among it."""
        rest = self._held.lstrip()
        closings = (*self._unclosed, *_CLOSING_TAGS, self._closing)
        for closing in closings:
            if rest.startswith(closing):
                self._held = rest[len(closing) :]
                if closing in self._unclosed:
                    self._unclosed.remove(closing)
                return ""
        following = rest[1:].lstrip() if rest[:1] in (",", ";") else rest
        place = self._find_call(following)
        if place == _UNSURE or any(closing.startswith(rest) for closing in closings):
            return None
        if place is not None:
            return self._begin_call(following, place)
        self._in_fence = _FENCE in self._unclosed
        self._unclosed = []
        self._step = self._within_line
        return ""

    def _begin_call(self, text: str, place: int) -> str:
        """The call's object begins at `place` of `text`, after its wrappers."""
        wrappers = re.findall(r"```|\[", text[:place])
        self._unclosed += [_FENCE if wrapper == _FENCE else "]" for wrapper in wrappers]
        self._held = text[place:]
        self._value = JsonValue()
        self._step = self._within_call
        return self._opening

    def _find_call(self, text: str) -> int | None:
        """Where in `text` the object begins of the call that `text` begins with.

        None if it begins with none, UNSURE if more text has to tell.
        """
        wrapped = _WRAPPED.match(text)
        place = wrapped.end() if wrapped is not None else 0
        if place >= self._longest:
            return None
        head = text[place : place + self._longest]
        if not head.startswith("{"):
            return _UNSURE if any(opening.startswith(head) for opening in _OPENINGS) else None
        is_call = self._is_call(_SPACE.sub("", head))
        if is_call is None and len(head) < self._longest:
            return _UNSURE
        return place if is_call else None

    def _is_call(self, head: str) -> bool | None:
        """Whether an object that begins so is a call; None if more text has to tell."""
        for known in self._heads:
            if head.startswith(known):
                inner = head[len(known) :]
                if not known.endswith(_PARAMETERS):
                    return True
                if inner.startswith(_SCHEMA):
                    return False  # the definition of the tool
                return None if _SCHEMA.startswith(inner) else True
        return None if any(known.startswith(head) for known in self._heads) else False
