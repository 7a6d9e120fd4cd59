"""`hagane models`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import CliPositionalArg

from hagane.cli.command import Options, read
from hagane.system.settings import Settings
from hagane.text.hub import download, model_stores, resolve_model, verify
from hagane.text.inventory import describe, remove, stored_models


class ModelsOptions(Options):
    """List, fetch, describe and remove the models on this machine."""

    action: CliPositionalArg[Literal["list", "pull", "show", "rm"]] = Field(
        description="list; pull a hub id; show or rm (remove) a model"
    )
    name: CliPositionalArg[str | None] = Field(
        None, description="a model's name, or OWNER/NAME or OWNER/NAME/FILE.gguf on the hub"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.name is None) != (self.action == "list"):
            raise ValueError("pull, show and rm take the name of a model; list takes none")
        return self


def run(arguments: list[str]) -> int:
    """Do what is asked; stores are those of the settings in environment and file."""
    options = read(ModelsOptions, arguments, "models")
    settings = Settings()
    if options.name is None:
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


def _pull(name: str) -> None:
    path = download(name)
    count = verify(path)
    print(f"{path}: {count} files as they are on the hub; serve it with --model {name}")
