"""The engines of one server: the base model's, and those of whole models beside it.

What full fine-tuning and pretraining make shares no weights with the base and cannot run in its
batches. Each such model has an engine process of its own, which the first request for it starts;
it is stopped when its place is needed for another, or when nobody has asked for it for a while.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from safetensors import safe_open

from hagane.pool.client import EngineClient
from hagane.pool.launch import Launched
from hagane.pool.messages import EngineConfig
from hagane.system.errors import EngineUnavailableError, HaganeError
from hagane.system.machine import available_memory, cuda_driver_present
from hagane.weights.sources.config import load_config

logger = logging.getLogger(__name__)

# Of a weight as it is served, with the scales of groups and channels.
_BITS = {
    "float32": 32.0, "bfloat16": 16.0, "float16": 16.0, "int8": 8.1, "int4": 4.6, "fp8": 8.1,
}  # fmt: skip
# Interpreter, torch and buffers of a process that serves a small model: a round figure.
_PROCESS_BYTES = 400 << 20
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.05
_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Residency:
    """What whole models beside the base may take.

    `models` are in memory at a time, each with a KV cache of `cache_bytes` (or of one context, if
    that is more) and, on a GPU, `gpu_memory_fraction` of its memory; one that nobody has asked for
    in `idle_seconds` is stopped.
    """

    models: int
    cache_bytes: int
    gpu_memory_fraction: float
    idle_seconds: float


@dataclass(eq=False)
class Resident:
    """A whole model's engine; `users` are the requests that keep it."""

    name: str
    client: EngineClient
    starting: asyncio.Task[None]
    users: int = 0
    used_at: float = field(default_factory=time.monotonic)


class Fleet:
    """All engines of a server. `base` is always there; whole models come and go."""

    def __init__(
        self, config: EngineConfig, residency: Residency, launched: Launched | None = None
    ) -> None:
        self.base = EngineClient(config, launched)
        self._residency = residency
        self._residents: dict[Path, Resident] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._draining = False

    @property
    def residents(self) -> tuple[Resident, ...]:
        """The whole models in memory, and those on their way there."""
        return tuple(self._residents.values())

    async def start(self) -> None:
        """Start the base's engine in the background, and look after the others."""
        await self.base.start()
        self._watch = asyncio.create_task(self._stop_idle(), name="idle-models")

    async def drain(self, grace: float) -> None:
        """As `EngineClient.drain`, all engines at once."""
        self._draining = True
        clients = [self.base, *(resident.client for resident in self.residents)]
        await asyncio.gather(*(client.drain(grace) for client in clients))

    async def stop(self, grace: float) -> None:
        """As `EngineClient.stop`, all engines at once."""
        self._draining = True
        if self._watch is not None:
            self._watch.cancel()
        for directory in list(self._residents):
            self._retire(directory)
        await asyncio.gather(self.base.stop(grace), *self._stopping)

    @asynccontextmanager
    async def engine(self, name: str, directory: Path) -> AsyncIterator[EngineClient]:
        """The engine of the whole model in `directory`, kept while the context is open.

        Raises EngineUnavailableError saying why it cannot be had: every place is taken by a model
        in use, the memory does not suffice, or the engine does not start.
        """
        resident = self._residents.get(directory) or self._admit(name, directory)
        resident.users += 1
        try:
            await self._ready(directory, resident)
            yield resident.client
        finally:
            resident.users -= 1
            resident.used_at = time.monotonic()

    async def release(self, folder: Path) -> None:
        """Stop the engines of models in `folder`, each when its last request is done."""
        for directory in [path for path in self._residents if path.is_relative_to(folder)]:
            while (resident := self._residents.get(directory)) is not None and resident.users:
                await asyncio.sleep(_POLL_SECONDS)
            if resident is not None:
                self._retire(directory)
        await self._stopped()

    def _admit(self, name: str, directory: Path) -> Resident:
        """Begin to start an engine, and to stop those in whose place it comes."""
        if self._draining:
            raise EngineUnavailableError("The server is shutting down.")
        client = EngineClient(self._config(directory))
        idle = [path for path, resident in self._residents.items() if not resident.users]
        excess = len(self._residents) + 1 - self._residency.models
        if excess > len(idle):
            raise EngineUnavailableError(
                f"The model '{name}' needs an engine of its own beside the base's, and "
                f"resident_models allows {self._residency.models}, all of which are in use: raise "
                "it, or try again later.",
                retry_after=_RETRY_SECONDS,
            )
        idle.sort(key=lambda path: self._residents[path].used_at)
        for path in idle[: max(excess, 0)]:
            self._retire(path)
        resident = Resident(name, client, asyncio.create_task(self._start(client)))
        self._residents[directory] = resident
        logger.info("starting an engine for %s", name)
        return resident

    async def _start(self, client: EngineClient) -> None:
        await self._stopped()
        _require_memory(client.config)
        await client.start()

    async def _ready(self, directory: Path, resident: Resident) -> None:
        """Wait until it takes requests; one that cannot is gone for the next request to try."""
        await asyncio.wait((resident.starting,))
        try:
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

    def _retire(self, directory: Path) -> None:
        resident = self._residents.pop(directory)
        logger.info("stopping the engine of %s", resident.name)
        task = asyncio.create_task(_stop(resident))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stopped(self) -> None:
        """Wait until the memory of those that were stopped is free."""
        if self._stopping:
            await asyncio.wait(set(self._stopping))

    async def _stop_idle(self) -> None:
        while True:
            await asyncio.sleep(min(self._residency.idle_seconds, 1.0))
            since = time.monotonic() - self._residency.idle_seconds
            for directory, resident in list(self._residents.items()):
                if not resident.users and resident.used_at < since:
                    self._retire(directory)

    def _config(self, directory: Path) -> EngineConfig:
        """The base's settings for another model, which has no adapters."""
        base, residency = self.base.config, self._residency
        longest = load_config(directory).max_position_embeddings
        return msgspec.structs.replace(
            base,
            model=str(directory),
            context_length=min(base.context_length or longest, longest),
            kv_cache_memory=None,
            kv_cache_limit=residency.cache_bytes,
            gpu_memory_fraction=residency.gpu_memory_fraction,
            beside_another=True,
            adapter_memory=0,
        )


async def _stop(resident: Resident) -> None:
    resident.starting.cancel()
    await asyncio.wait((resident.starting,))
    await resident.client.stop(_STOP_SECONDS)


def _require_memory(config: EngineConfig) -> None:
    """Raises EngineUnavailableError where the weights alone would not fit into memory.

    On a GPU the engine finds out by itself.
    """
    if config.device != "cpu" and cuda_driver_present():
        return
    needed, available = _weight_bytes(config) + _PROCESS_BYTES, available_memory()
    if needed > available:
        raise EngineUnavailableError(
            f"its engine needs about {needed / 1e9:.1f} GB and {available / 1e9:.1f} GB of memory "
            "are available: free some, or quantize (int8, int4)."
        )


def _weight_bytes(config: EngineConfig) -> int:
    """What the stored weights come to in the form in which they are served."""
    directory = Path(config.model)
    files = list(directory.glob("*.safetensors"))
    model = load_config(directory)
    if model.quantization is not None:
        return sum(file.stat().st_size for file in files)
    dtype = model.dtype if config.dtype == "auto" else config.dtype
    form = dtype if config.quantize == "none" else config.quantize
    return int(sum(map(_count_weights, files)) * _BITS[form] / 8)


def _count_weights(file: Path) -> int:
    """From the header alone."""
    with safe_open(file, framework="np") as weights:
        names = weights.keys()
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in names)
