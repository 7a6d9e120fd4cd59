"""Measures of likeness against plain definitions and worked examples of their papers."""

from __future__ import annotations

import math
import random

import pytest
from hagane.graders.similarity import MEASURES, bleu, common_subsequence, fuzzy_match


def plain_subsequence(a: str, b: str) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        previous = 0
        for j, y in enumerate(b, 1):
            kept = row[j]
            row[j] = previous + 1 if x == y else max(row[j], row[j - 1])
            previous = kept
    return row[-1]


def test_subsequences_are_those_of_the_plain_recursion():
    generator = random.Random(0)
    for _ in range(200):
        a, b = ("".join(generator.choices("abc", k=generator.randrange(80))) for _ in range(2))
        assert common_subsequence(a, b) == plain_subsequence(a, b)


def test_bleu_by_hand():
    # 5 of 6 words, then 3 of 5 pairs, 1 of 4 triples, 0 of 3 fours, each above one smoothed.
    said, wanted = "the cat sat on the mat", "the cat is on the mat"
    precision = (5 / 6) * (4 / 6) * (2 / 5) * (1 / 4)
    assert bleu(said, wanted) == pytest.approx(precision**0.25)
    assert bleu("the cat", wanted) == pytest.approx(math.exp(1 - 6 / 2) * 1.0)


def test_rouge_by_hand():
    # Lin (2004), 3.1: "police killed the gunman" and "police kill the gunman": LCS 3 of 4.
    said, wanted = "police kill the gunman", "police killed the gunman"
    assert MEASURES["rouge_l"](said, wanted) == 0.75
    assert MEASURES["rouge_1"](said, wanted) == 0.75
    assert MEASURES["rouge_2"](said, wanted) == pytest.approx(1 / 3)


@pytest.mark.parametrize("measure", MEASURES)
def test_bounds(measure):
    compare = MEASURES[measure]
    assert compare("the quick brown fox jumps", "the quick brown fox jumps") == 1
    assert compare("abc", "xyz") == 0
    assert 0 <= compare("今日は良い天気です", "今日は悪い天気です") <= 1
    assert 0 <= compare("", "something") <= compare("some thing", "some thing else") <= 1


def test_fuzzy_match_counts_insertions_and_deletions():
    assert fuzzy_match("kitten", "sitting") == pytest.approx(8 / 13)
    assert fuzzy_match("", "") == 1
