"""The specification of a fine-tuning run, and the plan that resolves its "auto" values.

Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from hagane.data.records import Method
from hagane.lora.config import TARGETS
from hagane.system.errors import TrainingError
from hagane.system.weight_formats import FormatChoice

Auto = Literal["auto"]

# The learning rate of LoRA at hidden size 4096; smaller models need more (Schulman et al., 2025,
# "LoRA Without Regret": about 10 times that of full fine-tuning, whatever the rank).
_LORA_RATE, _LORA_WIDTH, _WIDTH_POWER = 2e-4, 4096, 0.75
_FULL_SHARE = 0.1
# Preferences are learned at a fraction of the rate of imitation; ORPO does both at once.
_METHOD_SHARES: Mapping[Method, float] = MappingProxyType(
    {"dpo": 0.1, "kto": 0.1, "orpo": 0.5, "reinforcement": 0.1}
)
_BETA = 0.1
# "auto" trains on this many examples in total, within 1 to 25 passes over the file.
_FEWEST, _MOST, _EPOCHS, _MOST_EPOCHS = 400, 50_000, 3, 25
_CHECKPOINTS = 4


class FineTuneSpec(BaseModel):
    """Everything that determines a run; hyperparameters have OpenAI's names.

    `model` is a directory in Hugging Face layout. `learning_rate` is absolute and goes before the
    multiplier, which scales the rate of "auto". `sequence_length` is in tokens; longer examples are
    cut. Of `seeds` runs, from `seed` on, the best is kept; all hold out the same examples. `full`
    trains every weight instead of an adapter. `quantize` keeps the frozen base in 8 or
    4 bits (QLoRA, Dettmers et al., 2023, arXiv:2305.14314). `checkpoint_every` is in steps. A run
    ends early after `patience` checkpoints without a lower validation loss. `neftune_alpha` is the
    strength of noise on embeddings in training (NEFTune, Jain et al., 2023, arXiv:2310.05914). A
    `teacher` is a model directory with the same vocabulary, from whose `teacher_tokens` likeliest
    tokens at every place the run learns, with `teacher_weight` of the loss (distillation). `dora`
    trains magnitudes of rows as well (Liu et al., 2024, arXiv:2402.09353). Of `trained_tokens` the
    rows of the embedding and the head are trained, too. `checkpointing` computes layers once more
    in the backward pass to save memory; None: where they would not fit otherwise. `data_parallel`
    processes share the examples of each step; `threads` are those of all of them on one machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Path
    training_file: Path
    validation_file: Path | None = None
    method: Method = "supervised"
    n_epochs: Annotated[int, Field(ge=1, le=50)] | Auto = "auto"
    batch_size: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"
    beta: Annotated[float, Field(gt=0, le=2)] | Auto = "auto"
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    seeds: Annotated[int, Field(ge=1, le=16)] = 1
    rank: Annotated[int, Field(ge=1, le=512)] = 16
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32.0
    target_modules: Annotated[tuple[str, ...], Field(min_length=1)] = TARGETS
    rslora: bool = False
    dora: bool = False
    trained_tokens: Annotated[tuple[str, ...], Field(max_length=4096)] = ()
    checkpointing: bool | None = None
    sequence_length: Annotated[int, Field(ge=8)] | None = None
    full: bool = False
    quantize: FormatChoice = "none"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    data_parallel: Annotated[int, Field(ge=1, le=256)] = 1
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    patience: Annotated[int, Field(ge=1, le=1000)] | None = None
    neftune_alpha: Annotated[float, Field(gt=0, le=1000)] | None = None
    teacher: Path | None = None
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    teacher_tokens: Annotated[int, Field(ge=1, le=64)] = 16

    @field_validator("target_modules")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(TARGETS)):
            raise ValueError(f"names {unknown[0]!r}; supported are {', '.join(TARGETS)}")
        return tuple(name for name in TARGETS if name in value)

    @field_validator("trained_tokens")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.full and self.quantize != "none":
            raise ValueError("full fine-tuning needs unquantized weights: set quantize to none")
        if self.full and self.method in ("dpo", "kto"):
            raise ValueError(
                f"{self.method} compares with the base below an adapter: it cannot be full"
            )
        if self.teacher is not None and (self.full or self.method != "supervised"):
            raise ValueError("a teacher goes with supervised training of an adapter only")
        if self.trained_tokens and (self.full or self.teacher or self.method == "reinforcement"):
            raise ValueError(
                "trained_tokens goes with adapters trained on examples, without a teacher"
            )
        if self.data_parallel > 1 and self.method == "reinforcement":
            raise ValueError("data_parallel goes with training on examples, not reinforcement")
        if self.batch_size != "auto" and self.data_parallel > self.batch_size:
            raise ValueError(_too_many(self.data_parallel, self.batch_size))
        if self.method == "reinforcement" and "grader" not in type(self).model_fields:
            raise ValueError("reinforcement needs a grader: start it as a job")
        if self.neftune_alpha is not None and self.method != "supervised":
            raise ValueError("neftune_alpha goes with supervised training only")
        return self


@dataclass(frozen=True)
class TrainingPlan:
    """The resolved numbers of a run. A step is one update from `batch_size` examples.

    `beta` is that of DPO and KTO (Rafailov et al., 2023, arXiv:2305.18290): how strongly answers
    are kept near the base model's; for ORPO it is the weight of the preference. The rate rises
    over `warmup_steps` to `learning_rate`, and falls as a cosine.
    """

    epochs: int
    batch_size: int
    steps: int
    warmup_steps: int
    learning_rate: float
    beta: float
    checkpoint_every: int

    @property
    def checkpoints(self) -> frozenset[int]:
        """Steps after which the run validates and writes a checkpoint, including the last."""
        return frozenset((*range(0, self.steps, self.checkpoint_every), self.steps)) - {0}

    def rate(self, step: int) -> float:
        """The learning rate of `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def resolve(spec: FineTuneSpec, examples: int, hidden_size: int) -> TrainingPlan:
    """Resolve the plan for `examples` training examples, without held-out ones.

    Raises TrainingError for more ranks than a step has examples.
    """
    chosen = min(max(examples // 50, 4), 32)
    batch: int = min(chosen if spec.batch_size == "auto" else spec.batch_size, examples)
    if spec.data_parallel > batch:
        raise TrainingError(_too_many(spec.data_parallel, batch), code="invalid_file")
    fewest, most = -(-_FEWEST // examples), max(_MOST // examples, 1)
    chosen = min(max(_EPOCHS, fewest), most, _MOST_EPOCHS)
    epochs: int = chosen if spec.n_epochs == "auto" else spec.n_epochs
    steps = steps_of(epochs, examples, batch)
    return TrainingPlan(
        epochs=epochs,
        batch_size=batch,
        steps=steps,
        warmup_steps=min(max(steps // 20, 1), 100),
        learning_rate=learning_rate(spec, hidden_size),
        beta=_BETA if spec.beta == "auto" else spec.beta,
        checkpoint_every=spec.checkpoint_every or max(-(-steps // _CHECKPOINTS), 1),
    )


def _too_many(ranks: int, batch: int) -> str:
    return f"data_parallel {ranks} is more than the {batch} examples of a step (batch_size)"


def steps_of(epochs: int, examples: int, batch: int) -> int:
    """Batches cross the end of an epoch, so only the last one may be smaller."""
    return -(-epochs * examples // batch)


def learning_rate(spec: FineTuneSpec, hidden_size: int) -> float:
    """The rate of a run on a model of that width."""
    if spec.learning_rate is not None:
        return spec.learning_rate
    rate: float = _LORA_RATE * (_LORA_WIDTH / hidden_size) ** _WIDTH_POWER
    rate *= _FULL_SHARE if spec.full else 1.0
    rate *= _METHOD_SHARES.get(spec.method, 1.0)
    multiplier = spec.learning_rate_multiplier
    return rate if multiplier == "auto" else rate * multiplier
