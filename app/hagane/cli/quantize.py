"""`hagane quantize`."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, create_model, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.data.calibration_text import calibration_texts
from hagane.data.samples import samples
from hagane.evaluation.quality import mean_loss, sample_targets
from hagane.models.config import Quantization
from hagane.server.engine_config import engine_config
from hagane.system.errors import ConfigurationError
from hagane.system.settings import Settings
from hagane.system.weight_formats import WEIGHT_FORMATS
from hagane.text.companions import write_companions
from hagane.text.hub import resolve_model
from hagane.text.tokenizer import Tokenizer
from hagane.weights.calibration.layers import Calibration
from hagane.weights.quantize import quantize_directory, state_loss
from hagane.weights.sources.config import is_gguf, load_config

# Documents that the loss is measured on, as far as they are long enough.
_SAMPLES = 40
# Tokens of a window to calibrate with, windows at most and at least, and windows of one document.
_WINDOW, _WINDOWS, _FEWEST_WINDOWS, _OF_A_DOCUMENT = 512, 16, 8, 1


class _Options(Options):
    """Write a quantized copy of a model directory."""

    source: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")
    group_size: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = Field(
        32, description="inputs per int4 scale"
    )
    calibrate: str | None = Field(
        None,
        description="round 4-bit weights by what they are multiplied by on this text: a file of "
        "text or JSON Lines, or auto for a text that Hagane brings along",
    )
    measure: bool = Field(
        True, description="measure the loss on sample text, with both models one after the other"
    )

    @property
    def formats(self) -> list[str]:
        """The formats whose flags are given."""
        return [name for name in WEIGHT_FORMATS if getattr(self, name)]

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        if len(self.formats) != 1:
            *others, last = [f"--{name}" for name in WEIGHT_FORMATS]
            raise ValueError(f"give one of {', '.join(others)} and {last}")
        if self.calibrate is not None and self.formats != ["int4"]:
            raise ValueError(f"--calibrate is for --int4: leave it out with --{self.formats[0]}")
        return self


_FLAGS: dict[str, Any] = {
    declared.name: (bool, Field(False, description=declared.summary))
    for declared in WEIGHT_FORMATS.values()
}
QuantizeOptions = create_model(
    "QuantizeOptions", __base__=_Options, __doc__=_Options.__doc__, **_FLAGS
)


def run(arguments: list[str]) -> int:
    """Quantize, and print what came of it."""
    options = read(QuantizeOptions, arguments, "quantize")
    source = resolve_model(options.source)
    (name,) = options.formats
    quantization = Quantization.choose(name, cpu=True, group_size=options.group_size)
    calibration = None if options.calibrate is None else _calibration(source, options.calibrate)
    report = quantize_directory(source, options.destination, quantization, calibration)
    if is_gguf(source):
        write_companions(source, options.destination)
    print(
        f"{options.destination}: {report.parameters / 1e6:.1f} M parameters, "
        f"{report.bits_per_weight:.2f} bits each, {report.weight_bytes / 1e6:.1f} MB, "
        f"{report.seconds:.2f} s"
    )
    if options.measure:
        print(asyncio.run(_measure(source, options.destination)))
    return 0


def _calibration(source: Path, text: str) -> Calibration:
    """Windows of the text in the model's tokens. Raises ConfigurationError if there are too few."""
    length = min(_WINDOW, load_config(source).max_position_embeddings)
    tokenizer = Tokenizer.load(source)
    ids: list[int] = []
    for document in calibration_texts(text):
        encoded = tokenizer.encode(document[: 64 * length], add_special_tokens=False)
        ids += encoded[: _OF_A_DOCUMENT * length]
        if len(ids) >= _WINDOWS * length:
            break
    count = min(_WINDOWS, len(ids) // length)
    if count < _FEWEST_WINDOWS:
        raise ConfigurationError(
            f"--calibrate: {text} has {len(ids)} tokens, at least {_FEWEST_WINDOWS * length} are "
            "needed: give a longer text, or auto"
        )
    windows = torch.tensor(ids[: count * length]).view(count, length)
    return Calibration(windows, _Progress(time.monotonic()))


@dataclass(frozen=True)
class _Progress:
    """Says after each layer how far calibration has come."""

    started: float

    def __call__(self, done: int, layers: int) -> None:
        passed = time.monotonic() - self.started
        left = passed / done * (layers - done)
        print(f"layer {done} of {layers}, {passed:.0f} s, about {left:.0f} s left", flush=True)


async def _measure(source: Path, destination: Path) -> str:
    """Measure the loss on sample text, write it down, and say it."""
    targets = sample_targets(Tokenizer.load(source), list(islice(samples(), _SAMPLES)))
    if not targets:
        return "loss not measured: the model's tokens are too long for the sample text"
    # The engine would warn that nobody has measured the loss.
    settings = Settings(
        _cli_parse_args=False, quantize="none", kv_cache_dtype="auto", log_level="error"
    )
    exact, coarse = [
        await mean_loss(engine_config(settings, str(path)), targets)
        for path in (source, destination)
    ]
    state_loss(destination, coarse / exact - 1)
    return f"{coarse / exact - 1:+.2%} of the loss on code and English that Python carries"
