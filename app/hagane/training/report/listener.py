"""The reports of a training run, and the listeners that receive them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """A finished step. Losses are in nats per trained token, or per pair or judged example.

    `valid_loss` is None where the step did not validate. `trained_tokens` counts every token that
    went through the model so far, `memory_bytes` is the peak of the process or of the GPU. After
    a resumption, steps since the last checkpoint are reported again. `reinforcement` has the
    figures of a step of reinforcement learning, whose loss is the mean reward, negated.
    """

    step: int
    steps: int
    train_loss: float
    token_accuracy: float
    valid_loss: float | None
    valid_token_accuracy: float | None
    learning_rate: float
    tokens_per_second: float
    memory_bytes: int
    trained_tokens: int
    eta_seconds: float
    reinforcement: dict[str, float] | None = None


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint that can be served: a PEFT directory, or a model directory when `full`."""

    step: int
    directory: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class FineTuneResult:
    """The result of a run, with the base's validation loss and its own to compare.

    `digest` is the adapter's, or None when every weight was trained. `step` is that of the
    checkpoint kept, the one with the lowest validation loss, and `steps` were made in all.
    """

    directory: Path
    digest: str | None
    step: int
    trained_tokens: int
    base_valid_loss: float
    valid_loss: float
    steps: int


class Listener(Protocol):
    """Receives the reports of a fine-tuning run, on the run's own thread.

    An exception that it raises ends the run. The smallest one:

        class Quiet:
            def progress(self, report): pass
            def checkpoint(self, report): print("saved", report.directory)
            def interrupted(self): return False
    """

    def progress(self, report: StepReport) -> None:
        """Called after every step, in order."""
        ...

    def checkpoint(self, report: CheckpointReport) -> None:
        """Called when a checkpoint is complete on disk."""
        ...

    def interrupted(self) -> bool:
        """Called after every step; true ends the run after it has written a checkpoint."""
        ...


@dataclass(frozen=True)
class PretrainReport:
    """The state of a pretraining run. `loss` is the last step's, in nats per token.

    `utilisation` is the model-FLOPs utilisation (MFU) of the GPUs; None on a CPU.
    `bits_per_byte` of held-out text, by corpus, and `samples` come with every checkpoint.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    trained_tokens: int
    eta_seconds: float
    bits_per_byte: dict[str, float] | None
    samples: tuple[str, ...]
    utilisation: float | None = None


@dataclass(frozen=True)
class PretrainResult:
    """The directory of a model, and its bits per byte of held-out text, by corpus.

    `base_bits_per_byte` are those of the model that the run started from; None without one.
    """

    directory: Path
    bits_per_byte: dict[str, float]
    base_bits_per_byte: dict[str, float] | None


class PretrainListener(Protocol):
    """Receives the reports of a pretraining run, on the run's own thread.

    Of several data-parallel processes only the first reports, but all ask `interrupted`. Example:

        class Quiet:
            def progress(self, report): print(report.step, report.loss)
            def interrupted(self): return False
    """

    def progress(self, report: PretrainReport) -> None:
        """Called every `log_every` steps and with every checkpoint."""
        ...

    def interrupted(self) -> bool:
        """Called after every step; true ends the run after it has written a checkpoint."""
        ...


def describe_step(report: StepReport | PretrainReport) -> str:
    """The report in a line."""
    if isinstance(report, PretrainReport):
        text = f"Step {report.step}/{report.steps}: training loss={report.loss:.4f}"
        scores = report.bits_per_byte or {}
        return ", ".join([text, *(f"{name} {bits:.3f} bits/byte" for name, bits in scores.items())])
    kind, sign = ("loss", 1) if report.reinforcement is None else ("reward", -1)
    text = f"Step {report.step}/{report.steps}: training {kind}={sign * report.train_loss:.4f}"
    if report.valid_loss is None:
        return text
    return f"{text}, validation {kind}={sign * report.valid_loss:.4f}"
