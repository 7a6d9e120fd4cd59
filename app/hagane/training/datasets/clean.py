"""Filter the selected examples of a data set: bounds, personal data, duplicates, split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

from hagane.data.duplicates import Duplicates
from hagane.data.personal import Kind, find_personal, mask_personal
from hagane.data.records import RecordError, parse
from hagane.training.datasets.select import Message, SelectedExample
from hagane.training.datasets.spec import DatasetSpec


@dataclass
class Card:
    """A data set's contents in counts, and why the rest of the answers is not in it."""

    records: int = 0
    training: int = 0
    validation: int = 0
    conversations: int = 0
    characters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, Any]:
        """The counts as plain values."""
        return {k: dict(v) if isinstance(v, Counter) else v for k, v in vars(self).items()}


def clean(
    examples: Iterable[SelectedExample], spec: DatasetSpec, card: Card
) -> list[SelectedExample]:
    """The examples that are within the bounds of `spec`, masked, each once."""
    seen = Duplicates(spec.similarity if spec.duplicates == "near" else None)
    kept: list[SelectedExample] = []
    for example in examples:
        if (reason := _out_of_bounds(example, spec)) is not None:
            card.skipped[reason] += 1
            continue
        masked = _mask(example, spec, card)
        if masked is None:
            card.skipped["personal_data"] += 1
            continue
        if spec.duplicates != "keep" and (repeat := seen.see(_all_text(masked))) is not None:
            card.skipped[f"{repeat}_duplicate"] += 1
            continue
        try:
            parse(json.dumps(masked.as_record()), spec.method)
        except RecordError:
            card.skipped["invalid"] += 1
            continue
        kept.append(masked)
        if len(kept) == spec.max_records:
            break
    return kept


def split(
    examples: list[SelectedExample], spec: DatasetSpec, card: Card
) -> tuple[list[SelectedExample], ...]:
    """(training, validation): whole conversations are held out, the same ones every time.

    At least one where there are two; never all.
    """
    conversations: dict[str, list[SelectedExample]] = defaultdict(list)
    for example in examples:
        conversations[example.conversation].append(example)
    order = sorted(conversations, key=lambda name: hashlib.sha256(name.encode()).digest())
    held: set[str] = set()
    count = 0
    for name in order[:-1]:
        if count >= spec.validation * len(examples):
            break
        held.add(name)
        count += len(conversations[name])
    training = [e for e in examples if e.conversation not in held]
    validation = [e for e in examples if e.conversation in held]
    card.records, card.conversations = len(examples), len(conversations)
    card.training, card.validation = len(training), len(validation)
    card.characters = sum(len(_all_text(example)) for example in examples)
    card.reasons = Counter(example.why for example in examples)
    card.models = Counter(example.model for example in examples)
    return training, validation


def _out_of_bounds(example: SelectedExample, spec: DatasetSpec) -> str | None:
    length = len(_text(example.answer))
    if not example.answer.get("tool_calls") and length < spec.min_characters:
        return "too_short"
    if length > spec.max_characters:
        return "too_long"
    prompt = sum(len(_text(message)) for message in example.prompt)
    return "prompt_too_long" if prompt > spec.max_prompt_characters else None


def _mask(example: SelectedExample, spec: DatasetSpec, card: Card) -> SelectedExample | None:
    """The example without personal data; None where `spec` wants it dropped."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    dropped = {kind for kind in kinds if spec.treatment(kind) == "drop"}
    if dropped and dropped & set(find_personal(_all_text(example))):
        return None
    masked_kinds = frozenset(kind for kind in kinds if spec.treatment(kind) == "mask")

    def mask(value: Any) -> Any:
        if isinstance(value, str):
            text, found = mask_personal(value, masked_kinds)
            card.masked.update(found)
            return text
        if isinstance(value, list):
            return [mask(item) for item in value]
        if isinstance(value, dict):
            return {
                key: item if key in ("role", "id") else mask(item) for key, item in value.items()
            }
        return value

    return replace(
        example,
        prompt=mask(example.prompt),
        answer=mask(example.answer),
        rejected=mask(example.rejected),
    )


def _all_text(example: SelectedExample) -> str:
    said = [*example.prompt, example.answer, *([example.rejected] if example.rejected else [])]
    return "\n".join(_text(message) for message in said)


def _text(message: Message) -> str:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(p.get("text", "") for p in content)
    calls = message.get("tool_calls")
    return text + (json.dumps(calls) if calls else "")
