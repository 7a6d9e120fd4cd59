"""What a run tells about itself, and to whom. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StepReport:
    """One step done. Losses are in nats per learnt token, or for DPO per pair.

    `valid_loss` is None where the step did not validate. `trained_tokens` counts every token that
    went through the model so far, `memory_bytes` is the peak: the process', or of a GPU's memory.
    After a resumption, steps since the last checkpoint are reported again.
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


@dataclass(frozen=True)
class CheckpointReport:
    """A checkpoint that can be served: a PEFT directory, or a model directory when `full`."""

    step: int
    directory: Path
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What came of a run, and the two figures to judge it by: the base's loss and the new one's.

    `digest` is the adapter's, or None when every weight was trained. `step` is that of the
    checkpoint kept, the one of least validation loss.
    """

    directory: Path
    digest: str | None
    step: int
    trained_tokens: int
    base_valid_loss: float
    valid_loss: float


class Listener(Protocol):
    """Called by the run, in its own thread."""

    def progress(self, report: StepReport) -> None: ...

    def checkpoint(self, report: CheckpointReport) -> None: ...

    def interrupted(self) -> bool:
        """Asked after every step; true ends the run after it has written a checkpoint."""
        ...


@dataclass(frozen=True)
class PretrainReport:
    """A moment of a pretraining run. The loss is the last step's, in nats per token.

    `utilisation` is the part of the GPUs' arithmetic that went into the model (MFU); None on a CPU.
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
    """The directory of a model, and what a byte of held-out text costs it in bits, by corpus.

    `base_bits_per_byte` are those of the model that the run went on from; None without one.
    """

    directory: Path
    bits_per_byte: dict[str, float]
    base_bits_per_byte: dict[str, float] | None


class PretrainListener(Protocol):
    """Called by a pretraining run; only the first of parallel processes reports."""

    def progress(self, report: PretrainReport) -> None: ...

    def interrupted(self) -> bool:
        """Asked after every step; true ends the run after it has written a checkpoint."""
        ...
