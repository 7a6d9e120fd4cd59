"""What a JSON schema does not allow, said as a schema.

A complement need not be whole: it is a list of schemas, each of which only allows values that the
first one refuses. Where nothing can be said about a keyword, nothing is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hagane.generation.schemas.views import (
    FRACTION,
    MOST_DEPTH,
    Schema,
    View,
    disjoint,
    resolve,
    type_names,
    type_of_value,
    types_of_name,
    view,
)

# Letters by which a text is distinguished from others: patterns nest once for each.
_MOST_LETTERS = 48
# Letters of a pattern for all texts but some; those are distinguished by their beginnings if more.
_MOST_PATTERN = 64
# A complement that asks for more letters or members than this is no help to anybody.
_MOST_FORCED = 16


def _at_least(kind: str, keyword: str, bound: int) -> dict[str, Any] | None:
    return {"type": kind, keyword: bound} if bound <= _MOST_FORCED else None


# Keywords by a bound, and what says the opposite of a value of theirs.
_OPPOSITES: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "minimum": lambda bound: {"type": "number", "exclusiveMaximum": bound},
    "maximum": lambda bound: {"type": "number", "exclusiveMinimum": bound},
    "exclusiveMinimum": lambda bound: {"type": "number", "maximum": bound},
    "exclusiveMaximum": lambda bound: {"type": "number", "minimum": bound},
    "minLength": lambda bound: {"type": "string", "maxLength": bound - 1} if bound > 0 else None,
    "maxLength": lambda bound: _at_least("string", "minLength", bound + 1),
    "minItems": lambda bound: {"type": "array", "maxItems": bound - 1} if bound > 0 else None,
    "maxItems": lambda bound: _at_least("array", "minItems", bound + 1),
    "minProperties": lambda b: {"type": "object", "maxProperties": b - 1} if b > 0 else None,
    "maxProperties": lambda bound: _at_least("object", "minProperties", bound + 1),
}


def complement(
    schema: Schema, root: Schema, allowed: View | None = None, depth: int = 0
) -> list[dict[str, Any]]:
    """Schemas of values that `schema` refuses, of those that are `allowed` at all.

    Those with patterns, which are slow to intersect with others, come only where there are no
    others.
    """
    if schema is False:
        return [{}]
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return []
    seen = allowed or View()
    found = [*_other_types(schema, seen), *_missing(schema, seen), *_other_values(schema, seen)]
    found += _unknown_names(schema, seen)
    for keyword, opposite in _OPPOSITES.items():
        bound = schema.get(keyword)
        if isinstance(bound, int | float) and not isinstance(bound, bool):
            found += filter(None, [opposite(bound)])
    found += _wrong_members(schema, root, seen, depth)
    found += _wrong_combinations(schema, root, seen, depth)
    found = [one for one in found if not disjoint(seen, view(one, root), root)]
    return [one for one in found if not _has_pattern(one)] or found


def _has_pattern(schema: Any) -> bool:
    if isinstance(schema, Mapping):
        return "pattern" in schema or any(map(_has_pattern, schema.values()))
    return isinstance(schema, list) and any(map(_has_pattern, schema))


def _other_types(schema: Mapping[str, Any], allowed: View) -> list[dict[str, Any]]:
    if "type" not in schema:
        return []
    listed = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    kinds = frozenset().union(*(types_of_name(name) for name in listed))
    others = type_names(allowed.types - kinds)
    return [{"type": others}] if others else []


def _missing(schema: Mapping[str, Any], allowed: View) -> list[dict[str, Any]]:
    required = schema.get("required")
    names = required if isinstance(required, list) else []
    optional = [name for name in names if name not in allowed.required]
    return [{"type": "object", "properties": {name: False}} for name in optional]


def _other_values(schema: Mapping[str, Any], allowed: View) -> list[dict[str, Any]]:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list):
        return []
    if allowed.values is not None:
        left = [value for value in allowed.values if value not in values]
        return [{"enum": left}] if left else []
    kinds = frozenset(type_of_value(value) for value in values)
    if kinds & {"integer", FRACTION}:
        kinds |= {"integer", FRACTION}
    found: list[dict[str, Any]] = []
    if "string" in kinds:
        strings = sorted({value for value in values if isinstance(value, str)})
        found.append({"type": "string", "pattern": f"^({_none_of(strings, _letters(strings))})$"})
    if "boolean" in kinds:
        found += [{"const": b} for b in (True, False) if not any(value is b for value in values)]
    others = type_names(allowed.types - kinds)
    return [*found, {"type": others}] if others else found


def _letters(strings: list[str]) -> int:
    """How many first letters to distinguish `strings` by."""
    letters = _MOST_LETTERS
    while letters > 1 and sum(map(len, {string[:letters] for string in strings})) > _MOST_PATTERN:
        letters -= 1
    return letters


def _none_of(strings: list[str], letters: int) -> str:
    """A regular expression for texts of one line but these, which are sorted.

    What begins like the first `letters` of a longer one is left out, too.
    """
    heads = sorted({string[0] for string in strings if string})
    escaped = "".join(map(_escape, heads))
    branches = [f"[^{escaped}\\n].*" if heads else ".+"]
    for head in heads if letters else ():
        rest = _none_of([string[1:] for string in strings if string[:1] == head], letters - 1)
        branches.append(f"{_escape(head)}({rest})")
    return "|".join(branches if "" in strings else ["", *branches])


def _escape(letter: str) -> str:
    return "\\" + letter if letter in r"\.+*?()|[]{}^$#&-~/" else letter


def _unknown_names(schema: Mapping[str, Any], allowed: View) -> list[dict[str, Any]]:
    """A property known to be allowed, where those that are not listed are refused."""
    if schema.get("additionalProperties") is not False or schema.get("patternProperties"):
        return []
    known = schema.get("properties") or {}
    others = (name for name in allowed.properties if name not in known)
    return [{"type": "object", "required": [name]} for name in others]


def _wrong_members(
    schema: Mapping[str, Any], root: Schema, allowed: View, depth: int
) -> list[dict[str, Any]]:
    found = []
    properties = schema.get("properties")
    for name, part in properties.items() if isinstance(properties, Mapping) else ():
        own = view({"allOf": allowed.properties.get(name, [])}, root)
        wrong = complement(part, root, own, depth + 1)
        if wrong:
            member = wrong[0] if len(wrong) == 1 else {"anyOf": wrong}
            found.append({"type": "object", "properties": {name: member}, "required": [name]})
    items = schema.get("items")
    if isinstance(items, Mapping):
        own = view({"allOf": allowed.items}, root)
        if wrong := complement(items, root, own, depth + 1):
            first: dict[str, Any] = {"prefixItems": [{"anyOf": wrong}], "minItems": 1}
            found.append({"type": "array", **first})
    return found


def _wrong_combinations(
    schema: Mapping[str, Any], root: Schema, allowed: View, depth: int
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    parts = list(schema["allOf"]) if isinstance(schema.get("allOf"), list) else []
    if (target := resolve(schema.get("$ref"), root)) is not None:
        parts.append(target)
    for part in parts:
        found += complement(part, root, allowed, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        branches = schema.get(keyword)
        if isinstance(branches, list):
            wrong = [complement(branch, root, allowed, depth + 1) for branch in branches]
            if all(wrong):
                found.append({"allOf": [{"anyOf": one} for one in wrong]})
    if isinstance(schema.get("not"), Mapping):
        found.append(dict(schema["not"]))
    return found
