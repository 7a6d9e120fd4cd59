"""`hagane export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.lora.export import export_gguf, export_gguf_adapter
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, resolve_model


class ExportOptions(Options):
    """Write a model, with an adapter or without, as a GGUF file for llama.cpp."""

    source: CliPositionalArg[str] = Field(description="model directory, GGUF file, name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new .gguf file to write")
    adapter: Path | None = Field(None, description="PEFT directory whose changes are added")
    adapter_only: bool = Field(
        False, description="write the adapter alone, in float32, for llama.cpp's --lora"
    )
    type: Literal["F32", "F16", "Q8_0"] = Field("Q8_0", description="type of the matrices")

    @model_validator(mode="after")
    def _has_adapter(self) -> Self:
        if self.adapter_only and self.adapter is None:
            raise ValueError("--adapter-only needs --adapter, the PEFT directory to write")
        return self


def run(arguments: list[str]) -> int:
    """Export, and print what was written."""
    options = read(ExportOptions, arguments, "export")
    base = resolve_model(options.source, model_stores(Settings()))
    if options.adapter_only and options.adapter is not None:
        count = export_gguf_adapter(base, options.adapter, options.destination)
    else:
        count = export_gguf(base, options.adapter, options.destination, options.type)
    size = options.destination.stat().st_size / 1e6
    print(f"{options.destination}: {size:.1f} MB, {count} matrices changed by the adapter")
    return 0
