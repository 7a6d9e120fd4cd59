"""Prepare a run's data once: the tokenizer, token files to train on, held-out token files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tokenizers

from hagane.data.documents import END_OF_TEXT, TURN_END, split
from hagane.system.errors import ConfigurationError
from hagane.system.files import write_text
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.pretrain.shards import MixedRows, PackedRows, write_tokens
from hagane.training.pretrain.vocabulary import train_tokenizer

_TOKENIZER, _LABELS = "tokenizer.json", "corpora.txt"


@dataclass(frozen=True, eq=False)
class Prepared:
    """A tokenizer, and every corpus' token files by label: to train on, and held out."""

    tokenizer: tokenizers.Tokenizer
    shards: dict[str, Path]
    held_out: dict[str, Path]

    @classmethod
    def load(cls, config: PretrainConfig, state_dir: Path) -> Prepared:
        """Open the files that `prepare` wrote."""
        labels = (state_dir / _LABELS).read_text(encoding="utf-8").splitlines()
        return cls(
            tokenizers.Tokenizer.from_file(str(state_dir / _TOKENIZER)),
            {label: state_dir / f"shard-{label}.bin" for label in labels},
            {label: state_dir / f"held-out-{label}.bin" for label in labels},
        )

    def rows(self, config: PretrainConfig) -> MixedRows:
        """The rows to train on, with corpora mixed by `config`'s weights or epochs."""
        shards = [
            PackedRows(path, config.sequence_length, config.seed) for path in self.shards.values()
        ]
        shares = [
            corpus.epochs * len(shard) if corpus.weight is None else corpus.weight
            for corpus, shard in zip(config.corpora, shards, strict=True)
        ]
        return MixedRows(shards, shares, config.seed)


def prepare(config: PretrainConfig, state_dir: Path) -> None:
    """Write the files that `Prepared` loads, unless they exist.

    Raises ConfigurationError for corpora or a tokenizer that cannot be used.
    """
    done = state_dir / _LABELS
    if done.is_file():
        return
    parts = split(config.corpora, config.held_out, config.seed)
    given = config.start_from / "tokenizer.json" if config.start_from else config.tokenizer
    if given is None:
        texts = [text for part in parts for text in part.training]
        tokenizer = train_tokenizer(texts, config.vocab_size)
    else:
        tokenizer = _given_tokenizer(given)
    tokenizer.save(str(state_dir / _TOKENIZER))
    for part in parts:
        write_tokens(part.held_out, tokenizer, state_dir / f"held-out-{part.label}.bin")
        write_tokens(part.training, tokenizer, state_dir / f"shard-{part.label}.bin")
    # Written last: it marks the other files as complete.
    write_text(done, "\n".join(part.label for part in parts))


def _given_tokenizer(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ConfigurationError(f"tokenizer {path} does not exist")
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    missing = [t for t in (END_OF_TEXT, TURN_END) if tokenizer.token_to_id(t) is None]
    if missing or tokenizer.get_vocab_size() > 65536:
        raise ConfigurationError(
            f"tokenizer {path} needs the tokens {END_OF_TEXT} and {TURN_END} and at most 65536 ids"
        )
    return tokenizer
