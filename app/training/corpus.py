"""Text files to documents, to a tokenizer, to one memory-mapped run of token ids."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
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


def documents(corpus: Corpus) -> Iterator[str]:
    """The corpus' documents, conversations rendered as the chat template renders them.

    Raises ConfigurationError naming the file and line of a record that is neither.
    """
    if not corpus.path.is_file():
        raise ConfigurationError(f"corpus {corpus.path} does not exist")
    if corpus.path.suffix != ".jsonl":
        yield corpus.path.read_text(encoding="utf-8")
        return
    with corpus.path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            record = json.loads(line)
            if isinstance(record.get("text"), str):
                yield record["text"]
            elif isinstance(record.get("messages"), list):
                yield "".join(
                    f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n"
                    for m in record["messages"]
                )
            else:
                raise ConfigurationError(
                    f"{corpus.path} line {number}: a record needs 'text' or 'messages'"
                )


def mixture(corpora: list[Corpus], seed: int) -> list[str]:
    """All documents, each corpus repeated (or thinned) to its epochs, in shuffled order."""
    shuffle = random.Random(seed)  # noqa: S311 - reproducible, not secret
    chosen: list[str] = []
    for corpus in corpora:
        texts = list(documents(corpus))
        whole, part = divmod(corpus.epochs, 1)
        chosen += texts * int(whole) + shuffle.sample(texts, round(part * len(texts)))
    shuffle.shuffle(chosen)
    return chosen


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
    """Rows of `length` + 1 consecutive tokens, in an order that is a function of the seed.

    A batch is a function of its step alone, so resuming needs no state but the step. The first
    `held_out` rows are never trained on.
    """

    def __init__(self, path: Path, length: int, held_out: int, seed: int) -> None:
        self._tokens = np.memmap(path, dtype="<u2", mode="r")
        self._length = length
        rows = (len(self._tokens) - 1) // length
        if rows <= held_out:
            raise ConfigurationError(
                f"{path} has {rows} rows of {length} tokens, no more than the {held_out} held out "
                "for validation: add text or lower validation_rows"
            )
        self._held_out = held_out
        self._rows = rows - held_out
        self._seed = seed

    def batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size, length + 1] of training step `step`; epochs are shuffled afresh."""
        picked = []
        for position in range(step * size, (step + 1) * size):
            epoch, offset = divmod(position, self._rows)
            order = np.random.default_rng((self._seed, epoch)).permutation(self._rows)
            picked.append(self._row(self._held_out + int(order[offset])))
        return np.stack(picked)

    def validation(self) -> np.ndarray:
        """int64 [held_out, length + 1]."""
        return np.stack([self._row(row) for row in range(self._held_out)])

    def _row(self, row: int) -> np.ndarray:
        start = row * self._length
        return np.asarray(self._tokens[start : start + self._length + 1], dtype=np.int64)
