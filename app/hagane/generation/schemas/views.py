"""What a JSON schema requires at its top: enough to tell that two schemas exclude each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any] | bool

# "number" without the integers, which "integer" names.
FRACTION = "fraction"
EVERY_TYPE = frozenset({"null", "boolean", "integer", FRACTION, "string", "array", "object"})
# References and combinations that are followed inside each other.
MOST_DEPTH = 4


def types_of_name(name: Any) -> frozenset[str]:
    """The kinds of values that the keyword `type` with this one name allows."""
    if name == "number":
        return frozenset({"integer", FRACTION})
    return frozenset({name}) if name in EVERY_TYPE else frozenset()


def type_names(types: frozenset[str]) -> list[str]:
    """Names for the keyword `type`; fractions alone cannot be named and are left out."""
    named = sorted(types - {"integer", FRACTION})
    if "integer" in types:
        named.append("number" if FRACTION in types else "integer")
    return named


def type_of_value(value: Any) -> str:
    """The kind of a value of JSON."""
    kinds = {bool: "boolean", str: "string", list: "array", dict: "object", type(None): "null"}
    if type(value) in kinds:
        return kinds[type(value)]
    return "integer" if float(value).is_integer() else FRACTION


def resolve(reference: Any, root: Schema) -> Schema | None:
    """The part of `root` that a local `$ref` names; None if there is none."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    place: Any = root
    for part in reference[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(place, Mapping):
            place = place.get(name)
        elif isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            place = place[int(name)]
        else:
            return None
    return place if isinstance(place, Mapping | bool) else None


@dataclass
class View:
    """What every value that a schema allows has in common.

    `values` are all there are, if they can be counted; a `closed` object has no other `properties`.
    """

    types: frozenset[str] = EVERY_TYPE
    values: list[Any] | None = None
    properties: dict[str, list[Schema]] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    items: list[Schema] = field(default_factory=list)
    closed: bool = False

    def forbids(self, name: str) -> bool:
        """Whether an object cannot have this property."""
        schemas = self.properties.get(name)
        return self.closed if schemas is None else any(schema is False for schema in schemas)


def view(schema: Schema, root: Schema, depth: int = 0) -> View:
    """Look through references and `allOf`."""
    seen = View()
    _look(schema, root, seen, depth)
    return seen


def _look(schema: Schema, root: Schema, seen: View, depth: int) -> None:
    if schema is False:
        seen.types = frozenset()
    if not isinstance(schema, Mapping) or depth > MOST_DEPTH:
        return
    _look_at_values(schema, seen)
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        for name, part in properties.items():
            seen.properties.setdefault(name, []).append(part)
    if isinstance(schema.get("items"), Mapping | bool):
        seen.items.append(schema["items"])
    required = schema.get("required")
    if isinstance(required, list):
        seen.required.update(name for name in required if isinstance(name, str))
    if schema.get("additionalProperties") is False and not schema.get("patternProperties"):
        own = properties if isinstance(properties, Mapping) else {}
        for name in seen.properties.keys() - own.keys():
            seen.properties[name].append(False)
        seen.closed = True
    if "$ref" in schema:
        target = resolve(schema["$ref"], root)
        if target is not None:
            _look(target, root, seen, depth + 1)
    for part in _parts(schema, "allOf"):
        _look(part, root, seen, depth + 1)
    for keyword in ("anyOf", "oneOf"):
        branches = _parts(schema, keyword)
        if branches and depth < MOST_DEPTH:
            views = [view(branch, root, depth + 1) for branch in branches]
            seen.types &= frozenset().union(*(branch.types for branch in views))
            values = [branch.values for branch in views if branch.values is not None]
            if len(values) == len(views):
                _restrict(seen, [value for some in values for value in some])


def _look_at_values(schema: Mapping[str, Any], seen: View) -> None:
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        seen.types &= frozenset().union(*(types_of_name(name) for name in names))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        _restrict(seen, values)


def _restrict(seen: View, values: list[Any]) -> None:
    seen.values = values if seen.values is None else [v for v in seen.values if v in values]
    seen.types &= frozenset(type_of_value(value) for value in values)


def _parts(schema: Mapping[str, Any], keyword: str) -> list[Schema]:
    parts = schema.get(keyword)
    return parts if isinstance(parts, list) else []


def disjoint(one: View, other: View, root: Schema, depth: int = 0) -> bool:
    """Whether no value can be of both; False where that is not plain."""
    common = one.types & other.types
    if not common:
        return True
    if one.values is not None and other.values is not None:
        return not any(value in other.values for value in one.values)
    if common != {"object"} or depth > MOST_DEPTH:
        return False
    if any(other.forbids(name) for name in one.required):
        return True
    if any(one.forbids(name) for name in other.required):
        return True
    return any(
        disjoint(_merged(one, name, root), _merged(other, name, root), root, depth + 1)
        for name in one.required | other.required
        if name in one.properties and name in other.properties
    )


def _merged(seen: View, name: str, root: Schema) -> View:
    return view({"allOf": seen.properties[name]}, root)
