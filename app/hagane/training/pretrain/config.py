"""The TOML file of a pretraining run, validated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from hagane.data.documents import Corpus
from hagane.system.errors import ConfigurationError

_MULTIPLES = {"K": 10**3, "M": 10**6, "B": 10**9}
_HEAD = 64


def _count(value: object) -> object:
    """Parse a number such as "10M" or "1.5B"."""
    if isinstance(value, str) and value[-1:].upper() in _MULTIPLES:
        return round(float(value[:-1]) * _MULTIPLES[value[-1].upper()])
    return value


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(_Table):
    """A Llama-style decoder with tied embeddings."""

    hidden_size: Annotated[int, Field(ge=8)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    kv_heads: Annotated[int, Field(ge=1)]
    intermediate_size: Annotated[int, Field(ge=8)]
    context_length: Annotated[int, Field(ge=16)]

    @classmethod
    def of_size(cls, parameters: int, vocab_size: int, context_length: int) -> Shape:
        """Choose the shape nearest to `parameters` whose width is about 64 times its depth.

        Heads of 64, a SwiGLU of 8/3 of the width. Deeper is slower and wider is worse at equal
        size; between 48 and 80 times, the loss hardly changes (Kaplan et al., 2020,
        arXiv:2001.08361, figure 5). Raises ConfigurationError if the embedding alone is larger.
        """
        fits = [
            (abs(size - parameters), shape)
            for width in range(_HEAD, 8192 + 1, _HEAD)
            for layers in range(max(1, width // 80), width // 48 + 1)
            for shape in [cls._of_width(width, layers, context_length)]
            for size in [shape.parameters(vocab_size)]
        ]
        distance, shape = min(fits, key=lambda fit: fit[0])
        if distance > parameters / 2:
            raise ConfigurationError(
                f"{parameters} parameters are too few or too many for a vocabulary of {vocab_size}:"
                f" the nearest shape has {shape.parameters(vocab_size)}; change parameters or "
                "vocab_size, or give a [model]"
            )
        return shape

    @classmethod
    def _of_width(cls, width: int, layers: int, context_length: int) -> Shape:
        return cls(
            hidden_size=width,
            layers=layers,
            heads=width // _HEAD,
            kv_heads=width // _HEAD,
            intermediate_size=round(width * 8 / 3 / 32) * 32,
            context_length=context_length,
        )

    def parameters(self, vocab_size: int) -> int:
        """Count weights of the embedding and the matrices, without norms."""
        head = self.hidden_size // self.heads
        attention = 2 * self.hidden_size * head * (self.heads + self.kv_heads)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return vocab_size * self.hidden_size + self.layers * (attention + mlp)


class PretrainConfig(_Table):
    """Everything that determines a run. Lengths are in tokens, rates are per step.

    A step trains on `batch_rows` rows of `sequence_length`, split among `data_parallel` processes;
    one computes `micro_rows` of them at a time. `threads` are those of all of them on one machine.
    A new model has the shape of `model`, or about `parameters` weights ("10M") and
    `context_length` (default: `sequence_length`). `start_from` is a model directory to continue
    from, with its weights, shape and tokenizer. `held_out` is the fraction of every corpus'
    documents that is kept for validation; `validation_rows` rows of it are scored.
    """

    output: Path
    start_from: Path | None = None
    corpora: Annotated[list[Corpus], Field(min_length=1)]
    model: Shape | None = None
    parameters: Annotated[int, BeforeValidator(_count), Field(ge=10_000)] | None = None
    context_length: Annotated[int, Field(ge=16)] | None = None
    tokenizer: Path | None = None
    vocab_size: Annotated[int, Field(ge=300, le=65536)] = 8192
    sequence_length: Annotated[int, Field(ge=16)] = 512
    batch_rows: Annotated[int, Field(ge=1)] = 16
    micro_rows: Annotated[int, Field(ge=1)] | None = None
    steps: Annotated[int, Field(ge=1)]
    optimizer: Literal["muon", "adamw"] = "muon"
    schedule: Literal["cosine", "warmup-stable-decay"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    decay_steps: Annotated[int, Field(ge=0)] = 0
    learning_rate: Annotated[float, Field(gt=0)] = 6e-3
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=1)] | None = None
    data_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
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
        if self.batch_rows % self.data_parallel:
            raise ValueError(
                f"batch_rows {self.batch_rows} must be a multiple of data_parallel "
                f"{self.data_parallel}"
            )
        ways = [way is not None for way in (self.model, self.parameters, self.start_from)]
        if sum(ways) != 1:
            raise ValueError(
                "give either a [model] or parameters for a new model, or start_from to continue one"
            )
        if self.context_length is not None and self.parameters is None:
            raise ValueError("context_length goes with parameters; a [model] has its own")
        if 0 < sum(corpus.weight is not None for corpus in self.corpora) < len(self.corpora):
            raise ValueError("give every corpus a weight, or none")
        if self.start_from is not None and self.tokenizer is not None:
            raise ValueError("start_from has its own tokenizer: remove tokenizer")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise ValueError("warmup_steps and decay_steps together exceed steps")
        return self

    def shape(self, vocab_size: int) -> Shape | None:
        """The new model's shape; None with `start_from`."""
        if self.parameters is None:
            return self.model
        context = self.context_length or self.sequence_length
        return Shape.of_size(self.parameters, vocab_size, context)

    @classmethod
    def load(cls, path: Path, **given: object) -> PretrainConfig:
        """The file's, with `given` values in place of its own.

        Raises ConfigurationError naming the file and the key at fault.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")) | given)
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
