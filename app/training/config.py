"""The TOML file of a pretraining run, checked."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.errors import ConfigurationError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Corpus(_Table):
    """JSON Lines (records with `text` or `messages`) or plain text; `epochs` is its weight."""

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
    """Everything that decides a run. Lengths are in tokens, rates are per step."""

    output: Path
    corpora: Annotated[list[Corpus], Field(min_length=1)]
    model: Shape
    vocab_size: Annotated[int, Field(ge=300, le=65536)] = 8192
    sequence_length: Annotated[int, Field(ge=16)] = 512
    batch_rows: Annotated[int, Field(ge=1)] = 16
    steps: Annotated[int, Field(ge=1)]
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    log_every: Annotated[int, Field(ge=1)] = 20
    checkpoint_every: Annotated[int, Field(ge=1)] = 200
    validation_rows: Annotated[int, Field(ge=1)] = 16

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
            raise ConfigurationError(f"{path}: {key}: {first['msg']}") from None
