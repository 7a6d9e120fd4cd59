"""Answers that the same conversation got before: it is asked again, edited, or asked several times.

What was said before is in the prompt already; what is kept here is not.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass

from hagane.engine.schedule.sequence import Sequence

# Answers kept, and tokens of each.
_KEPT, _LONGEST = 64, 2048
# Tokens of the prompt that lead to an answer's first ones.
_LEAD = 16
# Answers that one sequence is given.
_MOST = 3
# The part of the shorter prompt that two of one conversation share.
_SHARE = 0.7


@dataclass(frozen=True)
class _Answer:
    """An answer with the end of its prompt before it, and what it was an answer to."""

    salt: str
    prompt: list[int]
    text: list[int]


class AnswerHistory:
    """The latest answers of an engine. Sequences of different salts share none."""

    def __init__(self) -> None:
        self._answers: deque[_Answer] = deque(maxlen=_KEPT)

    def remember(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        prompt = sequence.tokens[: sequence.prompt_length]
        text = sequence.tokens[max(sequence.prompt_length - _LEAD, 0) :][:_LONGEST]
        self._answers.append(_Answer(sequence.cache_salt, prompt, text))

    def recall(self, sequence: Sequence) -> list[list[int]]:
        """Answers to prompts that begin as that of a sequence does; the closest is the last."""
        prompt = sequence.tokens[: sequence.prompt_length]
        found: list[tuple[int, int, list[int]]] = []
        for age, answer in enumerate(self._answers):
            if answer.salt != sequence.cache_salt:
                continue
            common = _common(prompt, answer.prompt)
            if common >= _SHARE * min(len(prompt), len(answer.prompt)):
                found.append((common, age, answer.text))
        return [text for *_, text in sorted(found)[-_MOST:]]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    limit = min(len(one), len(other))
    if one[:limit] == other[:limit]:
        return limit
    # The first length at which they differ.
    return bisect_left(range(limit + 1), True, key=lambda n: one[:n] != other[:n]) - 1
