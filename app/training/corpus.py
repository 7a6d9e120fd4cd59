"""Text files to documents, to a tokenizer, to memory-mapped runs of token ids."""

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

from app.errors import ConfigurationError
from app.training.config import Corpus

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
class Mixture:
    """Documents to train on, in order, and by corpus those held out; no text is in both."""

    training: list[str]
    held_out: dict[str, list[str]]


def mixture(corpora: list[Corpus], held_out: float, seed: int) -> Mixture:
    """Set aside `held_out` of every corpus' distinct documents, repeat the rest by their epochs.

    Which documents are held out depends on their text alone, so a repeated document, or one that
    occurs in two corpora, is never on both sides. Raises ConfigurationError for a corpus that
    cannot be read or has fewer than two distinct documents.
    """
    texts = {_label(corpus): list(documents(corpus)) for corpus in corpora}
    reserved = {label: _reserve(label, read, held_out) for label, read in texts.items()}
    unseen = {text for held in reserved.values() for text in held}
    shuffle = random.Random(seed)  # noqa: S311 - reproducible, not secret
    chosen: list[str] = []
    for corpus in corpora:
        kept = [text for text in texts[_label(corpus)] if text not in unseen]
        whole, part = divmod(corpus.epochs, 1)
        chosen += kept * int(whole) + shuffle.sample(kept, round(part * len(kept)))
    shuffle.shuffle(chosen)
    return Mixture(chosen, reserved)


def _label(corpus: Corpus) -> str:
    return corpus.path.stem if corpus.path.suffix else corpus.path.name


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
        if path.suffix == ".jsonl":
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


def write_tokens(texts: list[str], tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Token ids of all documents, each ended by end-of-text, as raw little-endian uint16."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for start in range(0, len(texts), 1000):
            for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
                np.array([*encoding.ids, end], dtype="<u2").tofile(file)
    partial.replace(path)


class PackedRows:
    """Rows of `length` + 1 consecutive tokens of a token file.

    A batch is a function of its step and the seed alone, so resuming needs no state but the step.
    """

    def __init__(self, path: Path, length: int, seed: int) -> None:
        self._tokens = np.memmap(path, dtype="<u2", mode="r")
        self._length = length
        self._rows = (len(self._tokens) - 1) // length
        self._seed = seed
        if not self._rows:
            raise ConfigurationError(
                f"{path} has {len(self._tokens)} tokens, less than one row of {length}: add text, "
                "raise held_out or lower sequence_length"
            )

    def __len__(self) -> int:
        return self._rows

    def batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size, length + 1] of training step `step`; every epoch is shuffled afresh."""
        picked = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, self._rows)
            order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
            picked.append(self._row(int(order[offset])))
        return np.stack(picked)

    def first(self, count: int) -> np.ndarray:
        """int64 [up to count, length + 1], in the file's order."""
        return np.stack([self._row(row) for row in range(min(count, self._rows))])

    def _row(self, row: int) -> np.ndarray:
        start = row * self._length
        return np.asarray(self._tokens[start : start + self._length + 1], dtype=np.int64)
