"""`hagane quantize`."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.data.samples import samples
from hagane.evaluation.quality import mean_loss, sample_targets
from hagane.models.config import Quantization
from hagane.server.app import engine_config
from hagane.system.settings import Settings
from hagane.text.companions import write_companions
from hagane.text.hub import resolve_model
from hagane.text.tokenizer import Tokenizer
from hagane.weights.quantize import quantize_directory, state_loss
from hagane.weights.sources.config import is_gguf

# Documents that the loss is measured on, as far as they are long enough.
_SAMPLES = 40


class QuantizeOptions(Options):
    """Write a quantized copy of a model directory."""

    source: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")
    int8: bool = Field(False, description="8 bits, one scale per channel")
    int4: bool = Field(False, description="4 bits, one scale per group")
    fp8: bool = Field(False, description="8-bit floats (e4m3), one scale per channel: newer GPUs")
    group_size: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = Field(
        32, description="inputs per int4 scale"
    )
    measure: bool = Field(
        True, description="measure the loss on sample text, with both models one after the other"
    )

    @property
    def format(self) -> Literal["int8", "int4", "fp8"]:
        """The one that is asked for."""
        return "int8" if self.int8 else "int4" if self.int4 else "fp8"

    @model_validator(mode="after")
    def _one_format(self) -> Self:
        if self.int8 + self.int4 + self.fp8 != 1:
            raise ValueError("give one of --int8, --int4 and --fp8")
        return self


def run(arguments: list[str]) -> int:
    """Quantize, and print what came of it."""
    options = read(QuantizeOptions, arguments, "quantize")
    source = resolve_model(options.source)
    report = quantize_directory(
        source,
        options.destination,
        Quantization(options.format, options.group_size, rotated=options.format != "fp8"),
    )
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
