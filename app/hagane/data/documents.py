"""Read text files as documents, for pretraining and evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, TypeAdapter, ValidationError

from hagane.system.errors import ConfigurationError

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Plain text has no document marks: it is cut at line ends, into pieces of so many characters.
_PIECE = 8192


class Corpus(BaseModel):
    """Files to train on, and how much of them.

    `path` is a file, a directory or a glob of JSON Lines (records with `text` or `messages`) or
    plain text; the file's suffix decides unless `format` is given. `epochs` is how often the
    corpus is seen while the whole mixture is seen once; `weight` instead is its share of the
    tokens alongside the other corpora's weights.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    format: Literal["auto", "text", "jsonl"] = "auto"
    epochs: Annotated[float, Field(gt=0, le=100, strict=True)] = 1.0
    weight: Annotated[float, Field(gt=0, strict=True)] | None = None


class _TextRecord(BaseModel):
    text: str


class _Message(BaseModel):
    role: str
    content: str


class _ChatRecord(BaseModel):
    messages: list[_Message]


def _kind(record: object) -> str | None:
    """The kind of a record; one with both keys counts as text."""
    if not isinstance(record, dict):
        return None
    return next((key for key in ("text", "messages") if key in record), None)


_RECORD: TypeAdapter[_TextRecord | _ChatRecord] = TypeAdapter(
    Annotated[
        Annotated[_TextRecord, Tag("text")] | Annotated[_ChatRecord, Tag("messages")],
        Discriminator(_kind),
    ]
)


@dataclass(frozen=True)
class Split:
    """A corpus' documents: those to train on, in random order, and those held out."""

    label: str
    training: list[str]
    held_out: list[str]


def split(corpora: list[Corpus], held_out: float, seed: int) -> list[Split]:
    """Set aside the fraction `held_out` of every corpus' distinct documents; no text is in both.

    Which documents are held out depends on their text alone, so a repeated document, or one that
    occurs in two corpora, is never on both sides. Raises ConfigurationError for a corpus that
    cannot be read or has fewer than two distinct documents.
    """
    texts = [list(documents(corpus)) for corpus in corpora]
    labels = _labels(corpora)
    reserved = [_reserve(*pair, held_out) for pair in zip(labels, texts, strict=True)]
    unseen = {text for held in reserved for text in held}
    shuffle = random.Random(seed)  # noqa: S311 - reproducible, not secret
    found = []
    for label, read, held in zip(labels, texts, reserved, strict=True):
        kept = [text for text in read if text not in unseen]
        if not kept:
            raise ConfigurationError(f"corpus {label} has no document left to train on")
        shuffle.shuffle(kept)
        found.append(Split(label, kept, held))
    return found


def _labels(corpora: list[Corpus]) -> list[str]:
    """Labels from the files' names, numbered where two corpora have the same."""
    names = [corpus.path.stem if corpus.path.suffix else corpus.path.name for corpus in corpora]
    return [
        name if names.count(name) == 1 else f"{name}-{names[:i].count(name) + 1}"
        for i, name in enumerate(names)
    ]


def _reserve(label: str, texts: list[str], fraction: float) -> list[str]:
    by_hash = sorted(set(texts), key=lambda text: blake2b(text.encode(), digest_size=8).digest())
    if len(by_hash) < 2:
        raise ConfigurationError(
            f"corpus {label} has {len(by_hash)} distinct documents: one is needed to train on and "
            "one to validate on"
        )
    return by_hash[: max(1, round(fraction * len(by_hash)))]


def documents(corpus: Corpus) -> Iterator[str]:
    """The corpus' documents, conversations rendered as the chat template renders them.

    Raises ConfigurationError naming the file and line of a record that is neither.
    """
    for path in _files(corpus.path):
        if corpus.format == "jsonl" or (corpus.format == "auto" and path.suffix == ".jsonl"):
            yield from _records(path)
        else:
            yield from _pieces(path)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [file for file in sorted(path.iterdir()) if file.suffix in (".jsonl", ".txt")]
    else:
        found = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    if not found:
        raise ConfigurationError(f"corpus {path} does not exist or matches no file")
    return found


def _records(path: Path) -> Iterator[str]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = _RECORD.validate_json(line)
            except ValidationError as error:
                raise ConfigurationError(f"{path} line {number}: {_reason(error)}") from None
            yield record.text if isinstance(record, _TextRecord) else _rendered(record)


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["type"] == "union_tag_not_found":
        return "a record needs 'text' or 'messages'"
    key = ".".join(str(part) for part in first["loc"][1:])
    return f"{key}: {first['msg']}" if key else first["msg"]


def _rendered(record: _ChatRecord) -> str:
    return "".join(
        f"{TURN_START}{message.role}\n{message.content}{TURN_END}\n" for message in record.messages
    )


def _pieces(path: Path) -> Iterator[str]:
    piece, size = [], 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            piece.append(line)
            size += len(line)
            if size >= _PIECE:
                yield "".join(piece)
                piece, size = [], 0
    if piece:
        yield "".join(piece)
