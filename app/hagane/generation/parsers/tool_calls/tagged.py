"""Calls whose arguments stand in tags, one by one: Qwen3-Coder and GLM-4.5.

Values are bare text; the tool's own schema decides which of them are JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from hagane.generation.events import Event, ToolCallArguments, ToolCallStarted
from hagane.generation.notation import Members, Notation
from hagane.generation.parsers.tool_calls.delimited import DelimitedCalls
from hagane.system import strict_json

Schemas = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each tool's parameters, by the tool's name."""


class TaggedCall:
    """One call: a head with the name, then one argument after the other.

    `head` matches the name, `argument` a key and its value; both where they are whole. Arguments
    are passed on one by one, as members of one JSON object.
    """

    def __init__(
        self, count: int, schemas: Schemas, head: re.Pattern[str], argument: re.Pattern[str]
    ) -> None:
        self.count = count
        self._schemas, self._head, self._argument = schemas, head, argument
        self._index = count
        self._name: str | None = None
        self._members = 0
        self._buffer = ""

    def feed(self, text: str) -> list[Event]:
        """The events of more text."""
        self._buffer += text
        events: list[Event] = []
        if self._name is None:
            match = self._head.match(self._buffer)
            if match is None:
                return []
            events += self._begin(match)
        while match := self._argument.search(self._buffer):
            self._buffer = self._buffer[match.end() :]
            separator = ", " if self._members else "{"
            self._members += 1
            member = f"{json.dumps(match[1], ensure_ascii=False)}: {self._value(*match.groups())}"
            events.append(ToolCallArguments(self._index, separator + member))
        return events

    def finish(self) -> list[Event]:
        """Close the object; a head without arguments may have waited for its end."""
        events: list[Event] = []
        if self._name is None:
            match = self._head.match(self._buffer + "\n")
            if match is None:
                return []
            events += self._begin(match)
        return [*events, ToolCallArguments(self._index, "}" if self._members else "{}")]

    def _begin(self, match: re.Match[str]) -> list[Event]:
        self._name, self._buffer = match[1], self._buffer[match.end() :]
        self.count += 1
        return [ToolCallStarted(self._index, self._name)]

    def _value(self, key: str, text: str) -> str:
        """`text` as JSON: a string where the schema wants one, else its value if it is JSON."""
        properties = self._schemas.get(self._name or "", {}).get("properties", {})
        schema = properties.get(key, {})
        if isinstance(schema, Mapping) and schema.get("type") == "string":
            return json.dumps(text, ensure_ascii=False)
        try:
            strict_json.loads(text)
        except ValueError:
            return json.dumps(text, ensure_ascii=False)
        return text


QWEN3_CODER = Notation(
    ("<tool_call>", "\n<function="),
    (">\n",),
    ("</function>\n", "</tool_call>"),
    separator=("\n",),
    members=Members(("<parameter=",), (">\n",), ("\n</parameter>", "\n")),
)
_BREAK = re.compile(r"\n?")
GLM4 = Notation(
    ("<tool_call>",),
    (_BREAK,),
    ("</tool_call>",),
    separator=(_BREAK,),
    members=Members(
        ("<arg_key>",), ("</arg_key>", _BREAK, "<arg_value>"), ("</arg_value>", _BREAK)
    ),
)

_QWEN_HEAD = re.compile(r"\s*<function=([^>\s]+)>")
_QWEN_ARGUMENT = re.compile(r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_GLM_HEAD = re.compile(r"\s*([\w.-]+)(?=\s|<)")
_GLM_ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def qwen3_coder(schemas: Schemas) -> DelimitedCalls:
    """Qwen3-Coder: `<tool_call><function=NAME><parameter=KEY>value</parameter>...`."""
    return DelimitedCalls(
        "<tool_call>",
        "</tool_call>",
        lambda count: TaggedCall(count, schemas, _QWEN_HEAD, _QWEN_ARGUMENT),
    )


def glm4(schemas: Schemas) -> DelimitedCalls:
    """GLM-4.5 and later: `<tool_call>NAME<arg_key>k</arg_key><arg_value>v</arg_value>...`."""
    return DelimitedCalls(
        "<tool_call>",
        "</tool_call>",
        lambda count: TaggedCall(count, schemas, _GLM_HEAD, _GLM_ARGUMENT),
    )
