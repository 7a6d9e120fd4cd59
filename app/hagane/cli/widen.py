"""`hagane widen`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.lora.widen import widen_directory
from hagane.text.hub import resolve_model


class WidenOptions(Options):
    """Write a copy of a model with more tokens in its vocabulary.

    `finetune --trained-tokens` trains their rows.
    """

    base: CliPositionalArg[str] = Field(description="model directory, store name or hub id")
    destination: CliPositionalArg[Path] = Field(description="new directory to write")
    tokens: list[str] = Field(description="texts that become one token each, as a JSON list")


def run(arguments: list[str]) -> int:
    """Widen, and print the new ids."""
    options = read(WidenOptions, arguments, "widen")
    base = resolve_model(options.base)
    for token, number in widen_directory(base, options.destination, options.tokens).items():
        print(f"{number} {token}")
    return 0
