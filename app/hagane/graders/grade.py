"""Grades one sample by one grader."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from hagane.graders.arithmetic import compute_formula
from hagane.graders.similarity import MEASURES
from hagane.graders.spec import (
    Grader,
    Multi,
    Python,
    ScoreModel,
    StringCheck,
    TextSimilarity,
)
from hagane.graders.template import fill
from hagane.system.errors import InvalidRequestError
from hagane.system.sandbox import Sandbox, SandboxError

# (model, messages, sampling parameters) -> the text of the answer.
Ask = Callable[[str, list[dict[str, str]], dict[str, Any]], Awaitable[str]]

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PASSED_FROM = 0.5
_PROGRAM = "hagane.graders.program"


@dataclass(frozen=True)
class Grade:
    """A score, usually from 0 to 1, and whether it passes."""

    score: float
    passed: bool


@dataclass(frozen=True)
class Grading:
    """The resources of graders: a way to `ask` models, and a `sandbox` for programs."""

    ask: Ask
    sandbox: Sandbox = field(
        default_factory=lambda: Sandbox(
            processes=2, seconds=5.0, memory=512 << 20, confined=_PROGRAM
        )
    )

    async def grade(self, grader: Grader, item: dict[str, Any], sample: dict[str, Any]) -> Grade:
        """Grade `sample`, whose `output_text` is the answer to `item`.

        Raises InvalidRequestError where the grader cannot be applied.
        """
        score = await self._score(grader, item, sample)
        if isinstance(grader, StringCheck):
            return Grade(score, score == 1)
        least = grader.pass_threshold
        if least is None:
            low, high = grader.range if isinstance(grader, ScoreModel) else (0.0, 1.0)
            least = low + _PASSED_FROM * (high - low)
        return Grade(score, score >= least)

    async def _score(self, grader: Grader, item: dict[str, Any], sample: dict[str, Any]) -> float:
        values = {"item": item, "sample": sample}
        if isinstance(grader, StringCheck):
            return _check(grader, fill(grader.input, values), fill(grader.reference, values))
        if isinstance(grader, TextSimilarity):
            measure = MEASURES[grader.evaluation_metric]
            texts = fill(grader.input, values), fill(grader.reference, values)
            return await asyncio.to_thread(measure, *texts)
        if isinstance(grader, ScoreModel):
            return await self._ask_model(grader, values)
        if isinstance(grader, Python):
            return await self._run(grader, item, sample)
        return await self._combine(grader, item, sample)

    async def _ask_model(self, grader: ScoreModel, values: dict[str, Any]) -> float:
        messages = [{"role": m.role, "content": fill(m.content, values)} for m in grader.input]
        said = await self.ask(grader.model, messages, grader.sampling_params)
        numbers = _NUMBER.findall(said)
        if not numbers:
            raise InvalidRequestError(
                f"The grader '{grader.name}' asked '{grader.model}' for a number and got "
                f"{said[:80]!r}.",
                param="model",
            )
        low, high = grader.range
        return min(max(float(numbers[-1]), low), high)

    async def _run(self, grader: Python, item: dict[str, Any], sample: dict[str, Any]) -> float:
        function = f"{_PROGRAM}:run_grade"
        try:
            return float(
                await asyncio.to_thread(self.sandbox.call, function, grader.source, sample, item)
            )
        except SandboxError as error:
            raise InvalidRequestError(
                f"The program of the grader '{grader.name}' failed: {error}", param="source"
            ) from None

    async def _combine(self, grader: Multi, item: dict[str, Any], sample: dict[str, Any]) -> float:
        scores = {
            name: await self._score(part, item, sample) for name, part in grader.graders.items()
        }
        try:
            return compute_formula(grader.calculate_output, scores)
        except ValueError as error:
            raise InvalidRequestError(
                f"The grader '{grader.name}': {error}.", param="calculate_output"
            ) from None


def _check(grader: StringCheck, text: str, reference: str) -> float:
    if grader.operation == "ilike":
        return float(reference.lower() in text.lower())
    if grader.operation == "like":
        return float(reference in text)
    return float((text == reference) == (grader.operation == "eq"))
