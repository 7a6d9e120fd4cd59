"""Calls written as JSON objects with a name and arguments, read letter by letter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hagane.generation.events import Event, ToolCallArguments, ToolCallStarted
from hagane.system import strict_json

NAMES = ("name", "function", "tool_name")
ARGUMENTS = ("arguments", "parameters", "args", "input")


@dataclass
class JsonValue:
    """Finds the end of one JSON value in a stream: strings, brackets, or a bare word."""

    depth: int = 0
    quoted: bool = False
    escaped: bool = False
    begun: bool = False
    kind: str = ""

    def take(self, letter: str) -> bool:
        """Whether the value goes on with `letter`; a bare word ends before the letter after it."""
        if not self.begun:
            self.begun, self.kind = True, letter
        if self.quoted:
            if self.escaped:
                self.escaped = False
            elif letter == "\\":
                self.escaped = True
            elif letter == '"':
                self.quoted = False
        elif letter == '"':
            self.quoted = True
        elif letter in "{[":
            self.depth += 1
        elif letter in "}]":
            self.depth -= 1
        return self.kind in '"{[' or letter not in ",}] \n\r\t"

    @property
    def complete(self) -> bool:
        """Whether the letters so far are a whole string, object or list."""
        return self.begun and self.kind in '"{[' and not self.quoted and self.depth == 0


@dataclass
class JsonCall:
    """Reads one object such as `{"name": "f", "arguments": {...}}`, members in any order.

    The arguments are passed on as they come once the name is known. Arguments that are a string
    hold JSON themselves and are unpacked. `done` is set after the object's last bracket.
    """

    index: int
    done: bool = False
    name: str | None = None
    _state: Literal["open", "key", "colon", "value", "next"] = "open"
    _key: str = ""
    _token: JsonValue | None = None  # the key or value that is being read, and its text
    _text: str = ""
    _passed: int = 0  # letters of `_text` that were passed on as arguments
    _early: str = ""  # arguments that came before the name
    _any_arguments: bool = False

    def feed(self, text: str) -> tuple[list[Event], str]:
        """The events of `text`, and what follows the object in it."""
        events: list[Event] = []
        for place, letter in enumerate(text):
            if self._token is not None:
                if self._token.take(letter):
                    self._text += letter
                    if self._token.complete:
                        events += self._end_token()
                    continue
                events += self._end_token()
            self._step(letter)
            if self.done:
                return events + self._end(), text[place + 1 :]
        return events + self._pass_arguments(), ""

    def _step(self, letter: str) -> None:
        if letter.isspace():
            return
        if self._state == "open":
            self._state = "key" if letter == "{" else "open"
        elif letter == "}" and self._state in ("key", "next"):
            self.done = True
        elif self._state == "next":
            self._state = "key"
        elif self._state == "colon":
            self._state = "value"
        else:
            self._token, self._text, self._passed = JsonValue(), letter, 0
            self._token.take(letter)

    def _end_token(self) -> list[Event]:
        """A key or a value is whole."""
        if self._state == "key":
            self._key, self._token, self._state = _unquoted(self._text), None, "colon"
            return []
        events: list[Event] = []
        if self._key in NAMES and self.name is None:
            self.name = _unquoted(self._text)
            events.append(ToolCallStarted(self.index, self.name))
            early, self._early = self._early, ""
            events += self._emit(early)
        elif self._key in ARGUMENTS and self._in_string:
            events += self._emit(_unquoted(self._text))
        else:
            events += self._pass_arguments()
        self._token, self._state = None, "next"
        return events

    @property
    def _in_string(self) -> bool:
        return self._token is not None and self._token.kind == '"'

    def _pass_arguments(self) -> list[Event]:
        """The part of the arguments that arrived since the last call."""
        if self._token is None or self._state != "value" or self._in_string:
            return []
        if self._key not in ARGUMENTS:
            return []
        piece, self._passed = self._text[self._passed :], len(self._text)
        return self._emit(piece)

    def _emit(self, piece: str) -> list[Event]:
        if not piece:
            return []
        if self.name is None:
            self._early += piece
            return []
        self._any_arguments = True
        return [ToolCallArguments(self.index, piece)]

    def _end(self) -> list[Event]:
        if self.name is None or self._any_arguments:
            return []
        return [ToolCallArguments(self.index, "{}")]


def _unquoted(text: str) -> str:
    try:
        value = strict_json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str) else text
