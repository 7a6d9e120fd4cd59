"""Fine-tuning: examples in, an adapter out, compared to its base by validation loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hagane.lora.train import disabled
from hagane.system.machine import available_memory
from hagane.training.finetune.drive import StepUpdate, apply, drive
from hagane.training.finetune.examples import Data, Example, load
from hagane.training.finetune.faults import explained, require_finite
from hagane.training.finetune.meter import StepScore
from hagane.training.finetune.micro_batches import batch, micro_batches
from hagane.training.finetune.model import FineTuneModel, free_bytes, load_finetune_model
from hagane.training.finetune.noise import embedding_noise
from hagane.training.finetune.objective import Loss, distillation_loss, supervised_loss
from hagane.training.finetune.preference import dpo_loss, kto_loss, orpo_loss, reference_point
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan, resolve
from hagane.training.finetune.sweep import sweep
from hagane.training.finetune.teacher import taught
from hagane.training.parallel.group import Group
from hagane.training.parallel.ranks import Work, together
from hagane.training.report.listener import FineTuneResult, Listener


def finetune(
    spec: FineTuneSpec,
    directory: Path,
    listener: Listener,
    free_memory: Callable[[], int] = available_memory,
) -> FineTuneResult:
    """Start or resume the run that `spec` describes, in a directory of its own.

    `directory` gets state/ (from which a later call resumes bit for bit), checkpoints/step-N/ and
    at the end adapter/ (model/ when `full`), the checkpoint with the lowest validation loss. Raises
    TrainingError with the reason if the run cannot continue, and TrainingInterrupted when the
    listener asked to stop. `free_memory` returns the bytes of main memory that the run may use.
    Under `torchrun`, or with `data_parallel`, several processes run it; RankLostError when one of
    them is gone.
    """
    work = Work("finetune", spec.model_dump_json(), str(directory))
    with explained(), together(spec.data_parallel, spec.device, work) as group:
        return finetune_rank(spec, directory, listener, group, free_memory)


def finetune_rank(
    spec: FineTuneSpec,
    directory: Path,
    listener: Listener,
    group: Group,
    free_memory: Callable[[], int] = available_memory,
) -> FineTuneResult:
    """The part of `finetune` that each rank of `group` runs."""
    spec = spec.model_copy(update={"data_parallel": group.size})
    torch.set_num_threads(group.threads(spec.threads))
    data = load(spec)
    if spec.teacher is not None:
        with group.leader_first():
            data = taught(spec, spec.teacher, data, directory / "state")

    def prepare(seeded: FineTuneSpec) -> _Run:
        return _Run.prepare(seeded, data, free_memory, group)

    if spec.seeds > 1:
        return sweep(spec, directory, listener, prepare, group)
    return drive(prepare(spec), directory, listener, group)


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that stays the same from the first step to the last."""

    spec: FineTuneSpec
    data: Data
    plan: TrainingPlan
    model: FineTuneModel
    optimizer: torch.optim.Optimizer
    group: Group

    @classmethod
    def prepare(
        cls, spec: FineTuneSpec, data: Data, free_memory: Callable[[], int], group: Group
    ) -> _Run:
        longest = max(len(e) for e in data.training + data.validation)
        own, device = spec, group.device(spec.device)
        if group.size > 1:
            place = {"device": str(device), "threads": group.threads(spec.threads)}
            own = spec.model_copy(update=place)
        # Before any rank takes some: those of a machine share its main memory.
        free = group.least(free_bytes(device, free_memory))
        free //= group.local_size if device.type == "cpu" else 1
        model = load_finetune_model(own, longest, checkpointing=spec.checkpointing, free=free)
        plan = resolve(spec, len(data.training), model.transformer.config.hidden_size)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        return cls(spec, data, plan, model, optimizer, group)

    @property
    def digest(self) -> str:
        """That of the examples."""
        return self.data.digest

    def update(self, step: int) -> StepUpdate:
        """Update the weights. Raises TrainingError for a loss that is not finite."""
        examples = batch(self.data.training, self.plan, self.spec.seed, step)
        weight, noise = self._weight(examples), None
        if self.spec.neftune_alpha is not None:
            drawn = self.spec.seed << 32 | self.group.rank << 24 | step
            noise = torch.Generator().manual_seed(drawn)
        score = self._score(examples, lambda loss: (loss / weight).backward(), noise)
        self.group.sum_gradients(self.model.parameters())
        apply(self.model, self.optimizer, self.plan.rate(step), score.loss)
        return StepUpdate(score, sum(map(len, examples)))

    @torch.no_grad()
    def validate(self) -> StepScore:
        """Raises TrainingError for a loss that is not finite: such weights must not be saved."""
        score = self._score(self.data.validation, lambda loss: None)
        require_finite(score.loss)
        return score

    def _score(
        self,
        examples: list[Example],
        each: Callable[[Tensor], None],
        noise: torch.Generator | None = None,
    ) -> StepScore:
        """Mean over all examples, of which each rank computes its part, a few at a time."""
        total = correct = tokens = 0.0
        reference = 0.0
        if self.spec.method == "kto":
            with self.model.autocast():
                reference = reference_point(self.model.transformer, examples)
        for part in micro_batches(self.group.part(examples)):
            with self.model.autocast(), self._noise(part, noise):
                loss = self._loss(part, reference)
            each(loss.total)
            total += loss.total.item()
            correct += loss.correct
            tokens += loss.tokens
        total, correct, tokens = self.group.sum(total, correct, tokens)
        return StepScore(total / self._weight(examples), correct / tokens)

    def _weight(self, examples: list[Example]) -> int:
        """The divisor of the summed loss."""
        if self.spec.method == "supervised":
            return sum(example.trained_tokens for example in examples)
        return len(examples)

    def _loss(self, examples: list[Example], reference: float) -> Loss:
        model, beta = self.model.transformer, self.plan.beta
        if self.spec.teacher is not None:
            return distillation_loss(model, examples, self.spec.teacher_weight)
        if self.spec.method == "supervised":
            return supervised_loss(model, examples)
        if self.spec.method == "kto":
            return kto_loss(model, examples, beta, reference)
        return (dpo_loss if self.spec.method == "dpo" else orpo_loss)(model, examples, beta)

    def _noise(
        self, examples: list[Example], generator: torch.Generator | None
    ) -> AbstractContextManager[None]:
        if generator is None:
            return nullcontext()
        lengths = [len(sequence) for e in examples for sequence in e.sequences]
        alpha = self.spec.neftune_alpha or 0.0
        return embedding_noise(self.model.transformer, lengths, alpha, generator)

    def base_loss(self) -> float:
        """The validation loss of the base model."""
        with disabled(self.model.transformer):
            return self.validate().loss
