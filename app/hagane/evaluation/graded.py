"""Have a model answer items and grade its answers, with an engine of its own."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hagane.graders.grade import Grading
from hagane.graders.spec import Grader, GraderMessage
from hagane.graders.template import fill
from hagane.models.families import read_config_file
from hagane.pool.client import EngineClient
from hagane.pool.messages import EngineConfig, GenerateRequest, SamplingParams
from hagane.system.errors import InvalidRequestError
from hagane.text.chat_template import ChatTemplate
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer

# Answers in flight: enough to fill a batch, few enough for any queue.
_IN_FLIGHT = 32


class GradedEval(BaseModel):
    """A file of `hagane eval --graders`: OpenAI's graders, and the question about each item."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    template: list[GraderMessage] = Field(min_length=1)
    testing_criteria: list[Grader] = Field(min_length=1)
    max_completion_tokens: int = Field(256, ge=1)

    @classmethod
    def load(cls, path: Path) -> GradedEval:
        """Raises InvalidRequestError naming the file and the first problem."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            reason = error.errors()[0] if isinstance(error, ValidationError) else None
            where = ".".join(map(str, reason["loc"])) if reason else ""
            said = f"{where}: {reason['msg']}" if reason else str(error)
            raise InvalidRequestError(f"{path} is no eval: {said}", param="graders") from None


@dataclass(frozen=True)
class GradedResult:
    """Scores by grader and item; `passed` is the part of the items that pass every grader."""

    items: int
    passed: float
    scores: Mapping[str, Sequence[float]]

    @property
    def totals(self) -> dict[int, float]:
        """The sum of the scores of each item."""
        return {n: sum(scores[n] for scores in self.scores.values()) for n in range(self.items)}

    def __str__(self) -> str:
        means = ", ".join(f"{name} {mean(scores):.4f}" for name, scores in self.scores.items())
        return f"{means}; {self.passed:.1%} of {self.items} items pass all"


def read_items(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Items of a JSON Lines file, each an object or in the key `item` of one.

    Raises InvalidRequestError naming the line.
    """
    items: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if len(items) == limit:
                break
            try:
                record = json.loads(line)
                items.append(dict(record.get("item", record)))
            except (ValueError, AttributeError, TypeError):
                raise InvalidRequestError(
                    f"{path} line {number} is no JSON object.", param="items"
                ) from None
    if not items:
        raise InvalidRequestError(f"{path} has no item.", param="items")
    return items


async def evaluate_graded(
    config: EngineConfig, plan: GradedEval, items: Sequence[dict[str, Any]]
) -> GradedResult:
    """Ask the model of `config` about all items, greedily, and grade its answers.

    A `score_model` grader asks the same model. Raises HaganeError.
    """
    client = EngineClient(config)
    await client.start()
    try:
        await client.ready()
        asker = await asyncio.to_thread(_Asker.load, client, Path(config.model))
        grading = Grading(asker.ask)
        free = asyncio.Semaphore(_IN_FLIGHT)

        async def one(item: dict[str, Any]) -> list[tuple[float, bool]]:
            async with free:
                values = {"item": item}
                asked = [
                    {"role": m.role, "content": fill(m.content, values)} for m in plan.template
                ]
                wanted = {"max_completion_tokens": plan.max_completion_tokens}
                said = {"output_text": await asker.ask("", asked, wanted)}
                grades = [await grading.grade(g, item, said) for g in plan.testing_criteria]
            return [(grade.score, grade.passed) for grade in grades]

        graded = await asyncio.gather(*map(one, items))
    finally:
        await client.stop(grace=5.0)
    names = [grader.name for grader in plan.testing_criteria]
    passed = mean(all(ok for _, ok in row) for row in graded)
    scores = {name: [row[at][0] for row in graded] for at, name in enumerate(names)}
    return GradedResult(len(graded), passed, scores)


@dataclass(frozen=True)
class _Asker:
    client: EngineClient
    tokenizer: Tokenizer
    template: ChatTemplate
    defaults: GenerationDefaults

    @classmethod
    def load(cls, client: EngineClient, directory: Path) -> _Asker:
        tokenizer = Tokenizer.load(directory)
        template = ChatTemplate.load(directory, tokenizer)
        if template is None:
            raise InvalidRequestError(
                f"{directory} has no chat template, so that nothing can be asked.", param="model"
            )
        config = read_config_file(directory)
        defaults = GenerationDefaults.load(directory, tokenizer, config, template)
        return cls(client, tokenizer, template, defaults)

    async def ask(self, _: str, messages: list[dict[str, str]], given: dict[str, Any]) -> str:
        text = await asyncio.to_thread(self.template.render, messages, add_generation_prompt=True)
        sampling = SamplingParams(
            max_tokens=given.get("max_completion_tokens", 256),
            temperature=given.get("temperature", 0.0),
            eos_token_ids=self.defaults.eos_token_ids,
        )
        prompt = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        request = GenerateRequest(request_id=uuid.uuid4().hex, prompt=prompt, sampling=sampling)
        tokens: list[int] = []
        async with aclosing(self.client.generate(request)) as deltas:
            async for delta in deltas:
                tokens += delta.tokens[:-1] if delta.stopped_on_token else delta.tokens
        return self.tokenizer.decode(tokens)
