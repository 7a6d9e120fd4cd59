"""`hagane quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.models.config import Quantization
from hagane.text.companions import write_companions
from hagane.text.hub import resolve_model
from hagane.weights.quantize import quantize_directory
from hagane.weights.sources.config import is_gguf


class QuantizeOptions(Options):
    """Write a quantized copy of a model directory."""

    source: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")
    int8: bool = Field(False, description="8 bits, one scale per channel")
    int4: bool = Field(False, description="4 bits, one scale per group")
    fp8: bool = Field(False, description="8-bit floats (e4m3), one scale per channel: newer GPUs")
    group_size: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = Field(
        64, description="inputs per int4 scale"
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
    return 0
