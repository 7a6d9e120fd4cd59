"""JSON schemas in the keywords that llguidance follows.

`oneOf`, `not`, `if`, `dependencies`, `propertyNames` and bounds on the number of optional
properties become `anyOf`, `allOf` and `required`. What comes out never allows more than what went
in; where the two cannot be equal it allows less, such as one branch of a `oneOf` without the
properties that only another one requires. What has no such form is left for llguidance to refuse.
https://json-schema.org/draft/2020-12/json-schema-core
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, islice
from typing import Any

from hagane.generation.schemas.complement import complement
from hagane.generation.schemas.views import Schema, View, disjoint, view

# Formats that llguidance checks. Others are annotations to the specification, unless it names them
# itself: of those, some are narrowed to one that is checked.
_CHECKED = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid",
            "uri", "unknown"}  # fmt: skip
_NARROWER = {"idn-email": "email", "idn-hostname": "hostname", "iri": "uri", "iri-reference": "uri",
             "uri-reference": "uri", "uri-template": "uri", "host-name": "hostname",
             "ip-address": "ipv4"}  # fmt: skip
_POINTER = "(/([^~/]|~[01])*)*"
_PATTERNS = {
    "json-pointer": f"^{_POINTER}$",
    "relative-json-pointer": f"^(0|[1-9][0-9]*)(#|{_POINTER})$",
}
_REFUSED = {"regex"}
# Keywords whose values are data, not schemas.
_DATA = {"const", "enum", "default", "example", "examples", "required", "type", "$ref"}
_MAPS = {"properties", "patternProperties", "definitions", "$defs", "dependentSchemas"}
# Bounds of what one keyword may become: combinations are multiplied in llguidance.
_MOST_BRANCHES, _MOST_READINGS, _MOST_CHOICES = 64, 6, 16
_MOST_NODES = 50_000


def rewritten(schema: Mapping[str, Any]) -> dict[str, Any]:
    """`schema` for llguidance.

    Raises RecursionError for one that is nested too deeply, ValueError for one with too many parts.
    """
    result = _Rewriting(schema).schema(schema)
    return result if isinstance(result, dict) else {"anyOf": []}


class _Rewriting:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._nodes = 0

    def schema(self, schema: Any) -> Any:
        """One schema and all inside it."""
        if not isinstance(schema, Mapping):
            return schema
        self._nodes += 1
        if self._nodes > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES:,} parts")
        node = dict(schema)
        _rewrite_format(node)
        _rewrite_names(node)
        if self._is_refused(node):
            return False
        self._rewrite_one_of(node)
        self._rewrite_if(node)
        _rewrite_dependencies(node)
        _rewrite_counts(node)
        return {keyword: self._inside(keyword, value) for keyword, value in node.items()}

    def _inside(self, keyword: str, value: Any) -> Any:
        if keyword in _DATA:
            return value
        if isinstance(value, list):
            return [self.schema(part) for part in value]
        if keyword in _MAPS and isinstance(value, Mapping):
            return {name: self.schema(part) for name, part in value.items()}
        return self.schema(value)

    def _view(self, schema: Schema) -> View:
        return view(schema, self._root)

    def _outside(self, refused: Schema, allowed: View, most: int) -> list[dict[str, Any]]:
        """At most `most` schemas of what is `allowed`, but not `refused`."""
        return complement(refused, self._root, allowed)[:most]

    def _is_refused(self, node: dict[str, Any]) -> bool:
        """Rewrite `not`; true if nothing is left."""
        refused = node.get("not")
        if refused == {} or refused is True:
            return True
        if not isinstance(refused, Mapping):
            node.pop("not", None)
            return False
        rest = {key: value for key, value in node.items() if key != "not"}
        others = self._outside(refused, self._view(rest), _MOST_READINGS)
        if others:
            del node["not"]
            _add(node, {"anyOf": others})
        return False

    def _rewrite_one_of(self, node: dict[str, Any]) -> None:
        branches = node.get("oneOf")
        if not isinstance(branches, list) or not 0 < len(branches) <= _MOST_BRANCHES:
            return
        rest = {key: value for key, value in node.items() if key != "oneOf"}
        views = [self._view({"allOf": [rest, branch]}) for branch in branches]
        alone = [self._alone(number, branches, views) for number in range(len(branches))]
        if any(branch is not None for branch in alone):
            del node["oneOf"]
            _add(node, {"anyOf": [branch for branch in alone if branch is not None]})

    def _alone(self, number: int, branches: list[Any], views: list[View]) -> Any:
        """A branch without what other branches allow, too; None if nothing can be said of that."""
        own, seen = branches[number], views[number]
        if not seen.types:
            return None
        others = [view for other, view in enumerate(views) if other != number]
        rivals = [branch for other, branch in enumerate(branches) if other != number]
        overlapping = [
            rival
            for rival, other in zip(rivals, others, strict=True)
            if not disjoint(seen, other, self._root)
        ]
        if not overlapping:
            return own
        objects = replace(seen, types=seen.types & {"object"})
        if objects.types and all(disjoint(objects, other, self._root) for other in others):
            return {"allOf": [own, {"type": "object"}]}
        most = max(1, math.floor(_MOST_READINGS ** (1 / len(overlapping))))
        conditions = [self._outside(branch, seen, most) for branch in overlapping]
        if not all(conditions):
            return None
        return {"allOf": [own, *({"anyOf": one} for one in conditions)]}

    def _rewrite_if(self, node: dict[str, Any]) -> None:
        condition = node.get("if")
        if not isinstance(condition, Mapping) or not node.keys() & {"then", "else"}:
            return
        rest = {key: node[key] for key in node if key not in ("if", "then", "else")}
        branches: list[dict[str, Any]] = [{"allOf": [condition, node.get("then", True)]}]
        others = self._outside(condition, self._view(rest), _MOST_READINGS)
        if others:
            branches.append({"allOf": [{"anyOf": others}, node.get("else", True)]})
        for keyword in ("if", "then", "else"):
            node.pop(keyword, None)
        _add(node, {"anyOf": branches})


def _add(node: dict[str, Any], condition: dict[str, Any]) -> None:
    """Another condition for a schema; a single `anyOf` is kept at the top."""
    if condition.keys() == {"anyOf"} and "anyOf" not in node:
        node["anyOf"] = condition["anyOf"]
    else:
        present = node.get("allOf")
        node["allOf"] = [*(present if isinstance(present, list) else []), condition]


def _rewrite_format(node: dict[str, Any]) -> None:
    name = node.get("format")
    if not isinstance(name, str) or name in _CHECKED or name in _REFUSED:
        return
    if name in _NARROWER:
        node["format"] = _NARROWER[name]
        return
    del node["format"]
    if name in _PATTERNS:
        _add(node, {"pattern": _PATTERNS[name]})


def _rewrite_names(node: dict[str, Any]) -> None:
    """`propertyNames` of an object that lists no properties."""
    names = node.get("propertyNames")
    if not isinstance(names, Mapping) or node.get("properties") or node.get("patternProperties"):
        return
    others = node.get("additionalProperties", True)
    keywords = names.keys() - {"type", "description", "title"}
    if keywords == {"pattern"}:
        node["patternProperties"] = {names["pattern"]: others}
    elif keywords == {"enum"} and isinstance(names["enum"], list):
        node["properties"] = {name: others for name in names["enum"] if isinstance(name, str)}
    else:
        return
    del node["propertyNames"]
    node["additionalProperties"] = False


def _rewrite_dependencies(node: dict[str, Any]) -> None:
    """Properties that require others, or a whole schema."""
    conditions: list[tuple[str, Any]] = []
    for keyword in ("dependencies", "dependentRequired", "dependentSchemas"):
        value = node.get(keyword)
        if isinstance(value, Mapping):
            conditions += value.items()
            del node[keyword]
    required = node.get("required")
    always = set(required) if isinstance(required, list) else set()
    for number, (name, wanted) in enumerate(conditions):
        names = [wanted] if isinstance(wanted, str) else wanted
        then: Any = {"required": names} if isinstance(names, list) else names
        if name in always or (isinstance(names, list) and number >= 5):
            _add(node, {"allOf": [then]})
        else:
            present = {"required": [name], "allOf": [then]}
            _add(node, {"anyOf": [{"properties": {name: False}}, present]})


def _rewrite_counts(node: dict[str, Any]) -> None:
    """`minProperties` and `maxProperties`, which llguidance counts for required ones only."""
    properties = node.get("properties")
    if not isinstance(properties, Mapping) or not properties:
        return
    listed = node.get("required")
    required = set(listed) if isinstance(listed, list) else set()
    optional = [n for n, part in properties.items() if n not in required and part is not False]
    if not optional:
        return
    least, most = node.get("minProperties"), node.get("maxProperties")
    if isinstance(least, int) and least - len(required) <= len(optional):
        del node["minProperties"]
        if (missing := least - len(required)) > 0:
            chosen = islice(combinations(optional, missing), _MOST_CHOICES)
            _add(node, {"anyOf": [{"required": list(names)} for names in chosen]})
    if isinstance(most, int) and most >= len(required) and not node.get("patternProperties"):
        del node["maxProperties"]
        room = min(most - len(required), len(optional))
        node["additionalProperties"] = False
        kept = islice(combinations(optional, room), _MOST_CHOICES)
        left_out = ([name for name in optional if name not in names] for names in kept)
        _add(node, {"anyOf": [{"properties": dict.fromkeys(o, False)} for o in left_out]})
