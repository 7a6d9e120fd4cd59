"""Finds texts that were seen before, word for word or nearly so.

Near duplicates are found by MinHash with banding (Broder 1997; Leskovec et al., Mining of Massive
Datasets, chapter 3) and confirmed by the Jaccard similarity of their shingles.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from typing import Literal

import numpy as np

# Characters of a shingle: words of Japanese and Chinese have no spaces between them.
_SHINGLE = 5
_BANDS, _ROWS = 20, 4
_PRIME = (1 << 31) - 1


class Duplicates:
    """The texts seen so far. `similarity` is from 0 to 1; None looks for equal texts alone."""

    def __init__(self, similarity: float | None) -> None:
        self._similarity = similarity
        self._digests: set[bytes] = set()
        self._texts: list[str] = []
        self._bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        random = np.random.default_rng(0)
        self._factors = random.integers(1, _PRIME, (2, _BANDS * _ROWS), dtype=np.uint64)

    def see(self, text: str) -> Literal["exact", "near"] | None:
        """How `text` repeats an earlier one; None for a new one, which is remembered."""
        plain = " ".join(text.casefold().split())
        digest = hashlib.sha256(plain.encode()).digest()
        if digest in self._digests:
            return "exact"
        if self._similarity is not None:
            keys = self._keys(plain)
            candidates = {index for key in keys for index in self._bands.get(key, ())}
            shingles = _shingles(plain)
            for index in candidates:
                if _jaccard(shingles, _shingles(self._texts[index])) >= self._similarity:
                    return "near"
            for key in keys:
                self._bands[key].append(len(self._texts))
            self._texts.append(plain)
        self._digests.add(digest)
        return None

    def _keys(self, text: str) -> list[tuple[int, bytes]]:
        hashes = [zlib.crc32(shingle.encode()) % _PRIME for shingle in _shingles(text)]
        values = np.array(hashes, dtype=np.uint64)[:, None]
        scale, shift = self._factors
        signature = ((values * scale + shift) % _PRIME).min(axis=0)
        rows = signature.reshape(_BANDS, _ROWS)
        return [(band, rows[band].tobytes()) for band in range(_BANDS)]


def _shingles(text: str) -> set[str]:
    return {text[i : i + _SHINGLE] for i in range(max(len(text) - _SHINGLE + 1, 1))}


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)
