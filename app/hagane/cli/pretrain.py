"""`hagane pretrain`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read


class PretrainOptions(Options):
    """Train a small model from a TOML file; resumes an interrupted run."""

    config: CliPositionalArg[Path] = Field(description="TOML file of the run")
    data_parallel: int | None = Field(
        None, description="processes that share each step, in place of the file's [1]"
    )


def run(arguments: list[str]) -> int:
    """Train, and print how well held-out text is predicted."""
    options = read(PretrainOptions, arguments, "pretrain")
    from hagane.training.parallel.ranks import leads
    from hagane.training.pretrain.config import PretrainConfig
    from hagane.training.pretrain.loop import pretrain
    from hagane.training.report.progress import PretrainProgress

    given = options.model_dump(exclude_none=True, exclude={"config"})
    config = PretrainConfig.load(options.config, **given)
    with PretrainProgress() as progress:
        result = pretrain(config, progress)
    held_out = ", ".join(f"{name} {bits:.3f}" for name, bits in result.bits_per_byte.items())
    if leads():
        print(f"{config.output}: bits per byte of held-out text: {held_out}")
    return 0
