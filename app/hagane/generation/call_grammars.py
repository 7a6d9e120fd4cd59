"""Grammars of tool calls in the notation of a model: required ones, and those within text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from hagane.generation.grammars import (
    JSON_OPTIONS,
    Grammar,
    Marker,
    check_size,
    schema_text,
)
from hagane.generation.notation import Members, Notation, Pieces
from hagane.system.errors import InvalidRequestError

Functions = Mapping[str, Mapping[str, Any]]
"""The JSON schema of each function's arguments, by its name."""

# Objects in fences are indented, as their models have seen them.
_ANY_SPACE: Any = {"whitespace_pattern": r"[ \n]{0,64}"}
# What members written one by one can follow beside types of their own.
_OBJECT_WORDS = {"type", "properties", "required", "additionalProperties", "description", "title",
                 "$defs", "definitions", "$schema", "$id", "$comment", "examples"}  # fmt: skip
_STRING_WORDS = {"type", "enum", "const", "description", "title", "default", "examples"}


class CallGrammars:
    """Grammars of calls in one notation; `marker` makes a marker of a text.

    Its methods raise InvalidRequestError, naming the field `param`, for schemas that are invalid or
    too large, and for those that members written one by one cannot be held to.
    """

    def __init__(self, notation: Notation, marker: Callable[[str], Marker], param: str) -> None:
        self._notation, self._marker, self._param = notation, marker, param

    @property
    def looks_like_text(self) -> bool:
        """Whether calls have no marker that tells them from an answer in JSON."""
        return self._notation.beginnings is not None

    def required(self, functions: Functions, *, several: bool) -> Grammar:
        """Calls of `functions` and nothing else."""
        return self._grammar(
            [f"start: {self._calls(several)}", *self._rules(functions, self._notation.before)]
        )

    def in_text(
        self, functions: Functions, *, between: Sequence[Marker], bare: bool, optional: bool
    ) -> Grammar | None:
        """Any text, in which calls follow their schemas to the end once they have begun.

        Markers `between`, which are tokens, may stand anywhere in it. With `bare`, JSON objects
        with the name of a function are calls, too. Schemas that cannot be followed leave no grammar
        where they are `optional`.
        """
        try:
            grammar = self._in_text(functions, between, bare, optional)
        except InvalidRequestError:
            if not optional:
                raise
            return None
        return grammar

    def _in_text(
        self, functions: Functions, between: Sequence[Marker], bare: bool, optional: bool
    ) -> Grammar:
        notation = self._notation
        if notation.beginnings is not None:
            start = [
                f"start: ({self._calls(True)} | TEXT)?",
                f"TEXT: /(.|\\n)+/ & ~/{notation.beginnings}(.|\\n)*/",
            ]
            return self._grammar([*start, *self._rules(functions, notation.before)], optional)
        before = notation.before
        trigger = self._marker(str((*notation.opening, *before)[0]))
        if notation.opening:
            calls = self._calls(True, opening=notation.opening[1:])
        else:
            calls, before = "call", before[1:]
        objects = self._bare(functions) if bare else []
        names = ["TEXT", "section", *(["bare"] if objects else [])]
        parts = " | ".join([*names, *(marker.as_lark() for marker in between)])
        rules = [f"start: ({parts})*", "TEXT: /(.|\\n)+/"]
        if trigger.token is None:
            rules += [f"section: head {calls}", f"head[lazy]: TEXT? {trigger.as_lark()}"]
        else:
            rules.append(f"section: {trigger.as_lark()} {calls}")
        return self._grammar([*rules, *objects, *self._rules(functions, before)], optional)

    def _bare(self, functions: Functions) -> list[str]:
        """Rules of which `bare` is text up to a call without markers, and the rest of that call."""
        rules = ["bare: " + " | ".join(f"bare{i}" for i in range(len(functions)))]
        for i, (name, schema) in enumerate(functions.items()):
            text = schema_text(schema, self._param, **{"x-guidance": _ANY_SPACE})
            known = name.replace(".", "\\.")
            rules += [
                f"bare{i}: head{i} /\\s*/ object{i} /\\s*\\}}/",
                f'head{i}[lazy]: /(.|\\n)*\\{{\\s*"name":\\s*"{known}",\\s*"arguments":/',
                f"object{i}: %json {text}",
            ]
        return rules

    def _grammar(self, rules: Iterable[str], optional: bool = False) -> Grammar:
        text = "\n".join(rules)
        check_size(text, self._param)
        return Grammar(text, self._param, optional)

    def _calls(self, several: bool, opening: Pieces | None = None) -> str:
        notation = self._notation
        more = f"({self._lark(notation.separator)} call)*" if several else ""
        opening = notation.opening if opening is None else opening
        return f"{self._lark(opening)} call {more} {self._lark(notation.closing)}".strip()

    def _rules(self, functions: Functions, before: Pieces) -> list[str]:
        """Rules of which `call` is a call of one of the functions."""
        between, after = self._lark(self._notation.between), self._lark(self._notation.after)
        rules = ["call: " + " | ".join(f"function{i}" for i in range(len(functions)))]
        for i, (name, schema) in enumerate(functions.items()):
            head = self._lark((*before, name))
            rules.append(f"function{i}: {head} {between} arguments{i} {after}")
            if self._notation.members is None:
                text = schema_text(schema, self._param, **{"x-guidance": JSON_OPTIONS})
                rules.append(f"arguments{i}: %json {text}")
            else:
                rules += self._members(f"arguments{i}", schema, self._notation.members)
        return rules

    def _members(self, rule: str, schema: Mapping[str, Any], members: Members) -> list[str]:
        """Rules for arguments that are written one by one, in the schema's order."""
        self._refuse_others(schema, _OBJECT_WORDS)
        names = schema.get("required", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise InvalidRequestError(
                f"{self._param}: 'required' must be a list of names.", param=self._param
            )
        required = dict.fromkeys(names, True)
        properties: Mapping[str, Any] = required | dict(schema.get("properties", {}))
        shared = {word: schema[word] for word in ("$defs", "definitions") if word in schema}
        rules, order = [], []
        for i, (key, value) in enumerate(properties.items()):
            order.append(f"{rule}_{i}" + ("" if key in required else "?"))
            head = self._lark((*members.before_key, key, *members.before_value))
            rules.append(f"{rule}_{i}: {head} {rule}_{i}v")
            rules += self._value(f"{rule}_{i}v", value, shared, members)
        return [f"{rule}: {' '.join(order)}" if order else f'{rule}: ""', *rules]

    def _value(
        self, rule: str, schema: Any, shared: Mapping[str, Any], members: Members
    ) -> list[str]:
        """A value and what stands after it."""
        end = self._lark(members.after)
        if not isinstance(schema, Mapping) or schema.get("type") != "string":
            whole = {**schema, **shared} if isinstance(schema, Mapping) else schema
            options = {"x-guidance": JSON_OPTIONS} if isinstance(schema, Mapping) else {}
            return [f"{rule}: %json {schema_text(whole, self._param, **options)} {end}"]
        self._refuse_others(schema, _STRING_WORDS)
        choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if choices is not None:
            texts = " | ".join(json.dumps(each) for each in choices if isinstance(each, str))
            return [f"{rule}: ({texts}) {end}"]
        closing, *rest = members.after
        last = self._marker(str(closing))
        if last.token is not None:
            return [f"{rule}: /(.|\\n)*/ {end}"]
        return [
            f"{rule}: {rule}t {self._lark(tuple(rest))}",
            f"{rule}t[suffix={last.as_lark()}]: /(.|\\n)*/",
        ]

    def _refuse_others(self, schema: Mapping[str, Any], known: Iterable[str]) -> None:
        if others := sorted(schema.keys() - set(known)):
            raise InvalidRequestError(
                f"{self._param} cannot be enforced: this model writes arguments one by one, which "
                f"cannot follow the keyword {others[0]!r} there.",
                param=self._param,
                code="invalid_grammar",
            )

    def _lark(self, pieces: Pieces) -> str:
        return " ".join(
            f"/{piece.pattern}/" if isinstance(piece, re.Pattern) else self._marker(piece).as_lark()
            for piece in pieces
        )
