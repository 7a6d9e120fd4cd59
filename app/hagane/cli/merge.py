"""`hagane merge`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.lora.merge import merge_directory
from hagane.text.hub import resolve_model


class MergeOptions(Options):
    """Write a model and an adapter as one Hugging Face directory."""

    base: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    adapter: CliPositionalArg[Path] = Field(description="PEFT directory")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")


def run(arguments: list[str]) -> int:
    """Merge, and print how much changed."""
    options = read(MergeOptions, arguments, "merge")
    base = resolve_model(options.base)
    count = merge_directory(base, options.adapter, options.destination)
    print(f"{options.destination}: {count} matrices changed")
    return 0
