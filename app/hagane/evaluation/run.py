"""Evaluate files of text and of questions with one engine."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hagane.data.documents import Corpus, documents
from hagane.evaluation.choices import ChoiceResult, evaluate_choices, read_questions
from hagane.evaluation.scoring import scorer
from hagane.evaluation.text import TextResult, evaluate_text
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """The files to evaluate; `limit` is the number of documents or questions from each."""

    texts: tuple[Path, ...]
    questions: tuple[Path, ...]
    limit: int | None = None


async def run(config: EngineConfig, plan: Evaluation) -> dict[Path, TextResult | ChoiceResult]:
    """Evaluate every file with an engine started for it, and return their results.

    Raises HaganeError if a file cannot be read or the engine cannot start.
    """
    for path in (*plan.texts, *plan.questions):
        if not path.is_file():
            raise ConfigurationError(f"{path} does not exist or is no file")
    texts = {path: list(islice(documents(Corpus(path=path)), plan.limit)) for path in plan.texts}
    asked = {path: read_questions(path)[: plan.limit] for path in plan.questions}
    tokenizer = Tokenizer.load(Path(config.model))
    results: dict[Path, TextResult | ChoiceResult] = {}
    async with scorer(config) as scoring:
        for path, found in texts.items():
            results[path] = await evaluate_text(scoring, tokenizer, found)
        for path, questions in asked.items():
            results[path] = await evaluate_choices(scoring, tokenizer, questions)
    return results
