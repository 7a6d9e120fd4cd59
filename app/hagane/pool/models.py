"""The models in memory, each with an engine process of its own.

The model that the server was started on is there as long as the server. Others share no weights
with it and cannot run in its batches: the first request for one starts its engine, which is stopped
when its place or its memory is needed for another, or when it was not requested for a while. One
that an admin pinned stays.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from hagane.models.encoder_config import EncoderConfig
from hagane.pool.client import EngineClient
from hagane.pool.footprint import engine_bytes, weight_bytes
from hagane.pool.launch import Launched
from hagane.pool.messages import EngineConfig
from hagane.pool.process import Connect
from hagane.system.errors import EngineUnavailableError, HaganeError
from hagane.system.loops import BackgroundLoop, Changes
from hagane.system.machine import available_memory, cuda_driver_present
from hagane.weights.sources.config import is_gguf, load_any_config

logger = logging.getLogger(__name__)

_STOP_SECONDS = 10.0
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Residency:
    """Bounds on models other than the base.

    `models` are in memory at a time, with weights of `weight_bytes` together (None: what is free),
    each with a KV cache of `cache_bytes` (or of one context, if that is more) and, on a GPU,
    `gpu_memory_fraction` of its memory; one that nobody has asked for in `idle_seconds` is stopped.
    """

    models: int
    cache_bytes: int
    gpu_memory_fraction: float
    idle_seconds: float
    weight_bytes: int | None = None


@dataclass(eq=False)
class ResidentModel:
    """A model's engine. `users` are the requests that keep it; a `pinned` one needs none.

    `starting` ends when its process is launched, or with the reason why it is not; the base has
    none, since it is started with the server. `bytes` are those of its weights.
    """

    name: str
    client: EngineClient
    pinned: bool = False
    starting: asyncio.Task[None] | None = None
    bytes: int = 0
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)

    @property
    def base(self) -> bool:
        """Whether it is the model that the server was started on."""
        return self.starting is None


class Fleet:
    """All engines of a server.

    Args:
        name: of the base, the model which `config` describes.
        config: its engine's; other models' engines differ from it by what is the model's own.
        residency: the bounds of the other models.
        launched: the base's engine process, where it is under way already.
        memory: gives the available memory in bytes.
        connect: finds the engines of a cluster, where this server starts none itself.
    """

    def __init__(
        self,
        name: str,
        config: EngineConfig,
        residency: Residency,
        launched: Launched | None = None,
        memory: Callable[[], int] = available_memory,
        connect: Connect | None = None,
    ) -> None:
        self.base = EngineClient(config, launched, connect)
        self._connect = connect
        self._residency, self._memory = residency, memory
        self._residents = {Path(config.model): ResidentModel(name, self.base)}
        self._stopping: set[asyncio.Task[None]] = set()
        self._sweeper = BackgroundLoop("idle models", self._stop_idle)
        self._changes = Changes()
        self._draining = False

    @property
    def residents(self) -> tuple[ResidentModel, ...]:
        """The models in memory, and those on their way there; the base comes first."""
        return tuple(self._residents.values())

    def by_directory(self) -> tuple[tuple[Path, ResidentModel], ...]:
        """As `residents`, with the directory or file of each."""
        return tuple(self._residents.items())

    def loops(self) -> Iterator[BackgroundLoop]:
        """The background loops."""
        yield self._sweeper
        for resident in self.residents:
            yield resident.client.supervision

    async def start(self) -> None:
        """Start the base's engine in the background, and look after the others."""
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

        Waits until the engine takes requests, unless it is the base's. Raises
        EngineUnavailableError saying why it cannot be had: every place is taken by a model in use,
        the memory does not suffice, or the engine does not start.
        """
        resident = self._residents.get(directory)
        if resident is None:
            # Headers of large files take their time.
            config, needed = await asyncio.to_thread(self._plan, directory)
            resident = self._residents.get(directory) or self._admit(name, config, needed)
        resident.users += 1
        try:
            if not resident.base:
                await self._ready(directory, resident)
            yield resident.client
        finally:
            resident.users -= 1
            resident.used_at = time.monotonic()
            self._changes.notify()

    async def load(self, name: str, directory: Path, *, pinned: bool) -> None:
        """Have a model in memory, and keep it there if it is to be `pinned`.

        Raises EngineUnavailableError as `engine` does.
        """
        async with self.engine(name, directory):
            resident = self._residents.get(directory)
            if resident is not None and not resident.base:
                resident.pinned = pinned

    async def release(self, folder: Path) -> None:
        """Stop the engines of models in `folder`, each when its last request is done."""
        for directory, resident in list(self._residents.items()):
            if resident.base or not directory.is_relative_to(folder):
                continue
            await self._changes.wait_for(partial(self._unused, directory))
            if directory in self._residents:
                self._retire(directory)
        await self._stopped()

    async def unload_adapter(self, digest: str) -> None:
        """As `EngineClient.unload_adapter`, of the engine that has it."""
        for resident in self.residents:
            await resident.client.unload_adapter(digest)

    def release_adapter(self, digest: str) -> None:
        """As `EngineClient.release_adapter`, of the engine that has it."""
        for resident in self.residents:
            resident.client.release_adapter(digest)

    def _unused(self, directory: Path) -> bool:
        resident = self._residents.get(directory)
        return resident is None or not resident.users

    def _admit(self, name: str, config: EngineConfig, needed: int) -> ResidentModel:
        """Begin to start an engine, and to stop those in whose place it comes."""
        if self._draining:
            raise EngineUnavailableError("The server is shutting down.")
        self._make_room(name, needed)
        client = EngineClient(config, connect=self._connect)
        starting = asyncio.create_task(self._start(client))
        resident = ResidentModel(name, client, starting=starting, bytes=needed)
        self._residents[Path(config.model)] = resident
        logger.info("starting an engine for %s", name)
        return resident

    def _make_room(self, name: str, needed: int) -> None:
        """Stop those that were requested longest ago until one more fits within the bounds.

        Raises EngineUnavailableError, and stops none, if models in use or pinned are in the way.
        """
        others = {path: one for path, one in self._residents.items() if not one.base}
        idle = [path for path, one in others.items() if not (one.pinned or one.users)]
        idle.sort(key=lambda path: others[path].used_at)
        leaving: list[Path] = []
        while (bound := self._exceeded([*others.values()], needed)) is not None:
            if not idle:
                raise EngineUnavailableError(
                    f"The model '{name}' needs an engine of its own besides the default model's, "
                    f"and {bound}: raise it, unload a model, or try again later.",
                    retry_after=_RETRY_SECONDS,
                )
            leaving.append(idle.pop(0))
            del others[leaving[-1]]
        for path in leaving:
            self._retire(path)

    def _exceeded(self, others: Sequence[ResidentModel], needed: int) -> str | None:
        """The bound that one more model next to `others` would break, in words."""
        most, budget = self._residency.models, self._residency.weight_bytes
        if len(others) >= most:
            return f"resident_models allows {most}, all of which are in use or pinned"
        taken = sum(one.bytes for one in others)
        if budget is not None and taken + needed > budget:
            return (
                f"resident_memory allows {budget / 1e9:.2f} GB of weights, of which "
                f"{taken / 1e9:.2f} GB are in use or pinned and {needed / 1e9:.2f} GB are needed"
            )
        return None

    async def _start(self, client: EngineClient) -> None:
        await self._stopped()
        if self._connect is None:
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
            kept = resident.base or resident.pinned or resident.users
            if not kept and resident.used_at < since:
                self._retire(directory)
        return min(self._residency.idle_seconds, 1.0)

    def _plan(self, directory: Path) -> tuple[EngineConfig, int]:
        """The base's settings for another model, and its weights' bytes.

        A model that another program quantized, or Hagane, stays as it is, and so does a GGUF file.
        Its adapters may take as much memory as its cache at most. Raises ModelError.
        """
        base, residency = self.base.config, self._residency
        config = load_any_config(directory)
        longest = config.max_position_embeddings
        encodes = isinstance(config, EncoderConfig)
        stored = (
            isinstance(config, EncoderConfig)
            or is_gguf(directory)
            or config.quantization is not None
            or config.stored is not None
        )
        planned = msgspec.structs.replace(
            base,
            model=str(directory),
            quantize="none" if stored else base.quantize,
            context_length=min(base.context_length or longest, longest),
            kv_cache_memory=None,
            kv_cache_limit=residency.cache_bytes,
            # The base's alone; what comes from disk passes through less.
            kv_cache_host_memory=None,
            gpu_memory_fraction=residency.gpu_memory_fraction,
            shares_device=True,
            adapter_memory=0 if encodes else min(base.adapter_memory, residency.cache_bytes),
            # A draft shares the base's vocabulary, not every model's.
            speculation="auto" if base.speculation == "draft" else base.speculation,
            draft_model=None,
        )
        return planned, weight_bytes(planned)


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
