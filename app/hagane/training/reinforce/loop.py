"""Reinforcement learning: tasks and a grader in, an adapter out, compared to its base by reward.

A step: the engine answers with the adapter as it is, the grader rewards, the gradients follow.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch

from hagane.kernels.devices import resolve_device
from hagane.lora.config import adapter_digest
from hagane.lora.train import disabled, place_factors
from hagane.models.config import ModelConfig
from hagane.models.spec import linear_shapes
from hagane.pool.messages import AdapterRef
from hagane.system.machine import available_memory
from hagane.training.finetune.drive import StepUpdate, apply, drive
from hagane.training.finetune.faults import explained
from hagane.training.finetune.meter import StepScore
from hagane.training.finetune.micro_batches import batch
from hagane.training.finetune.model import (
    FineTuneModel,
    free_bytes,
    load_finetune_model,
    training_dtype,
)
from hagane.training.finetune.objective import score
from hagane.training.finetune.spec import TrainingPlan
from hagane.training.jobs.answering_engine import AnsweringEngine, answering_config
from hagane.training.jobs.estimates import MICRO_TOKENS, REPEATED_TOKENS, answering
from hagane.training.reinforce.policy_loss import advantages, policy_loss
from hagane.training.reinforce.rollouts import Rollout, RolloutSampler
from hagane.training.reinforce.spec import ReinforceSpec, resolve_reinforcement
from hagane.training.reinforce.tasks import Tasks, load_tasks
from hagane.training.report.listener import FineTuneResult, Listener
from hagane.weights.sources.config import load_config

# Held-out answers are sampled by the same numbers every time, which no step has.
_VALIDATION_STEP = -1


def reinforce(
    spec: ReinforceSpec,
    directory: Path,
    listener: Listener,
    free_memory: Callable[[], int] = available_memory,
) -> FineTuneResult:
    """Start or resume the run that `spec` describes, in a directory of its own, as `finetune` does.

    Losses in reports are mean rewards, negated. Raises TrainingError, TrainingInterrupted, or the
    engine's HaganeError.
    """
    with explained():
        torch.set_num_threads(spec.threads or torch.get_num_threads())
        tasks = load_tasks(spec)
        longest = tasks.longest + spec.max_completion_tokens
        shape = load_config(spec.model)
        device = resolve_device(spec.device)
        dtype = training_dtype(spec.dtype, shape, device)
        config = answering_config(
            spec,
            spec.model,
            longest,
            adapter_bytes=_adapter_bytes(spec, shape),
            dtype=str(dtype).removeprefix("torch."),
        )
        # Before the engine starts, which takes its part while the run's own model is read.
        free = free_bytes(device, free_memory) - answering(shape, spec, longest)
        with AnsweringEngine(config) as engine:
            model = load_finetune_model(
                spec, longest, checkpointing=spec.checkpointing, served=True, free=free
            )
            engine.ready()
            plan = resolve_reinforcement(spec, len(tasks.training), shape.hidden_size)
            optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
            policy = ServedPolicy(model, engine, directory / "state" / "rollouts")
            run = _Run(spec, tasks, plan, model, optimizer, policy, RolloutSampler(spec, engine))
            return drive(run, directory, listener)


def _adapter_bytes(spec: ReinforceSpec, shape: ModelConfig) -> int:
    """The most that an adapter of `spec` can have, in float32."""
    sizes = linear_shapes(shape).values()
    return 4 * sum(spec.rank * (rows + columns) + rows * spec.dora for rows, columns in sizes)


class ServedPolicy:
    """The adapter as the engine knows it: written and put in place when it has changed."""

    def __init__(self, model: FineTuneModel, engine: AnsweringEngine, directory: Path) -> None:
        self._model, self._engine, self._directory = model, engine, directory
        self._current: AdapterRef | None = None
        shutil.rmtree(directory, ignore_errors=True)

    def adapter(self) -> AdapterRef:
        """The adapter to answer with."""
        if self._current is None:
            self._model.save(self._directory)
            digest = adapter_digest(self._directory)
            self._current = AdapterRef("policy", str(self._directory), digest)
        return self._current

    def changed(self) -> None:
        """Note that the weights were updated: the adapter in place is of no more use."""
        if self._current is not None:
            self._engine.forget(self._current)
            self._current = None


@dataclass(frozen=True, eq=False)
class _Lesson:
    """A rollout and its advantage."""

    rollout: Rollout
    advantage: float


@dataclass
class _Figures:
    """Sums over the tokens that a step learns from."""

    tokens: int = 0
    correct: int = 0
    clipped: int = 0
    divergence: float = 0.0
    difference: float = 0.0
    largest: float = 0.0


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that stays the same from the first step to the last."""

    spec: ReinforceSpec
    tasks: Tasks
    plan: TrainingPlan
    model: FineTuneModel
    optimizer: torch.optim.Optimizer
    policy: ServedPolicy
    sampler: RolloutSampler

    @property
    def digest(self) -> str:
        """That of the tasks."""
        return self.tasks.digest

    def update(self, step: int) -> StepUpdate:
        """Answer, grade and learn. Raises TrainingError for a gradient that is not finite."""
        chosen = batch(self.tasks.training, self.plan, self.spec.seed, step)
        started = time.monotonic()
        groups = self.sampler.sample(chosen, self.spec.group, step, self.policy.adapter())
        answered = time.monotonic()
        figures = _Figures()
        # Strided, so that with fewer tasks than updates some are left out, not made empty.
        for first in range(min(self.spec.updates, len(groups))):
            self._learn(groups[first :: self.spec.updates], self.plan.rate(step), figures)
        self.policy.changed()
        rollouts = [rollout for group in groups for rollout in group]
        reward = mean(rollout.reward for rollout in rollouts)
        told = _told(rollouts, figures)
        told |= {
            "rollout_seconds": answered - started,
            "update_seconds": time.monotonic() - answered,
        }
        accuracy = figures.correct / max(figures.tokens, 1)
        return StepUpdate(StepScore(-reward, accuracy), sum(map(len, rollouts)), told)

    def _learn(self, groups: list[list[Rollout]], rate: float, figures: _Figures) -> None:
        """One update of the weights by `groups`."""
        rewards = torch.tensor([[rollout.reward for rollout in group] for group in groups])
        gains = advantages(rewards).flatten().tolist()
        rollouts = [rollout for group in groups for rollout in group]
        weight = sum(len(rollout.answer.tokens) for rollout in rollouts)
        # Where no divergence holds it, a group whose rewards are all the same teaches nothing.
        lessons = [
            _Lesson(rollout, gain)
            for rollout, gain in zip(rollouts, gains, strict=True)
            if gain or self.plan.beta
        ]
        place_factors(self.model.transformer)
        for part in _micro_batches(lessons):
            self._backward(part, weight, figures)
        if lessons:
            apply(self.model, self.optimizer, rate)

    def _backward(self, lessons: list[_Lesson], weight: int, figures: _Figures) -> None:
        """Add the gradients of some rollouts, and their `figures`."""
        model, device = self.model.transformer, self.model.device
        sequences = [lesson.rollout.sequence for lesson in lessons]
        base = None
        if self.plan.beta:
            with torch.no_grad(), disabled(model):
                base = score(model, sequences, share=True).logprobs
        own = score(model, sequences, share=True)
        logprobs = [p for lesson in lessons for p in lesson.rollout.answer.logprobs]
        sampled = torch.tensor(logprobs, device=device)
        gains = torch.tensor([lesson.advantage for lesson in lessons], device=device)
        advantage = gains.repeat_interleave(torch.tensor(own.counts, device=device))
        loss = policy_loss(own.logprobs, sampled, base, advantage, self.plan.beta)
        (loss.total / weight).backward()
        gap = (own.logprobs.detach() - sampled).abs()
        figures.tokens += len(gap)
        figures.correct += own.correct
        figures.clipped += loss.clipped
        figures.divergence += loss.divergence
        figures.difference += gap.sum().item()
        figures.largest = max(figures.largest, gap.max().item())

    def validate(self) -> StepScore:
        """The mean reward of held-out tasks, negated."""
        return self._validate(self.policy.adapter())

    def base_loss(self) -> float:
        """That of the base model."""
        return self._validate(None).loss

    def _validate(self, adapter: AdapterRef | None) -> StepScore:
        groups = self.sampler.sample(
            self.tasks.validation, self.spec.samples, _VALIDATION_STEP, adapter
        )
        rewards = [rollout.reward for group in groups for rollout in group]
        return StepScore(-mean(rewards), 0.0)


def _micro_batches(lessons: list[_Lesson]) -> list[list[_Lesson]]:
    """Lessons that go through the model together; those of one task share its prompt.

    Attention repeats the prompt for each: it bounds the lessons, too.
    """
    parts: list[list[_Lesson]] = []
    room = whole = 0
    for lesson in lessons:
        rollout = lesson.rollout
        rows = len(rollout)
        if parts and parts[-1][-1].rollout.task is rollout.task:
            rows -= len(rollout.task)
        whole += len(rollout)
        if rows > room or whole > REPEATED_TOKENS or not parts:
            parts.append([])
            room, rows, whole = MICRO_TOKENS, len(rollout), len(rollout)
        parts[-1].append(lesson)
        room -= rows
    return parts


def _told(rollouts: list[Rollout], figures: _Figures) -> dict[str, float]:
    """Figures of a step by name; log-probabilities are in nats."""
    count, tokens = len(rollouts), max(figures.tokens, 1)
    return {
        "train_reward_mean": mean(rollout.reward for rollout in rollouts),
        "answer_tokens_mean": mean(len(rollout.answer.tokens) for rollout in rollouts),
        "truncated_share": sum(not rollout.answer.ended for rollout in rollouts) / count,
        "grader_error_share": sum(rollout.failed for rollout in rollouts) / count,
        "divergence_mean": figures.divergence / tokens,
        "clipped_share": figures.clipped / tokens,
        "logprob_difference_mean": figures.difference / tokens,
        "logprob_difference_max": figures.largest,
    }
