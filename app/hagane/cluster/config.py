"""The configuration of a cluster: the settings of `hagane serve`, and replicas of each model."""

from __future__ import annotations

import math
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hagane.system.errors import ConfigurationError
from hagane.system.settings import PREFIX


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Replicas(_Part):
    """Replicas of one model.

    As many as `replicas`, or between that and `most`, so that each has at most about
    `target_queued_tokens` of prompts waiting and `target_requests` in flight. Replicas are added
    when that was exceeded for `scale_up_seconds`. `cpus` and `gpus` are what Ray sets aside for
    one; fractions share a device.
    """

    replicas: int = Field(1, ge=1)
    most: int | None = Field(None, ge=1)
    target_queued_tokens: float = Field(4096.0, gt=0)
    target_requests: float = Field(16.0, gt=0)
    scale_up_seconds: float = Field(10.0, ge=0)
    scale_down_seconds: float = Field(300.0, ge=0)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)
    drain_seconds: float = Field(60.0, ge=0)

    @model_validator(mode="after")
    def _in_order(self) -> Replicas:
        if self.most is not None and self.most < self.replicas:
            raise ValueError(f"most {self.most} is less than replicas {self.replicas}")
        return self


class OtherModel(Replicas):
    """Another model, under the `name` that requests use: a directory or a name in `models_dir`."""

    name: str
    model: str


class Training(_Part):
    """Fine-tuning jobs as tasks of Ray: `tasks` of each edge at a time, and what one has."""

    tasks: int = Field(1, ge=1)
    cpus: float = Field(1.0, ge=0)
    gpus: float = Field(0.0, ge=0)


class ClusterConfig(_Part):
    """A cluster. `settings` are those of `hagane serve`, by the names of the TOML file.

    `edges` are replicas of the HTTP side, each with a core. `routing` is `prefix` or `random`.
    Without `training`, jobs run in the edges.
    """

    settings: dict[str, Any] = {}
    edges: int = Field(1, ge=1)
    engines: Replicas = Replicas()
    models: tuple[OtherModel, ...] = ()
    training: Training | None = None
    routing: Literal["prefix", "random"] = "prefix"

    @property
    def local_cpus(self) -> int:
        """What Ray on one machine has to have, where replicas share the cores that there are."""
        engines = (self.engines, *self.models)
        most = sum((one.most or one.replicas) * one.cpus for one in engines)
        tasks = self.training.tasks * self.training.cpus if self.training else 0
        return max(os.cpu_count() or 1, math.ceil(self.edges * (1 + tasks) + most))

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        named = self._given("database_url")
        if self.edges > 1 and not named:
            raise ValueError(
                "edges beyond one share a database: set settings.database_url or "
                f"{PREFIX}DATABASE_URL"
            )
        if self.training is not None and not (named and self._given("blob_url")):
            raise ValueError(
                "training as tasks needs settings.database_url and settings.blob_url: a task may "
                "run on any machine"
            )
        if "admin_port" in self.settings:
            raise ValueError("settings.admin_port has no place where edges move between machines")
        names = [model.name for model in self.models]
        if len({*names}) < len(names):
            raise ValueError("two of models have one name")
        return self

    def _given(self, setting: str) -> object:
        return self.settings.get(setting) or os.environ.get(f"{PREFIX}{setting.upper()}")

    @classmethod
    def read(cls, path: Path) -> ClusterConfig:
        """The file at `path`, which is TOML. Raises ConfigurationError."""
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from None
        return cls.of(values, str(path))

    @classmethod
    def of(cls, values: dict[str, Any], source: str) -> ClusterConfig:
        """Raises ConfigurationError, which names `source` and the key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = first["msg"].removeprefix("Value error, ")
            raise ConfigurationError(f"{source}: {place or 'cluster'}: {reason}") from None
