"""Fine-tuning: examples in, an adapter out, compared to its base by validation loss."""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from hagane.lora.config import adapter_digest
from hagane.lora.train import disabled
from hagane.system.errors import ModelError, TrainingError, TrainingInterrupted
from hagane.system.files import commit, is_full
from hagane.system.machine import available_memory
from hagane.training.finetune.checkpoint import RunProgress, StateFile
from hagane.training.finetune.examples import Data, Example, load
from hagane.training.finetune.micro_batches import batch, micro_batches
from hagane.training.finetune.model import FineTuneModel, load_finetune_model
from hagane.training.finetune.noise import embedding_noise
from hagane.training.finetune.objective import Loss, supervised_loss
from hagane.training.finetune.preference import dpo_loss, kto_loss, orpo_loss, reference_point
from hagane.training.finetune.spec import FineTuneSpec, TrainingPlan, resolve
from hagane.training.report.listener import CheckpointReport, FineTuneResult, Listener, StepReport

_CLIP = 1.0
# The most time that a crash between two checkpoints may lose.
_SAVE_SECONDS = 60.0


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
    """
    with _explained():
        run = _Run.prepare(spec, directory, free_memory)
        state = StateFile(directory / "state", spec, run.data)
        progress = state.load(run.model, run.optimizer)
        if progress.base_valid_loss is None:
            progress.base_valid_loss = run.base_loss()
        meter, saved = _Meter(run.plan, progress, run.model.device), time.monotonic()
        while not run.finished(progress):
            examples = batch(run.data.training, run.plan, spec.seed, progress.step)
            train = run.update(examples, progress.step)
            progress.advance(examples)
            saving = progress.step in run.plan.checkpoints
            valid = run.validate() if saving else None
            listener.progress(meter.report(progress, train, valid))
            if valid is not None:
                run.model.save(run.checkpoint_directory(progress.step))
                progress.score(valid.loss)
                # Before the state is saved: a crash in between reports it twice instead of never.
                listener.checkpoint(run.checkpoint_report(progress.step, train, valid))
            stopping = listener.interrupted() and not run.finished(progress)
            if saving or stopping or time.monotonic() > saved + _SAVE_SECONDS:
                state.save(run.model, run.optimizer, progress)
                saved = time.monotonic()
            if stopping:
                raise TrainingInterrupted(f"stopped after step {progress.step}, as requested")
        return run.finish(progress)


@dataclass(frozen=True)
class _Score:
    """Mean loss per trained token, or per pair or judged example; share of most likely tokens."""

    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class _Run:
    """Everything that stays the same from the first step to the last."""

    spec: FineTuneSpec
    directory: Path
    data: Data
    plan: TrainingPlan
    model: FineTuneModel
    optimizer: torch.optim.Optimizer

    @classmethod
    def prepare(cls, spec: FineTuneSpec, directory: Path, free_memory: Callable[[], int]) -> _Run:
        torch.set_num_threads(spec.threads or torch.get_num_threads())
        data = load(spec)
        longest = max(len(e) for e in data.training + data.validation)
        model = load_finetune_model(spec, longest, free_memory=free_memory)
        plan = resolve(spec, len(data.training), model.transformer.config.hidden_size)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
        return cls(spec, directory, data, plan, model, optimizer)

    def finished(self, progress: RunProgress) -> bool:
        """Whether all steps are done, or too many checkpoints were no better."""
        patience = self.spec.patience or math.inf
        return progress.step >= self.plan.steps or progress.stale >= patience

    def update(self, examples: list[Example], step: int) -> _Score:
        """Update the weights. Raises TrainingError for a loss that is not finite."""
        weight, noise = self._weight(examples), None
        if self.spec.neftune_alpha is not None:
            noise = torch.Generator().manual_seed(self.spec.seed << 32 | step)
        score = self._score(examples, lambda loss: (loss / weight).backward(), noise)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), _CLIP)
        _require_finite(score.loss, float(norm))
        self.optimizer.param_groups[0]["lr"] = self.plan.rate(step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return score

    @torch.no_grad()
    def validate(self) -> _Score:
        """Raises TrainingError for a loss that is not finite: such weights must not be saved."""
        score = self._score(self.data.validation, lambda loss: None)
        _require_finite(score.loss)
        return score

    def _score(
        self,
        examples: list[Example],
        each: Callable[[Tensor], None],
        noise: torch.Generator | None = None,
    ) -> _Score:
        """Mean over all examples; a few at a time go through the model."""
        total = correct = tokens = 0.0
        reference = 0.0
        if self.spec.method == "kto":
            with self.model.autocast():
                reference = reference_point(self.model.transformer, examples)
        for part in micro_batches(examples):
            with self.model.autocast(), self._noise(part, noise):
                loss = self._loss(part, reference)
            each(loss.total)
            total += loss.total.item()
            correct += loss.correct
            tokens += loss.tokens
        return _Score(total / self._weight(examples), correct / tokens)

    def _weight(self, examples: list[Example]) -> int:
        """The divisor of the summed loss."""
        if self.spec.method == "supervised":
            return sum(example.trained_tokens for example in examples)
        return len(examples)

    def _loss(self, examples: list[Example], reference: float) -> Loss:
        model, beta = self.model.transformer, self.plan.beta
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

    def checkpoint_directory(self, step: int) -> Path:
        return self.directory / "checkpoints" / f"step-{step}"

    def checkpoint_report(self, step: int, train: _Score, valid: _Score) -> CheckpointReport:
        metrics = {
            "train_loss": train.loss,
            "train_mean_token_accuracy": train.accuracy,
            "valid_loss": valid.loss,
            "valid_mean_token_accuracy": valid.accuracy,
        }
        return CheckpointReport(step, self.checkpoint_directory(step), metrics)

    def finish(self, progress: RunProgress) -> FineTuneResult:
        final = self.directory / ("model" if self.spec.full else "adapter")
        final.mkdir(exist_ok=True)
        for file in sorted(self.checkpoint_directory(progress.best_step).iterdir()):
            partial = final / f".{file.name}.partial"
            shutil.copyfile(file, partial)
            commit(partial, final / file.name)
        return FineTuneResult(
            directory=final,
            digest=None if self.spec.full else adapter_digest(final),
            step=progress.best_step,
            trained_tokens=progress.trained_tokens,
            base_valid_loss=progress.base_valid_loss or 0.0,
            valid_loss=progress.valid_loss,
            steps=progress.step,
        )


def _require_finite(*values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise TrainingError(
            "the loss is no longer finite: lower learning_rate or learning_rate_multiplier",
            code="non_finite_loss",
        )


class _Meter:
    """Measures rates since this process started."""

    def __init__(self, plan: TrainingPlan, progress: RunProgress, device: torch.device) -> None:
        self._plan, self._device = plan, device
        self._steps, self._tokens = progress.step, progress.trained_tokens
        self._started = time.monotonic()

    def report(self, progress: RunProgress, train: _Score, valid: _Score | None) -> StepReport:
        elapsed = time.monotonic() - self._started
        left = (self._plan.steps - progress.step) / (progress.step - self._steps)
        return StepReport(
            step=progress.step,
            steps=self._plan.steps,
            train_loss=train.loss,
            token_accuracy=train.accuracy,
            valid_loss=valid.loss if valid else None,
            valid_token_accuracy=valid.accuracy if valid else None,
            learning_rate=self._plan.rate(progress.step - 1),
            tokens_per_second=(progress.trained_tokens - self._tokens) / elapsed,
            memory_bytes=_peak_memory(self._device),
            trained_tokens=progress.trained_tokens,
            eta_seconds=elapsed * left,
        )


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of the GPU's memory, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def _explained() -> Iterator[None]:
    """Raise a full disk and exhausted memory as TrainingErrors that name the remedy."""
    try:
        yield
    except ModelError as error:
        raise TrainingError(str(error), code="invalid_model") from error
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        raise _explanation(error) from error


def _explanation(error: Exception) -> Exception:
    text = str(error)
    if is_full(error) or "No space left" in text:
        return TrainingError(
            "the disk is full: free some of it and resume from the last checkpoint",
            code="disk_full",
        )
    if isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text:
        return TrainingError(
            "out of memory: shorten sequence_length, lower rank, or quantize the base",
            code="out_of_memory",
        )
    return error
