"""Read a file of tasks: prompts as tokens, and the items that graders read. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from hagane.data.records import RecordedTask, RecordError, parse_task
from hagane.graders.spec import Grader, Multi, ScoreModel, StringCheck, TextSimilarity
from hagane.graders.template import look_up, places
from hagane.models.config import ModelConfig
from hagane.system.errors import InvalidRequestError, TrainingError
from hagane.text.chat_template import ChatTemplate
from hagane.text.tokenizer import Tokenizer
from hagane.training.finetune.examples import (
    FileReport,
    context_length,
    held_out,
    numbered_lines,
    problem_summary,
)
from hagane.training.finetune.spec import TrainingPlan
from hagane.training.jobs import estimates
from hagane.training.reinforce.spec import ReinforceSpec, resolve_reinforcement
from hagane.weights.sources.config import load_config


@dataclass(frozen=True, eq=False)
class PromptTask:
    """A prompt in tokens, and what its answers are graded by. Its length is the prompt's."""

    prompt: tuple[int, ...]
    item: dict[str, Any]
    digest: bytes

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks to train on, and held-out ones for validation."""

    training: list[PromptTask]
    validation: list[PromptTask]

    @property
    def digest(self) -> str:
        """A hash of all tasks in their order, hexadecimal."""
        digest = blake2b(digest_size=16)
        for task in (*self.training, *self.validation):
            digest.update(task.digest)
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(map(len, (*self.training, *self.validation)))


def report_tasks(spec: ReinforceSpec) -> FileReport:
    """Read the whole training file of `spec`; steps, time and memory are those of its plan.

    Raises ModelError if the model cannot be read.
    """
    config = load_config(spec.model)
    found, tasks = _read(spec.training_file, spec, config)
    if found.total_problems:
        return found
    data = Tasks(tasks, [])
    if spec.validation_file is None:
        data = _split(tasks, spec.seed)
        found.held_out = len(data.validation)
        found.warn_of_few()
    plan = resolve_reinforcement(spec, len(data.training), config.hidden_size)
    found.plan, found.steps = plan, plan.steps
    longest = data.longest + spec.max_completion_tokens
    found.seconds = _seconds(spec, config, plan, data)
    answering = estimates.answering(config, spec, longest)
    for name, recomputed in (("memory_bytes", False), ("least_memory_bytes", True)):
        training = estimates.memory(config, spec, longest, checkpointing=recomputed)
        setattr(found, name, training + answering)
    return found


def load_tasks(spec: ReinforceSpec) -> Tasks:
    """The tasks of a run. Raises TrainingError with the first problems of a bad file."""
    config = load_config(spec.model)
    training = _read_whole(spec.training_file, spec, config)
    if spec.validation_file is None:
        return _split(training, spec.seed)
    return Tasks(training, _read_whole(spec.validation_file, spec, config))


def _split(tasks: list[PromptTask], seed: int) -> Tasks:
    held = held_out({task.digest for task in tasks}, seed)
    reserved = {task.digest: task for task in tasks if task.digest in held}
    return Tasks([task for task in tasks if task.digest not in held], list(reserved.values()))


def _seconds(spec: ReinforceSpec, config: ModelConfig, plan: TrainingPlan, data: Tasks) -> float:
    """As if every answer had half of the tokens that it may have."""
    prompts, held = (sum(map(len, tasks)) for tasks in (data.training, data.validation))
    answer = spec.max_completion_tokens / 2
    tokens = round(prompts + answer * spec.group * len(data.training))
    held_out = round(held + answer * spec.samples * len(data.validation))
    learning = estimates.seconds(config, spec, plan, tokens, 0)
    if spec.kl:
        # The base below the adapter, forward.
        learning *= 1.5
    return learning + estimates.answering_seconds(config, spec, plan, tokens, held_out)


def _read_whole(path: Path, spec: ReinforceSpec, config: ModelConfig) -> list[PromptTask]:
    found, tasks = _read(path, spec, config)
    if found.total_problems:
        raise TrainingError(problem_summary(path, found), code="invalid_file")
    return tasks


def _read(
    path: Path, spec: ReinforceSpec, config: ModelConfig
) -> tuple[FileReport, list[PromptTask]]:
    found, tasks = FileReport(), []
    tokenizer = Tokenizer.load(spec.model)
    template = ChatTemplate.load(spec.model, tokenizer)
    longest = context_length(spec.sequence_length, config) - spec.max_completion_tokens
    wanted = list(_item_places(spec.grader))
    seen: set[bytes] = set()
    try:
        for number, line in numbered_lines(path):
            try:
                record = parse_task(line)
                for place in wanted:
                    look_up(place, {"item": record.item})
                task = _task(record, tokenizer, template)
                if len(task) > longest:
                    raise RecordError(
                        f"has a prompt of {len(task)} tokens; at most {max(longest, 0)} leave "
                        f"room for an answer of {spec.max_completion_tokens}"
                    )
            except (RecordError, InvalidRequestError) as error:
                found.add_problem(number, str(error))
                continue
            found.duplicates += task.digest in seen
            seen.add(task.digest)
            tasks.append(task)
    except RecordError as error:
        found.add_problem(0, str(error))
    least = 2 if spec.validation_file is None else 1
    if not found.total_problems and len(seen) < least:
        found.add_problem(0, f"has {len(seen)} distinct tasks: at least {least} are needed")
    found.examples, found.tokens = len(tasks), sum(map(len, tasks))
    return found, tasks


def _task(record: RecordedTask, tokenizer: Tokenizer, template: ChatTemplate | None) -> PromptTask:
    """Raises RecordError or InvalidRequestError."""
    if isinstance(record.prompt, str):
        prompt = tokenizer.encode(record.prompt)
    elif template is None:
        raise RecordError("has messages, but the model has no chat template: use prompt instead")
    else:
        extra = {} if record.tools is None else {"tools": list(record.tools)}
        text = template.render(list(record.prompt), add_generation_prompt=True, **extra)
        prompt = tokenizer.encode(text, add_special_tokens=False)
    whole = json.dumps([prompt, record.item], sort_keys=True).encode("utf-8", "surrogatepass")
    return PromptTask(tuple(prompt), record.item, blake2b(whole, digest_size=16).digest())


def _item_places(grader: Grader) -> Iterator[str]:
    """What the texts of a grader ask of an item, such as `item.answer`."""
    if isinstance(grader, Multi):
        for part in grader.graders.values():
            yield from _item_places(part)
    texts: list[str] = []
    if isinstance(grader, StringCheck | TextSimilarity):
        texts = [grader.input, grader.reference]
    elif isinstance(grader, ScoreModel):
        texts = [message.content for message in grader.input]
    yield from (p for text in texts for p in places(text) if p.split(".")[0] == "item")
