"""Text files to documents, and documents to a tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from hagane.system.errors import ConfigurationError
from hagane.training.pretrain.config import Corpus

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Plain text has no document marks: it is cut at line ends, into pieces of so many characters.
_PIECE = 8192


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
    """The files' names, numbered where two corpora have the same."""
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
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigurationError(f"{path} line {number} is not JSON: {error}") from None
            if isinstance(record, dict) and isinstance(record.get("text"), str):
                yield record["text"]
            elif isinstance(record, dict) and isinstance(record.get("messages"), list):
                yield "".join(
                    f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n"
                    for m in record["messages"]
                )
            else:
                raise ConfigurationError(
                    f"{path} line {number}: a record needs 'text' or 'messages'"
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


def train_tokenizer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of `vocab_size` tokens (Sennrich et al., 2016; Radford et al., 2019)."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_START, TURN_END)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_bytes(tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """int64 [vocab]: UTF-8 bytes that each token of a byte-level tokenizer stands for.

    Special tokens stand for none.
    """
    special = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    sizes = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
    for token, index in tokenizer.get_vocab().items():
        # The byte-level alphabet writes every byte as one character.
        sizes[index] = 0 if token in special else len(token)
    return sizes
