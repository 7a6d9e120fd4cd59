"""The models in memory, each with an engine process of its own.

The model that the server was started on is pinned: it is there as long as the server. Others, such
as the results of full fine-tuning and pretraining, share no weights with it and cannot run in its
batches: the first request for one starts its engine, which is stopped when its place is needed for
another, or when it was not requested for a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from hagane.pool.client import EngineClient
from hagane.pool.footprint import engine_bytes
from hagane.pool.launch import Launched
from hagane.pool.messages import EngineConfig
from hagane.system.errors import EngineUnavailableError, HaganeError
from hagane.system.loops import BackgroundLoop, Changes
from hagane.system.machine import available_memory, cuda_driver_present
from hagane.weights.sources.config import load_config

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Residency:
    """Bounds on models that are not pinned.

    `models` are in memory at a time, each with a KV cache of `cache_bytes` (or of one context, if
    that is more) and, on a GPU, `gpu_memory_fraction` of its memory; one that nobody has asked for
    in `idle_seconds` is stopped.
    """

    models: int
    cache_bytes: int
    gpu_memory_fraction: float
    idle_seconds: float


@dataclass(eq=False)
class ResidentModel:
    """A model's engine. `users` are the requests that keep it; a `pinned` one needs none.

    `starting` ends when its process is launched, or with the reason why it is not.
    """

    name: str
    client: EngineClient
    pinned: bool = False
    starting: asyncio.Task[None] | None = None
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)


class Fleet:
    """All engines of a server.

    Args:
        name: of the pinned model, which `config` describes.
        config: its engine's; other models' engines differ from it by what is the model's own.
        residency: the bounds of the other models.
        launched: the pinned model's engine process, where it is under way already.
        memory: gives the available memory in bytes.
    """

    def __init__(
        self,
        name: str,
        config: EngineConfig,
        residency: Residency,
        launched: Launched | None = None,
        memory: Callable[[], int] = available_memory,
    ) -> None:
        self.base = EngineClient(config, launched)
        self._residency, self._memory = residency, memory
        self._residents = {Path(config.model): ResidentModel(name, self.base, pinned=True)}
        self._stopping: set[asyncio.Task[None]] = set()
        self._sweeper = BackgroundLoop("idle models", self._stop_idle)
        self._changes = Changes()
        self._draining = False

    @property
    def residents(self) -> tuple[ResidentModel, ...]:
        """The models in memory, and those on their way there; the pinned one comes first."""
        return tuple(self._residents.values())

    def loops(self) -> Iterator[BackgroundLoop]:
        """The background loops."""
        yield self._sweeper
        for resident in self.residents:
            yield resident.client.supervision

    async def start(self) -> None:
        """Start the pinned model's engine in the background, and look after the others."""
        await self.base.start()
        self._sweeper.start()

    async def drain(self, grace: float) -> None:
        """As `EngineClient.drain`, all engines at once."""
        self._draining = True
        await asyncio.gather(*(resident.client.drain(grace) for resident in self.residents))

    async def stop(self, grace: float) -> None:
        """As `EngineClient.stop`, all engines at once."""
        self._draining = True
        await self._sweeper.stop()
        for directory in list(self._residents):
            self._retire(directory, grace)
        await self._stopped()

    @asynccontextmanager
    async def engine(self, name: str, directory: Path) -> AsyncIterator[EngineClient]:
        """The engine of the model in `directory`, kept while the context is open.

        Waits until the engine takes requests, unless it is pinned. Raises EngineUnavailableError
        saying why it cannot be had: every place is taken by a model in use, the memory does not
        suffice, or the engine does not start.
        """
        resident = self._residents.get(directory) or self._admit(name, directory)
        resident.users += 1
        try:
            if not resident.pinned:
                await self._ready(directory, resident)
            yield resident.client
        finally:
            resident.users -= 1
            resident.used_at = time.monotonic()
            self._changes.notify()

    async def release(self, folder: Path) -> None:
        """Stop the engines of models in `folder`, each when its last request is done."""
        for directory, resident in list(self._residents.items()):
            if resident.pinned or not directory.is_relative_to(folder):
                continue
            await self._changes.wait_for(partial(self._unused, directory))
            if directory in self._residents:
                self._retire(directory)
        await self._stopped()

    def _unused(self, directory: Path) -> bool:
        resident = self._residents.get(directory)
        return resident is None or not resident.users

    def _admit(self, name: str, directory: Path) -> ResidentModel:
        """Begin to start an engine, and to stop those in whose place it comes."""
        if self._draining:
            raise EngineUnavailableError("The server is shutting down.")
        client = EngineClient(self._config(directory))
        others = [(path, one) for path, one in self._residents.items() if not one.pinned]
        idle = [(path, one) for path, one in others if not one.users]
        excess = len(others) + 1 - self._residency.models
        if excess > len(idle):
            raise EngineUnavailableError(
                f"The model '{name}' needs an engine of its own besides the default model's, and "
                f"resident_models allows {self._residency.models}, all of which are in use: raise "
                "it, or try again later.",
                retry_after=_RETRY_SECONDS,
            )
        idle.sort(key=lambda pair: pair[1].used_at)
        for path, _ in idle[: max(excess, 0)]:
            self._retire(path)
        resident = ResidentModel(name, client, starting=asyncio.create_task(self._start(client)))
        self._residents[directory] = resident
        logger.info("starting an engine for %s", name)
        return resident

    async def _start(self, client: EngineClient) -> None:
        await self._stopped()
        _require_memory(client.config, self._memory)
        await client.start()

    async def _ready(self, directory: Path, resident: ResidentModel) -> None:
        """Wait until it takes requests; one that cannot is gone for the next request to try."""
        try:
            if resident.starting is not None:
                await asyncio.wait((resident.starting,))
                if resident.starting.cancelled():
                    raise EngineUnavailableError("The server is shutting down.")
                resident.starting.result()
            await resident.client.ready()
        except HaganeError as error:
            if self._residents.get(directory) is resident:
                self._retire(directory)
            raise EngineUnavailableError(
                f"The model '{resident.name}' cannot be served now: {error}",
                retry_after=_RETRY_SECONDS,
            ) from error

    def _retire(self, directory: Path, grace: float = _STOP_SECONDS) -> None:
        resident = self._residents.pop(directory)
        logger.info("stopping the engine of %s", resident.name)
        task = asyncio.create_task(_stop(resident, grace))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stopped(self) -> None:
        """Wait until the memory of those that were stopped is free."""
        if self._stopping:
            await asyncio.wait(set(self._stopping))

    async def _stop_idle(self) -> float:
        since = time.monotonic() - self._residency.idle_seconds
        for directory, resident in list(self._residents.items()):
            if not (resident.pinned or resident.users) and resident.used_at < since:
                self._retire(directory)
        return min(self._residency.idle_seconds, 1.0)

    def _config(self, directory: Path) -> EngineConfig:
        """The pinned model's settings for another model, which has no adapters."""
        base, residency = self.base.config, self._residency
        longest = load_config(directory).max_position_embeddings
        return msgspec.structs.replace(
            base,
            model=str(directory),
            context_length=min(base.context_length or longest, longest),
            kv_cache_memory=None,
            kv_cache_limit=residency.cache_bytes,
            gpu_memory_fraction=residency.gpu_memory_fraction,
            shares_device=True,
            adapter_memory=0,
        )


async def _stop(resident: ResidentModel, grace: float) -> None:
    if resident.starting is not None:
        resident.starting.cancel()
        await asyncio.wait((resident.starting,))
    await resident.client.stop(grace)


def _require_memory(config: EngineConfig, memory: Callable[[], int]) -> None:
    """Raises EngineUnavailableError where the weights alone would not fit into memory.

    On a GPU the engine finds out by itself.
    """
    if config.device != "cpu" and cuda_driver_present():
        return
    needed, available = engine_bytes(config), memory()
    if needed > available:
        raise EngineUnavailableError(
            f"its engine needs about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB of memory "
            "are available: free some, or quantize (int8, int4)."
        )
