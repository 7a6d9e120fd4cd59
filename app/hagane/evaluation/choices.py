"""Score multiple-choice questions and last-word prediction by log-likelihood."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hagane.evaluation.scoring import Score, ScoredContinuation, Scorer
from hagane.evaluation.text import document_start
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations; `answer` is the index of the right one.

    A single choice counts as right if greedy decoding generates it.
    """

    context: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class ChoiceResult:
    """Fractions of right answers, 0 to 1.

    `accuracy` chooses by log-likelihood, `accuracy_norm` by log-likelihood per character without
    the leading space (lm-evaluation-harness' `acc` and `acc_norm`). `truncated` counts questions
    whose context was cut on its left.
    """

    questions: int
    accuracy: float
    accuracy_norm: float
    truncated: int

    def __str__(self) -> str:
        cut = f", {self.truncated} truncated" if self.truncated else ""
        return (
            f"accuracy {self.accuracy:.4f}, normalised by length {self.accuracy_norm:.4f} "
            f"({self.questions} questions{cut})"
        )


def read_questions(path: Path) -> list[Question]:
    """Read questions from a JSON Lines file; prompts are those of lm-evaluation-harness.

    ARC: `question`, `choices` {`text`, `label`}, `answerKey`. PIQA: `goal`, `sol1`, `sol2`,
    `label`. LAMBADA: `text`, whose last word is to be predicted. Anything else: `context`,
    `choices` [texts], `answer` (an index). Raises InvalidRequestError naming the line and the
    problem.
    """
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                questions.append(_question(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise InvalidRequestError(
                    f"{path} line {number} is not a question ({type(error).__name__}: {error}); it "
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
        raise ValueError("the context is empty, or the answer is not among the choices")
    return found


def _spaced(choices: Sequence[str]) -> tuple[str, ...]:
    return tuple(f" {choice}" for choice in choices)


async def evaluate_choices(
    scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]
) -> ChoiceResult:
    """Score every choice as a continuation of its context, and count the right answers."""
    continuations = [
        _continuation(tokenizer, question.context, choice)
        for question in questions
        for choice in question.choices
    ]
    scores = iter(await scorer.score(continuations))
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


def _continuation(tokenizer: Tokenizer, context: str, choice: str) -> ScoredContinuation:
    """Tokenize context and choice together, and cut after the context's own tokens.

    Trailing white space moves to the choice, since tokenizers join it to the next word.
    """
    stripped = context.rstrip()
    choice = context[len(stripped) :] + choice
    together = tokenizer.encode(stripped + choice)
    given = tokenizer.encode(stripped) or [document_start(tokenizer)]
    return ScoredContinuation(tuple(given), tuple(together[len(given) :]))
