"""Structural tags: free text in which some beginnings oblige to go on in a form.

Two notations are read: `structures` and `triggers`, and the newer `format`, a tree.
https://docs.vllm.ai/en/latest/features/structured_outputs.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from hagane.generation import grammars
from hagane.generation.grammars import Grammar, Marker
from hagane.system.errors import InvalidRequestError

_DEEPEST = 16
_MOST_PARTS = 1024
# What may be a token of its own within a text.
_TOKEN = re.compile(r"(<[^<>\s]{1,64}>|\[/?[A-Z_]{2,32}\])")
_TEXT, _SOME = "/(.|\\n)*/", "/(.|\\n)+/"


def from_structural_tag(
    value: Mapping[str, Any] | str, param: str, added: Callable[[str], int | None]
) -> Grammar:
    """The grammar of a structural tag; `added` gives the id of a text that is one added token.

    Raises InvalidRequestError naming the place and what is wrong with it.
    """
    if isinstance(value, str):
        grammars.check_size(value, param)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{param} is not JSON: {error}.", param=param) from None
    if not isinstance(value, Mapping):
        raise InvalidRequestError(f"{param} must be an object.", param=param)
    form = value["format"] if "format" in value else _of_structures(value, param)
    reading = _Reading(param, added)
    start = reading.form(form, "format" if "format" in value else "structures")
    rules = "\n".join([f"start: {start}", *reading.rules])
    grammars.check_size(rules, param)
    return grammars.compose(rules, reading.parts, param)


def _of_structures(value: Mapping[str, Any], param: str) -> dict[str, Any]:
    """The older notation as the newer one."""
    structures = value.get("structures")
    if not isinstance(structures, list) or "triggers" not in value:
        raise InvalidRequestError(
            f"{param} needs 'format', or 'structures' and 'triggers'.", param=param
        )
    tags = [
        {
            "begin": each.get("begin"),
            "content": {"type": "json_schema", "json_schema": each.get("schema", {})},
            "end": each.get("end"),
        }
        if isinstance(each, Mapping)
        else each
        for each in structures
    ]
    return {"type": "triggered_tags", "triggers": value["triggers"], "tags": tags}


class _Reading:
    """Reads a tree of forms; collects Lark `rules`, and `parts` that they refer to by @name."""

    def __init__(self, param: str, added: Callable[[str], int | None]) -> None:
        self._param, self._added = param, added
        self.rules: list[str] = []
        self.parts: dict[str, Grammar] = {}
        self._depth = 0

    def form(self, value: Any, place: str, end: str | None = None) -> str:
        """A form as Lark, with the text `end` after it."""
        kind = value.get("type") if isinstance(value, Mapping) else None
        read = self._KINDS.get(kind) if isinstance(kind, str) else None
        if read is None:
            known = ", ".join(self._KINDS)
            raise self._error(place, f"'type' must be one of {known}; found {kind!r:.80}")
        if self._depth > _DEEPEST:
            raise self._error(place, "it is nested too deeply")
        if kind == "any_text" and end and not self._is_token(end):
            # Text ends where its end is met first.
            return self._rule(_TEXT, f"suffix={json.dumps(end)}")
        self._depth += 1
        made = str(read(self, value, place))
        self._depth -= 1
        return f"{made} {self._literal(end)}" if end else made

    def _const(self, value: Mapping[str, Any], place: str) -> str:
        return self._literal(self._text(value, "value", place))

    def _schema(self, value: Mapping[str, Any], place: str) -> str:
        schema = value.get("json_schema")
        if isinstance(schema, str) or schema is None:
            raise self._error(place, "'json_schema' must be a JSON schema")
        return self._part(grammars.from_json_schema(schema, f"{self._param}.{place}"))

    def _any_text(self, value: Mapping[str, Any], place: str) -> str:
        return self._rule(_TEXT)

    def _regex(self, value: Mapping[str, Any], place: str) -> str:
        pattern = self._text(value, "pattern", place)
        return self._part(grammars.from_regex(pattern, f"{self._param}.{place}"))

    def _grammar(self, value: Mapping[str, Any], place: str) -> str:
        text = self._text(value, "grammar", place)
        return self._part(grammars.from_text(text, f"{self._param}.{place}"))

    def _sequence(self, value: Mapping[str, Any], place: str) -> str:
        elements = self._list(value, "elements", place)
        for i, each in enumerate(elements[:-1]):
            if isinstance(each, Mapping) and each.get("type") == "any_text":
                raise self._error(
                    f"{place}.elements[{i}]", "'any_text' must come last, or in a tag with an end"
                )
        return " ".join(
            self.form(each, f"{place}.elements[{i}]") for i, each in enumerate(elements)
        )

    def _or(self, value: Mapping[str, Any], place: str) -> str:
        elements = self._list(value, "elements", place)
        made = [self.form(each, f"{place}.elements[{i}]") for i, each in enumerate(elements)]
        return f"({' | '.join(made)})"

    def _tag(self, value: Mapping[str, Any], place: str, after: str = "") -> str:
        """A tag without the beginning `after`, which was read before."""
        begin = self._text(value, "begin", place).removeprefix(after)
        found = value.get("end", "")
        ends = found if isinstance(found, list) and found else [found]
        if not all(isinstance(end, str) for end in ends):
            raise self._error(place, "'end' must be a text, or a list of texts")
        content, spot = value.get("content"), f"{place}.content"
        if len(ends) == 1 or (isinstance(content, Mapping) and content.get("type") == "any_text"):
            made = [self.form(content, spot, end) for end in ends]
        else:
            # Read once, however many ends there are: what is nested would multiply.
            inner = self._rule(self.form(content, spot))
            made = [f"{inner} {self._literal(end)}" for end in ends]
        return f"{self._literal(begin)} ({' | '.join(made)})"

    def _triggered(self, value: Mapping[str, Any], place: str) -> str:
        triggers, tags = self._list(value, "triggers", place), self._list(value, "tags", place)
        by_trigger: dict[str, list[str]] = {}
        for i, tag in enumerate(tags):
            spot = f"{place}.tags[{i}]"
            begin = self._text(tag, "begin", spot)
            fitting = [each for each in triggers if isinstance(each, str) and each]
            fitting = [each for each in fitting if begin.startswith(each)]
            if len(fitting) != 1:
                raise self._error(spot, "'begin' must begin with one of the triggers, and only one")
            made = self._tag(tag, spot, after=fitting[0])
            by_trigger.setdefault(fitting[0], []).append(made)
        section = self._rule(" | ".join(map(self._section, by_trigger.items())))
        once = value.get("stop_after_first") is True
        if value.get("at_least_one") is True:
            return section if once else f"({_SOME} | {section})* {section} {_SOME}?"
        return f"({section} | {_SOME})?" if once else f"({_SOME} | {section})*"

    def _section(self, item: tuple[str, list[str]]) -> str:
        """Text up to a trigger, and one of the tags that it begins."""
        trigger, tags = item
        if self._is_token(trigger):
            return f"{_SOME}? {self._literal(trigger)} ({' | '.join(tags)})"
        return f"{self._rule(f'{_SOME}? {json.dumps(trigger)}', 'lazy')} ({' | '.join(tags)})"

    def _separated(self, value: Mapping[str, Any], place: str) -> str:
        tags = self._list(value, "tags", place)
        made = [self.form(each, f"{place}.tags[{i}]") for i, each in enumerate(tags)]
        tag, separator = (
            self._rule(" | ".join(made)),
            self._literal(str(value.get("separator", ""))),
        )
        whole = tag
        if value.get("stop_after_first") is not True:
            whole = f"{tag} ({separator} {tag})*"
        return whole if value.get("at_least_one") is True else f"({whole})?"

    _KINDS: ClassVar[Mapping[str, Any]] = {
        "const_string": _const,
        "json_schema": _schema,
        "any_text": _any_text,
        "regex": _regex,
        "grammar": _grammar,
        "sequence": _sequence,
        "or": _or,
        "tag": _tag,
        "triggered_tags": _triggered,
        "tags_with_separator": _separated,
    }

    def _rule(self, body: str, attribute: str = "") -> str:
        """A rule of its own, which terminals with attributes need; its name."""
        name = f"rule{len(self.rules)}"
        if len(self.rules) >= _MOST_PARTS:
            raise self._error("format", "it has too many parts")
        self.rules.append(f"{name}[{attribute}]: {body}" if attribute else f"{name}: {body}")
        return name

    def _part(self, grammar: Grammar) -> str:
        name = f"part{len(self.parts)}"
        if len(self.parts) >= _MOST_PARTS:
            raise self._error("format", "it has too many parts")
        self.parts[name] = grammar
        return f"@{name}"

    def _literal(self, text: str) -> str:
        pieces = [piece for piece in _TOKEN.split(text) if piece]
        return " ".join(Marker(piece, self._added(piece)).as_lark() for piece in pieces)

    def _is_token(self, text: str) -> bool:
        return self._added(text) is not None

    def _text(self, value: Any, name: str, place: str) -> str:
        text = value.get(name) if isinstance(value, Mapping) else None
        if not isinstance(text, str) or not text:
            raise self._error(place, f"'{name}' must be a text")
        return text

    def _list(self, value: Mapping[str, Any], name: str, place: str) -> Sequence[Any]:
        found = value.get(name)
        if not isinstance(found, list) or not found:
            raise self._error(place, f"'{name}' must be a list, and not empty")
        return found

    def _error(self, place: str, what: str) -> InvalidRequestError:
        return InvalidRequestError(f"{self._param}.{place}: {what}.", param=self._param)
