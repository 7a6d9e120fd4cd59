"""Token files, and the rows of tokens that a pretraining step trains on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers

from hagane.data.documents import END_OF_TEXT
from hagane.system.errors import ConfigurationError

# Corpora are mixed in blocks of this many rows; every block has the corpora's shares.
_BLOCK = 1024


def write_tokens(texts: list[str], tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Write all documents' token ids as raw little-endian uint16, end-of-text after each."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        for start in range(0, len(texts), 1000):
            for encoding in tokenizer.encode_batch(texts[start : start + 1000]):
                np.array([*encoding.ids, end], dtype="<u2").tofile(file)
    partial.replace(path)


class PackedRows:
    """Rows of `length` + 1 consecutive tokens from a memory-mapped token file."""

    def __init__(self, path: Path, length: int, seed: int) -> None:
        self._tokens = np.memmap(path, dtype="<u2", mode="r")
        self._length = length
        self._rows = (len(self._tokens) - 1) // length
        if not self._rows:
            raise ConfigurationError(
                f"{path} has {len(self._tokens)} tokens, fewer than a row of {length}: add text, "
                "raise held_out or lower sequence_length"
            )

        @lru_cache(maxsize=2)
        def order(epoch: int) -> np.ndarray:
            return np.random.default_rng((seed, epoch)).permutation(self._rows)

        self._order = order

    def __len__(self) -> int:
        return self._rows

    def shuffled(self, position: int) -> np.ndarray:
        """int64 [length + 1]: the row at `position` in an endless run of shuffled epochs."""
        epoch, offset = divmod(position, self._rows)
        return self._row(int(self._order(epoch)[offset]))

    def batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size, length + 1] of training step `step`."""
        return np.stack([self.shuffled(p) for p in range(step * size, (step + 1) * size)])

    def first(self, count: int) -> np.ndarray:
        """int64 [at most count, length + 1]: the first rows, in the file's order."""
        return np.stack([self._row(row) for row in range(min(count, self._rows))])

    def _row(self, row: int) -> np.ndarray:
        start = row * self._length
        return np.asarray(self._tokens[start : start + self._length + 1], dtype=np.int64)


class MixedRows:
    """Rows of several shards, mixed by their shares.

    A batch depends only on its step and the seed, so a resumed run needs no other state, and a
    longer run begins like a shorter one.
    """

    def __init__(self, shards: Sequence[PackedRows], shares: Sequence[float], seed: int) -> None:
        self._shards = shards
        self._shares = np.asarray(shares, dtype=np.float64) / sum(shares)
        self._seed = seed
        # For each block, the number of rows of every shard that earlier blocks used.
        self._before = [np.zeros(len(shards), dtype=np.int64)]

    def batch(self, step: int, size: int) -> np.ndarray:
        """int64 [size, length + 1] of training step `step`."""
        rows = []
        for position in range(step * size, (step + 1) * size):
            block, offset = divmod(position, _BLOCK)
            before, dealt = self._deal(block)
            shard = dealt[offset]
            place = before[shard] + np.count_nonzero(dealt[:offset] == shard)
            rows.append(self._shards[shard].shuffled(int(place)))
        return np.stack(rows)

    def _deal(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """How many rows of every shard come before the block, and the shard of each of its rows."""
        while len(self._before) <= block + 1:
            # Every shard gets its share in whole rows; the rows left go to the largest remainders.
            owed = self._shares * _BLOCK * len(self._before) - self._before[-1]
            counts = np.floor(np.maximum(owed, 0)).astype(np.int64)
            neediest = np.argsort(counts - owed, kind="stable")
            counts[neediest[: _BLOCK - int(counts.sum())]] += 1
            self._before.append(self._before[-1] + counts)
        before, after = self._before[block : block + 2]
        dealt = np.repeat(np.arange(len(self._shards)), after - before)
        return before, np.random.default_rng((self._seed, block)).permutation(dealt)
