"""Duplicates, exact and near, compared with the Jaccard similarity of all pairs."""

from __future__ import annotations

import random

from hagane.data.duplicates import Duplicates


def words(generator: random.Random, count: int) -> list[str]:
    return ["".join(generator.choices("abcdefghij", k=5)) for _ in range(count)]


def test_exact_duplicates_differ_in_spaces_and_case_alone():
    seen = Duplicates(None)
    assert seen.see("A cat.") is None
    assert seen.see("a  CAT.\n") == "exact"
    assert seen.see("A dog.") is None


def shingles(text: str) -> set[str]:
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_near_duplicates_are_those_above_the_similarity():
    generator = random.Random(0)
    seen, texts, pieces = Duplicates(0.8), [], []
    wrong = found = 0
    for _ in range(300):
        if texts and generator.random() < 0.5:
            changed = generator.choice(texts).split()
            for _ in range(generator.randrange(1, 8)):
                changed[generator.randrange(len(changed))] = words(generator, 1)[0]
            text = " ".join(changed)
        else:
            text = " ".join(words(generator, 40))
        mine = shingles(text)
        nearest = max((len(mine & other) / len(mine | other) for other in pieces), default=0)
        repeat = seen.see(text)
        found += repeat is not None
        wrong += (repeat is not None) != (nearest >= 0.8)
        if repeat is None:
            texts.append(text)
            pieces.append(mine)
    assert found > 20
    # Banding misses a pair just above the bound now and then; it never invents one.
    assert wrong <= 3


def test_japanese_and_empty_texts():
    seen = Duplicates(0.8)
    assert seen.see("今日は天気が良いので、散歩に行きました。公園には猫がいました。") is None
    assert seen.see("今日は天気が良いので、散歩に行きました。公園には猫がいました！") == "near"
    assert seen.see("") is None
    assert seen.see("") == "exact"
