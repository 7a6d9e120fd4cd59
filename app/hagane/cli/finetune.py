"""`hagane finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.system.errors import ConfigurationError
from hagane.system.weight_formats import FormatChoice


class FinetuneOptions(Options):
    """Train an adapter from a file of examples; resumes an interrupted run.

    Options that are not given have the defaults of `FineTuneSpec`.
    """

    file: CliPositionalArg[Path] = Field(
        description="JSON Lines: messages, prompt/completion or text"
    )
    model: str = Field(description="model directory, store name or hub id")
    output: Path | None = Field(None, description="the run's directory; default: FILE's name")
    validation_file: Path | None = Field(None, description="default: a tenth of FILE")
    method: Literal["supervised", "dpo", "orpo", "kto"] | None = Field(
        None, description="[supervised]"
    )
    n_epochs: int | None = Field(None, description="passes over the file; default: by its length")
    batch_size: int | None = Field(None, description="examples a step; default: by the file")
    learning_rate: float | None = Field(None, description="default: by the method")
    beta: float | None = Field(None, description="of dpo, orpo and kto [0.1]")
    rank: int | None = Field(None, description="of the adapter [16]")
    alpha: float | None = Field(None, description="of the adapter [32]")
    rslora: bool = Field(False, description="scale by the root of the rank")
    dora: bool = Field(False, description="train the lengths of rows as well")
    trained_tokens: list[str] | None = Field(
        None, description="tokens whose rows of embedding and head are trained, as a JSON list"
    )
    checkpointing: bool | None = Field(
        None, description="compute layers twice to save memory [where it is short]"
    )
    sequence_length: int | None = Field(None, description="tokens; longer examples are cut")
    full: bool = Field(False, description="train every weight")
    quantize: FormatChoice | None = Field(None, description="the frozen base")
    checkpoint_every: int | None = Field(None, description="steps")
    patience: int | None = Field(None, description="checkpoints without gain that end the run")
    teacher: str | None = Field(None, description="a larger model with the same vocabulary")
    teacher_weight: float | None = Field(None, description="of its distributions [0.5]")
    neftune_alpha: float | None = Field(None, description="noise on embeddings [none]")
    device: str | None = Field(None, description="auto, cpu, cuda or cuda:N [auto]")
    threads: int | None = Field(None, description="default: one per usable core")
    data_parallel: int | None = Field(None, description="processes that share each step [1]")
    seed: int | None = Field(None, description="[0]")
    seeds: int | None = Field(None, description="runs, of which the best is kept [1]")


GROUPS = {
    "The run": ("model", "output", "validation_file", "device", "threads", "data_parallel",
                "seed", "seeds"),
    "Training": ("method", "n_epochs", "batch_size", "learning_rate", "beta", "sequence_length",
                 "checkpoint_every", "patience", "neftune_alpha", "teacher", "teacher_weight"),
    "What is trained": ("rank", "alpha", "rslora", "dora", "trained_tokens", "full", "quantize",
                        "checkpointing"),
}  # fmt: skip


def run(arguments: list[str]) -> int:
    """Train, and print the validation losses."""
    options = read(FinetuneOptions, arguments, "finetune", GROUPS)
    for name in ("file", "validation_file"):
        path: Path | None = getattr(options, name)
        if path is not None and not path.is_file():
            raise ConfigurationError(f"{path} is not a file: give one in JSON Lines")
    from hagane.text.hub import resolve_model
    from hagane.training.finetune.loop import finetune
    from hagane.training.finetune.spec import FineTuneSpec
    from hagane.training.parallel.ranks import leads
    from hagane.training.report.progress import FineTuneProgress

    given = options.model_dump(exclude_none=True, exclude={"file", "output", "validation_file"})
    if options.validation_file is not None:
        given["validation_file"] = options.validation_file.resolve()
    given["model"] = resolve_model(options.model)
    if options.teacher is not None:
        given["teacher"] = resolve_model(options.teacher)
    spec = FineTuneSpec(training_file=options.file.resolve(), **given)
    output = options.output or Path(f"{options.file.stem}-adapter")
    output.mkdir(parents=True, exist_ok=True)
    with FineTuneProgress(output) as progress:
        result = finetune(spec, output, progress)
    if leads():
        print(
            f"{result.directory}: validation loss {result.valid_loss:.4f}, "
            f"the base's {result.base_valid_loss:.4f}"
        )
    return 0
