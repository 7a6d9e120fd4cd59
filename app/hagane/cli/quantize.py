"""`hagane quantize`."""

from __future__ import annotations

import asyncio
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, create_model, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.data.samples import samples
from hagane.evaluation.quality import mean_loss, sample_targets
from hagane.models.config import Quantization
from hagane.server.engine_config import engine_config
from hagane.system.settings import Settings
from hagane.system.weight_formats import WEIGHT_FORMATS
from hagane.text.companions import write_companions
from hagane.text.hub import resolve_model
from hagane.text.tokenizer import Tokenizer
from hagane.weights.quantize import quantize_directory, state_loss
from hagane.weights.sources.config import is_gguf

# Documents that the loss is measured on, as far as they are long enough.
_SAMPLES = 40


class _Options(Options):
    """Write a quantized copy of a model directory."""

    source: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")
    group_size: Annotated[Literal[32, 64, 128], BeforeValidator(int)] = Field(
        32, description="inputs per int4 scale"
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
    report = quantize_directory(
        source,
        options.destination,
        quantization,
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
