"""Prompt look-up, against a search that compares everything."""

from __future__ import annotations

import random

from hagane.engine.speculative.ngram import KEY, NgramIndex


def index_of(tokens):
    index = NgramIndex()
    index.extend(tokens)
    return index


def test_goes_on_as_the_last_place_did():
    assert index_of([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose(3) == [4, 5, 9]
    assert index_of([1, 2, 3, 4, 5, 9, 1, 2, 3]).propose(2) == [4, 5]
    assert index_of([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]).propose(1) == [5]


def test_the_longest_match_counts():
    tokens = [7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3]
    assert index_of(tokens).propose(1) == [4]


def test_a_run_may_overlap_itself():
    assert index_of([5] * 6).propose(4)[:1] == [5]


def test_nothing_to_propose():
    assert index_of([]).propose(4) == []
    assert index_of([1, 2]).propose(4) == []
    assert index_of([1, 2, 3, 4, 5]).propose(4) == []
    assert index_of([1, 2, 3, 1, 2, 3]).propose(0) == []


def test_what_is_proposed_followed_the_same_tokens_before():
    rng = random.Random(0)
    tokens: list[int] = []
    index = NgramIndex()
    for _ in range(3000):
        token = rng.randrange(4)
        index.extend([token])
        tokens.append(token)
        proposed = index.propose(5)
        tail = tokens[-KEY:]
        followers = [
            tokens[i + KEY : i + KEY + 5]
            for i in range(len(tokens) - KEY)
            if tokens[i : i + KEY] == tail
        ]
        # The text may end before five tokens; then it is carried on.
        begun = any(follower == proposed[: len(follower)] for follower in followers)
        assert begun if proposed else not followers


def test_a_repetition_is_carried_on():
    assert index_of([9, 7, 7, 7, 7]).propose(4) == [7, 7, 7, 7]
    assert index_of([1, 2, 3, 1, 2, 3]).propose(8) == [1, 2, 3, 1, 2, 3, 1, 2]
