"""`hagane models`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.system.machine import available_memory
from hagane.system.settings import Settings
from hagane.text.hub import download, model_stores, resolve_model, verify
from hagane.text.inventory import describe, remove, stored_models
from hagane.text.recommended import RECOMMENDED, best_format


class ModelsOptions(Options):
    """List, fetch, describe and remove the models on this machine."""

    action: CliPositionalArg[Literal["list", "recommend", "pull", "show", "rm"]] = Field(
        description="list; recommend for this machine; pull a hub id; show or rm (remove) a model"
    )
    name: CliPositionalArg[str | None] = Field(
        None, description="a model's name, or OWNER/NAME or OWNER/NAME/FILE.gguf on the hub"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.name is None) != (self.action in ("list", "recommend")):
            raise ValueError(
                "pull, show and rm take the name of a model; list and recommend take none"
            )
        return self


def run(arguments: list[str]) -> int:
    """Run the command; stores are those of the settings in environment and file."""
    options = read(ModelsOptions, arguments, "models")
    settings = Settings()
    if options.action == "recommend":
        _recommend()
    elif options.name is None:
        _list(settings)
    elif options.action == "pull":
        _pull(options.name)
    elif options.action == "show":
        path = resolve_model(options.name, model_stores(settings))
        for heading, fact in describe(path).items():
            print(f"{heading:14}{fact}")
    else:
        model = remove(options.name, settings)
        print(f"removed {model.name} ({model.size / 1e6:.1f} MB) from {model.path}")
    return 0


def _list(settings: Settings) -> None:
    for model in stored_models(settings):
        print(f"{model.name:48} {model.size / 1e6:10.1f} MB  {model.place}")


def _recommend() -> None:
    memory = available_memory()
    print(f"with {memory / 2**30:.1f} GiB of memory to use:")
    for model in RECOMMENDED:
        quantize = best_format(model, memory)
        how = "too large" if quantize is None else "fits"
        if quantize not in (None, "none"):
            how = f"--quantize {quantize}"
        print(
            f"{model.name:42}{model.parameters:6.2g} B  {model.licence:11}{model.task:11}{how:17}"
            f"{model.languages}"
        )
    print("fetch one by `hagane models pull NAME`, serve it by `hagane serve --model NAME`")


def _pull(name: str) -> None:
    path = download(name)
    count = verify(path)
    print(f"{path}: {count} files as they are on the hub; serve it with --model {name}")
