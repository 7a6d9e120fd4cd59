"""Prompt look-up, against a search that compares everything."""

from __future__ import annotations

import random

from hagane.engine.speculative.ngram import KEY, NgramIndex


def index_of(tokens):
    index = NgramIndex()
    index.extend(tokens)
    return index


def guessed(tokens, most):
    return index_of(tokens).propose(most).tokens


def test_goes_on_as_the_last_place_did():
    assert guessed([1, 2, 3, 4, 5, 9, 1, 2, 3], 3) == [4, 5, 9]
    assert guessed([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == [4, 5]
    assert guessed([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == [5]


def test_the_longest_match_counts():
    tokens = [7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3]
    assert guessed(tokens, 1) == [4]


def test_the_length_of_the_match_is_known():
    tokens = [7, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 1, 2, 3]
    assert index_of(tokens).propose(1).length == 4


def test_a_run_may_overlap_itself():
    assert guessed([5] * 6, 4)[:1] == [5]


def test_nothing_to_propose():
    assert guessed([], 4) == []
    assert guessed([1, 2], 4) == []
    assert guessed([1, 2, 3, 4, 5], 4) == []
    assert guessed([1, 2, 3, 1, 2, 3], 0) == []


def test_what_is_proposed_followed_the_same_tokens_before():
    rng = random.Random(0)
    tokens: list[int] = []
    index = NgramIndex()
    for _ in range(3000):
        token = rng.randrange(4)
        index.extend([token])
        tokens.append(token)
        proposed = index.propose(5).tokens
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
    assert guessed([9, 7, 7, 7, 7], 4) == [7, 7, 7, 7]
    assert guessed([1, 2, 3, 1, 2, 3], 8) == [1, 2, 3, 1, 2, 3, 1, 2]
