"""`hagane export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.lora.export import export_gguf
from hagane.system.settings import Settings
from hagane.text.hub import model_stores, resolve_model


class ExportOptions(Options):
    """Write a model, with an adapter or without, as a GGUF file for llama.cpp."""

    source: CliPositionalArg[str] = Field(description="model directory, GGUF file, name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new .gguf file to write")
    adapter: Path | None = Field(None, description="PEFT directory whose changes are added")
    type: Literal["F32", "F16", "Q8_0"] = Field("Q8_0", description="type of the matrices")


def run(arguments: list[str]) -> int:
    """Export, and print what was written."""
    options = read(ExportOptions, arguments, "export")
    base = resolve_model(options.source, model_stores(Settings()))
    count = export_gguf(base, options.adapter, options.destination, options.type)
    size = options.destination.stat().st_size / 1e6
    print(f"{options.destination}: {size:.1f} MB, {count} matrices changed by the adapter")
    return 0
