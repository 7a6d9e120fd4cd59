"""How alike two texts are, from 0 to 1, by the measures that OpenAI's graders name.

Words are runs of letters and digits; where a text has none of the spaces that would part them, as
in Japanese and Chinese, each character is a word.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

_WORD = re.compile(r"[぀-ヿ㐀-鿿豈-﫿]|[^\W_]+")
_BLEU_ORDER = 4


def words(text: str) -> list[str]:
    """The words of `text`, in lower case."""
    return _WORD.findall(text.lower())


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence (Hyyrö, bit-parallel, 2004)."""
    places: dict[str, int] = {}
    for index, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for item in b:
        matched = row & places.get(item, 0)
        row = ((row + matched) | (row - matched)) & full
    return len(a) - row.bit_count()


def fuzzy_match(text: str, reference: str) -> float:
    """1 - d/(m + n) for m and n characters and d insertions and deletions between them."""
    length = len(text) + len(reference)
    return 2 * common_subsequence(text, reference) / length if length else 1.0


def bleu(text: str, reference: str) -> float:
    """BLEU up to 4-grams of one sentence (Papineni et al., 2002), smoothed by adding one to the
    counts above 1-grams (Lin and Och, 2004)."""
    said, wanted = words(text), words(reference)
    if not said or not wanted:
        return float(said == wanted)
    logs = 0.0
    for order in range(1, _BLEU_ORDER + 1):
        ours, theirs = _grams(said, order), _grams(wanted, order)
        matches, count = (ours & theirs).total(), ours.total()
        if order > 1:
            matches, count = matches + 1, count + 1
        if not matches:
            return 0.0
        logs += math.log(matches / count) / _BLEU_ORDER
    brevity = min(0.0, 1 - len(wanted) / len(said))
    return math.exp(brevity + logs)


def gleu(text: str, reference: str) -> float:
    """The smaller one of precision and recall over 1- to 4-grams (Wu et al., 2016)."""
    said, wanted = words(text), words(reference)
    orders = range(1, _BLEU_ORDER + 1)
    ours = sum((_grams(said, order) for order in orders), Counter[tuple[str, ...]]())
    theirs = sum((_grams(wanted, order) for order in orders), Counter[tuple[str, ...]]())
    most = max(ours.total(), theirs.total())
    return (ours & theirs).total() / most if most else 1.0


def rouge(order: int) -> Callable[[str, str], float]:
    """F1 of the n-grams of one order (Lin, 2004)."""

    def measure(text: str, reference: str) -> float:
        said, wanted = words(text), words(reference)
        ours, theirs = _grams(said, order), _grams(wanted, order)
        if not ours and not theirs:
            # Both are shorter than the n-grams.
            return float(said == wanted)
        return _f1((ours & theirs).total(), ours.total(), theirs.total())

    return measure


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004)."""
    said, wanted = words(text), words(reference)
    return _f1(common_subsequence(said, wanted), len(said), len(wanted))


def _grams(items: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + order]) for i in range(len(items) - order + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs) if ours + theirs else 1.0


MEASURES: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {
        "fuzzy_match": fuzzy_match,
        "bleu": bleu,
        "gleu": gleu,
        **{f"rouge_{order}": rouge(order) for order in range(1, 6)},
        "rouge_l": rouge_l,
    }
)
