"""Which modules an adapter changes, and how strongly, exactly as PEFT 0.21 resolves it.

The rules are those of PEFT's `check_target_module_exists` and `get_pattern_key`. Keys of patterns
are regular expressions written by strangers: what is more than a plain name is resolved in a
sandbox, where a catastrophic one costs its own adapter. Needs no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from hagane.system.sandbox import shared_sandbox

_Number = TypeVar("_Number", int, float)
# Adapters name modules from the Transformer, in which the decoder is called `model`.
_PREFIX = "model."
# PEFT's default for the families supported here.
_DEFAULT = ("q_proj", "v_proj")
# Nothing of it repeats, so that matching takes time in proportion to the name.
_PLAIN = re.compile(r"[\w.\-]*")


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The fields of PEFT's LoraConfig that say where an adapter lies and what rank and alpha hold.

    A text in `target_modules` or `exclude_modules` is a regular expression for the whole path;
    lists have paths or their ends. `layers_pattern` names the list of layers that
    `layers_to_transform` counts in. Paths in the model are those of modules behind the `prefix`.
    """

    rank: int
    alpha: float
    target_modules: str | tuple[str, ...] | None
    exclude_modules: str | tuple[str, ...] | None = None
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: str | tuple[str, ...] | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    prefix: str = _PREFIX

    def resolve(self, modules: Sequence[str]) -> dict[str, tuple[int, float]]:
        """(rank, alpha) of each of `modules` that is changed.

        Raises ValueError if a pattern is no regular expression, SandboxError if it takes too long
        or fails in the sandbox.
        """
        if all(_PLAIN.fullmatch(pattern) for pattern in self._patterns()):
            found = resolve(self, modules)
        else:
            found = shared_sandbox().call(f"{__name__}:resolve_fields", asdict(self), list(modules))
        return {
            module: (int(pair[0]), float(pair[1]))
            for module, pair in zip(modules, found, strict=True)
            if pair is not None
        }

    def _patterns(self) -> Iterable[str]:
        yield from (*self.rank_pattern, *self.alpha_pattern, *_listed(self.layers_pattern))
        yield from (v for v in (self.target_modules, self.exclude_modules) if isinstance(v, str))


def resolve_fields(
    fields: dict[str, object], modules: Sequence[str]
) -> list[tuple[int, float] | None]:
    """As `resolve`, of a `Targets` that went through JSON."""
    return resolve(Targets(**fields), modules)  # type: ignore[arg-type]


def resolve(targets: Targets, modules: Sequence[str]) -> list[tuple[int, float] | None]:
    """(rank, alpha) of each of `modules`, None where it is left alone.

    Raises ValueError if a pattern is no regular expression.
    """
    try:
        return [_strength(targets, targets.prefix + module) for module in modules]
    except re.error as error:
        raise ValueError(f"{error.pattern!r} is no regular expression: {error}") from None


def _strength(targets: Targets, path: str) -> tuple[int, float] | None:
    if _excluded(targets.exclude_modules, path) or not _targeted(targets, path):
        return None
    return (
        _first_match(targets.rank_pattern, path, targets.rank),
        _first_match(targets.alpha_pattern, path, targets.alpha),
    )


def _first_match(pattern: Mapping[str, _Number], path: str, default: _Number) -> _Number:
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _excluded(excluded: str | Sequence[str] | None, path: str) -> bool:
    if isinstance(excluded, str):
        return bool(excluded) and re.fullmatch(excluded, path) is not None
    return _ends_with_any(path, excluded or ())


def _targeted(targets: Targets, path: str) -> bool:
    names = _DEFAULT if targets.target_modules is None else targets.target_modules
    if isinstance(names, str):
        return names.lower() == "all-linear" or re.fullmatch(names, path) is not None
    if path in names:
        # A path that is named in full is changed in whichever layer it lies.
        return True
    if not _ends_with_any(path, names):
        return False
    layers = targets.layers_to_transform
    if layers is None or (not isinstance(layers, int) and not layers):
        return True
    index = _layer_index(_listed(targets.layers_pattern), path)
    return index is not None and (index == layers if isinstance(layers, int) else index in layers)


def _ends_with_any(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _layer_index(patterns: Sequence[str], path: str) -> int | None:
    """The number after the first list of layers in the path, or after one that a pattern names."""
    expressions = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns]
    for expression in expressions or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
        if match := re.match(expression, path):
            return int(match["idx"])
    return None


def _listed(value: str | Sequence[str] | None) -> Sequence[str]:
    return (value,) if isinstance(value, str) and value else tuple(value or ())
