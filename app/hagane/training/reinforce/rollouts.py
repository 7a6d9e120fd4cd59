"""Sampled answers to tasks, and their rewards."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from hagane.graders.grade import Grading
from hagane.models.families import read_config_file
from hagane.pool.messages import AdapterRef, SamplingParams
from hagane.system.errors import HaganeError, InvalidRequestError
from hagane.text.chat_template import ChatTemplate
from hagane.text.generation_defaults import GenerationDefaults
from hagane.text.tokenizer import Tokenizer
from hagane.training.finetune.masking import MaskedSequence
from hagane.training.jobs.answering_engine import AnsweringEngine, SampledAnswer, SeededPrompt
from hagane.training.reinforce.spec import ReinforceSpec
from hagane.training.reinforce.tasks import PromptTask

logger = logging.getLogger(__name__)

# Of a grader that is a model.
_OPINION_TOKENS = 256


@dataclass(frozen=True, eq=False)
class Rollout:
    """An answer to a task. `reward` is the grade, 0 where the grader `failed`.

    Its length is that of the prompt with the answer.
    """

    task: PromptTask
    answer: SampledAnswer
    reward: float
    failed: bool = False

    def __len__(self) -> int:
        return len(self.task) + len(self.answer.tokens)

    @property
    def sequence(self) -> MaskedSequence:
        """SeededPrompt and answer, of which the answer is trained."""
        tokens = np.array([*self.task.prompt, *self.answer.tokens], dtype=np.int32)
        return MaskedSequence(tokens, np.arange(len(tokens)) >= len(self.task))


class RolloutSampler:
    """Samples answers from the engine at temperature 1, and grades them.

    At that temperature they come from the very distribution that is trained.
    """

    def __init__(self, spec: ReinforceSpec, engine: AnsweringEngine) -> None:
        self._spec, self._engine = spec, engine
        self._tokenizer = Tokenizer.load(spec.model)
        self._template = ChatTemplate.load(spec.model, self._tokenizer)
        config = read_config_file(spec.model)
        defaults = GenerationDefaults.load(spec.model, self._tokenizer, config, self._template)
        self._ends = defaults.eos_token_ids
        self._grading = Grading(self._ask)

    def sample(
        self, tasks: Sequence[PromptTask], count: int, step: int, adapter: AdapterRef | None
    ) -> list[list[Rollout]]:
        """`count` answers to each task, which follow from the seed, `step` and the place alone.

        Raises the engine's HaganeError.
        """
        return self._engine.run(self._sample(tasks, count, step, adapter))

    async def _sample(
        self, tasks: Sequence[PromptTask], count: int, step: int, adapter: AdapterRef | None
    ) -> list[list[Rollout]]:
        async def one(place: int, task: PromptTask) -> list[Rollout]:
            seed = _seed(self._spec.seed, step, place)
            sampling = SamplingParams(
                max_tokens=self._spec.max_completion_tokens,
                eos_token_ids=self._ends,
                seed=seed,
                logprobs=0,
            )
            prompt = SeededPrompt(task.prompt, count, seed)
            answers = await self._engine.answer(prompt, adapter, sampling)
            return list(await asyncio.gather(*(self._graded(task, a) for a in answers)))

        return list(await asyncio.gather(*(one(n, task) for n, task in enumerate(tasks))))

    async def _graded(self, task: PromptTask, answer: SampledAnswer) -> Rollout:
        text = self._tokenizer.decode(list(answer.text_tokens))
        sample: dict[str, Any] = {"output_text": text, "output_tools": [], "choices": []}
        try:
            sample["output_json"] = json.loads(text)
        except ValueError:
            sample["output_json"] = None
        try:
            grade = await self._grading.grade(self._spec.grader, task.item, sample)
        except InvalidRequestError as error:
            logger.debug("an answer gets no reward: %s", error)
            return Rollout(task, answer, 0.0, failed=True)
        return Rollout(task, answer, grade.score)

    async def _ask(self, model: str, messages: list[dict[str, str]], given: dict[str, Any]) -> str:
        """The base model's opinion, without the adapter."""
        if self._template is None:
            raise HaganeError("The model has no chat template, so that it cannot grade.")
        text = await asyncio.to_thread(self._template.render, messages, add_generation_prompt=True)
        prompt = tuple(self._tokenizer.encode(text, add_special_tokens=False))
        sampling = SamplingParams(
            max_tokens=given.get("max_completion_tokens", _OPINION_TOKENS),
            temperature=given.get("temperature", 0.0),
            eos_token_ids=self._ends,
        )
        (answer,) = await self._engine.answer(SeededPrompt(prompt, 1, 0), None, sampling)
        return self._tokenizer.decode(list(answer.text_tokens))


def _seed(seed: int, step: int, place: int) -> int:
    digest = blake2b(f"{seed}/{step}/{place}".encode(), digest_size=7).digest()
    return int.from_bytes(digest)
