"""Answers that a conversation got before."""

from __future__ import annotations

import random

from hagane.engine.schedule.sequence import Sequence
from hagane.engine.speculative.history import AnswerHistory
from hagane.engine.speculative.lookup import Lookup
from hagane.pool.messages import GenerateRequest, SamplingParams


def sequence(prompt, answer=(), salt="") -> Sequence:
    sampling = SamplingParams(max_tokens=100)
    made = Sequence.of(
        GenerateRequest(request_id="r", prompt=tuple(prompt), sampling=sampling, cache_salt=salt),
        0,
        0.0,
    )
    made.tokens += answer
    return made


PROMPT = tuple(random.Random(1).sample(range(1000), 60))
ANSWER = tuple(range(2000, 2050))


def test_a_prompt_that_comes_again_is_guessed_from_its_first_token():
    history = AnswerHistory()
    history.remember(sequence(PROMPT, ANSWER))
    again = sequence(PROMPT)
    assert Lookup(history.recall(again)).guess(again, 5) == list(ANSWER[:5])
    # Without it there is nothing to guess by.
    assert Lookup().guess(again, 5) == []


def test_a_prompt_edited_near_its_end_is_the_same_conversation():
    history = AnswerHistory()
    history.remember(sequence(PROMPT, ANSWER))
    edited = sequence((*PROMPT[:50], 1, *PROMPT[51:]))
    assert history.recall(edited) == [[*PROMPT[-16:], *ANSWER]]


def test_other_conversations_and_other_salts_share_nothing():
    history = AnswerHistory()
    history.remember(sequence(PROMPT, ANSWER))
    assert history.recall(sequence(PROMPT[::-1])) == []
    assert history.recall(sequence((*PROMPT[:20], *range(40)))) == []
    assert history.recall(sequence(PROMPT, salt="another")) == []


def test_the_closest_comes_last_and_few_are_given():
    history = AnswerHistory()
    for last in range(10):
        history.remember(sequence((*PROMPT[:-1], last + 3000), (last,)))
    found = history.recall(sequence((*PROMPT[:-1], 3004)))
    assert len(found) == 3
    assert found[-1][-1] == 4


def test_little_is_kept():
    history = AnswerHistory()
    for first in range(100):
        history.remember(sequence((first, *PROMPT), range(5000)))
    assert history.recall(sequence((0, *PROMPT))) == []
    (kept,) = history.recall(sequence((99, *PROMPT)))
    assert len(kept) <= 2048
