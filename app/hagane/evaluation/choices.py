"""Multiple-choice questions and last words by log-likelihood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.evaluation.scoring import Score, Scorer, Target
from hagane.evaluation.text import document_start
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A context and the texts that may follow it, of which `answer` is right.

    With a single choice the question is whether greedy decoding gives it.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceResult:
    """Shares of right answers, 0 to 1.

    `accuracy` takes the choice of the largest log-likelihood, `accuracy_norm` that of the largest
    per character, the space before it not counted (lm-evaluation-harness' `acc` and `acc_norm`).
    `truncated` counts questions whose context was cut on its left.
    """

    questions: int
    accuracy: float
    accuracy_norm: float
    truncated: int

    def __str__(self) -> str:
        cut = f", {self.truncated} cut to fit" if self.truncated else ""
        return (
            f"accuracy {self.accuracy:.4f}, normalised by length {self.accuracy_norm:.4f} "
            f"({self.questions} questions{cut})"
        )


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSON Lines file in any of these forms, worded as lm-evaluation-harness does.

    ARC: `question`, `choices` {`text`, `label`}, `answerKey`. PIQA: `goal`, `sol1`, `sol2`,
    `label`. LAMBADA: `text`, whose last word is to be guessed. Anything else: `context`, `choices`
    [texts], `answer` (an index). Raises InvalidRequestError naming the line and what it lacks.
    """
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise InvalidRequestError(
                    f"{path} line {number} is no question ({type(error).__name__}: {error}); it "
                    "needs the fields of ARC, PIQA or LAMBADA, or context, choices and answer.",
                    param="questions",
                ) from None
    if not questions:
        raise InvalidRequestError(f"{path} has no question.", param="questions")
    return questions


def _question(record: dict[str, Any]) -> Question:
    if "answerKey" in record:
        labels = list(record["choices"]["label"])
        context = f"Question: {record['question']}\nAnswer:"
        found = Question(
            context, _spaced(record["choices"]["text"]), labels.index(record["answerKey"])
        )
    elif "goal" in record:
        context = f"Question: {record['goal']}\nAnswer:"
        found = Question(context, _spaced([record["sol1"], record["sol2"]]), int(record["label"]))
    elif "choices" in record:
        found = Question(record["context"], _spaced(record["choices"]), int(record["answer"]))
    else:
        context, _, word = record["text"].rpartition(" ")
        found = Question(context, (f" {word}",), 0)
    if not found.context or not 0 <= found.answer < len(found.choices):
        raise ValueError("its context is empty or its answer is none of its choices")
    return found


def _spaced(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {choice}" for choice in choices)


async def evaluate_choices(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]
) -> ChoiceResult:
    """Score every choice of every question after its context, and compare them."""
    targets = [
        _target(tokenizer, question.context, choice)
        for question in questions
        for choice in question.choices
    ]
    scores = iter(await scorer.score(targets))
    right = right_norm = truncated = 0
    for question in questions:
        own = [next(scores) for _ in question.choices]
        right += _best(question, own, per_character=False)
        right_norm += _best(question, own, per_character=True)
        truncated += any(score.truncated for score in own)
    count = len(questions)
    return ChoiceResult(count, right / count, right_norm / count, truncated)


def _best(question: Question, scores: Sequence[Score], *, per_character: bool) -> bool:
    if len(scores) == 1:
        return scores[0].greedy
    values = [
        score.logprob / (len(choice) - 1 if per_character else 1)
        for score, choice in zip(scores, question.choices, strict=True)
    ]
    return values.index(max(values)) == question.answer


def _target(tokenizer: Tokenizer, context: str, choice: str) -> Target:
    """Both are tokenized together, and cut where the context's own tokens end.

    White space at the context's end belongs to the choice: tokenizers join it to the next word.
    """
    stripped = context.rstrip()
    choice = context[len(stripped) :] + choice
    whole = tokenizer.encode(stripped + choice)
    given = tokenizer.encode(stripped) or [document_start(tokenizer)]
    return Target(tuple(given), tuple(whole[len(given) :]))
