"""The TOML file of a pretraining run, checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import ConfigurationError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Corpus(_Table):
    """Files to learn from; `epochs` is how often each is seen, and so its weight in the mixture.

    `path` is a file, a directory or a glob of JSON Lines (records with `text` or `messages`) or
    plain text.
    """

    path: Path
    epochs: Annotated[float, Field(gt=0, le=100)] = 1.0


class Shape(_Table):
    """A Llama-style decoder with tied embeddings."""

    hidden_size: Annotated[int, Field(ge=8)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    intermediate_size: Annotated[int, Field(ge=8)]
    context_length: Annotated[int, Field(ge=16)]


class PretrainConfig(_Table):
    """Everything that decides a run. Lengths are in tokens, rates are per step.

    A step learns from `batch_rows` rows of `sequence_length`, `micro_rows` of them at a time.
    `start_from` is a model directory whose weights, shape and tokenizer are gone on with.
    `held_out` is the fraction of every corpus' documents that is kept for validation, of which
    `validation_rows` rows are scored.
    """

    output: Path
    start_from: Path | None = None
    corpora: Annotated[list[Corpus], Field(min_length=1)]
    model: Shape | None = None
    tokenizer: Path | None = None
    vocab_size: Annotated[int, Field(ge=300, le=65536)] = 8192
    sequence_length: Annotated[int, Field(ge=16)] = 512
    batch_rows: Annotated[int, Field(ge=1)] = 16
    micro_rows: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)]
    optimizer: Literal["adamw", "muon"] = "adamw"
    schedule: Literal["cosine", "warmup-stable-decay"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    decay_steps: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = True
    seed: int = 0
    log_every: Annotated[int, Field(ge=1)] = 20
    checkpoint_every: Annotated[int, Field(ge=1)] = 200
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.005
    validation_rows: Annotated[int, Field(ge=1)] = 16
    samples: list[str] = []

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.micro_rows is not None and self.batch_rows % self.micro_rows:
            raise ValueError(
                f"batch_rows {self.batch_rows} must be a multiple of micro_rows {self.micro_rows}"
            )
        if (self.model is None) == (self.start_from is None):
            raise ValueError("give either a [model] to start afresh, or start_from to go on")
        if self.start_from is not None and self.tokenizer is not None:
            raise ValueError("start_from brings its own tokenizer: leave tokenizer out")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError("warmup_steps and decay_steps together exceed steps")
        return self

    @classmethod
    def load(cls, path: Path) -> PretrainConfig:
        """Raises ConfigurationError naming the file and the key at fault."""
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ConfigurationError(f"{path} does not exist") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            place = f"{path}: {key}" if key else str(path)
            raise ConfigurationError(
                f"{place}: {first['msg'].removeprefix('Value error, ')}"
            ) from None
