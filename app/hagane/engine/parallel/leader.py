"""The first rank of several: it schedules and samples, and has the others run the same steps.

The others are its child processes. They end with it, and it ends with any of them: a rank that is
gone has lost its part of the KV cache. The server then starts all of them anew, as it does an
engine that died.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hagane.engine.adapters import Banks
from hagane.engine.parallel.meeting import Place, meet, own_config
from hagane.engine.parallel.orders import Join, Order, PackAdapter, PlaceAdapter, RunStep, send
from hagane.engine.step.batch import Batch
from hagane.engine.step.runner import ModelRunner
from hagane.lora.banks import PackedAdapter
from hagane.lora.files import Adapter
from hagane.models.config import ModelConfig
from hagane.models.sharding import Shard
from hagane.pool.messages import EngineConfig
from hagane.system.errors import ConfigurationError
from hagane.system.machine import usable_cores
from hagane.weights.sources.config import load_config

logger = logging.getLogger("hagane.engine.loop")

_END_SECONDS = 5.0


class Ranks:
    """The other ranks' processes, and the group that they form with this one."""

    def __init__(self, config: EngineConfig) -> None:
        """Raises ConfigurationError for a model or a machine that cannot be divided so."""
        ranks = config.tensor_parallel
        if config.kv_cache_host_memory or config.kv_cache_disk:
            raise ConfigurationError(
                "kv_cache_host_memory and kv_cache_disk keep the blocks of one process: leave them "
                "out, or tensor_parallel at 1"
            )
        Shard(0, ranks).config(load_config(Path(config.model)))
        places = [Place.of(config, rank, usable_cores()) for rank in range(ranks)]
        self._lock, self._ending = threading.Lock(), False
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[socket.socket] = []
        with tempfile.TemporaryDirectory(prefix="hagane-ranks-") as directory:
            meeting = Path(directory) / "meeting"
            for rank in range(1, ranks):
                self._start(Join(config, rank, places[rank], str(meeting)))
            self._watch()
            self.group = meet(config, 0, places[0], meeting)

    def _start(self, join: Join) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            command = [sys.executable, "-m", "hagane.engine.parallel", str(descriptor)]
            process = subprocess.Popen(command, pass_fds=[descriptor])  # noqa: S603 - of our own
        self._processes.append(process)
        self._connections.append(ours)
        send(ours, join)

    def tell(self, order: Order) -> None:
        """Any thread may. Raises OSError when a rank is gone."""
        with self._lock:
            for connection in self._connections:
                send(connection, order)

    def _watch(self) -> None:
        """End this process when another rank ends."""
        for rank, process in enumerate(self._processes, start=1):
            thread = threading.Thread(target=self._wait, args=(rank, process), daemon=True)
            thread.start()

    def _wait(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if not self._ending:
            logger.error("rank %d ended with status %d: the engine ends with it", rank, status)
            logging.shutdown()
            # Not an exception: the main thread may be waiting for that rank.
            os._exit(1)

    def end(self) -> None:
        """Have the other ranks end."""
        self._ending = True
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.group.leave()


class LeadingRunner(ModelRunner):
    """As `ModelRunner`, of all ranks together. A failure in a step ends the process.

    Steps are run to their end: the others do not know when a request arrives.
    """

    def __init__(self, config: EngineConfig, progress: Callable[[str], None], ranks: Ranks) -> None:
        super().__init__(own_config(config), progress, group=ranks.group)
        self._ranks = ranks
        self.banks = LeadingBanks(self.banks, ranks)

    @torch.inference_mode()
    def execute(
        self,
        batch: Batch,
        copies: Sequence[tuple[int, int]],
        leaves: Callable[[], bool] | None = None,
    ) -> Tensor | None:
        try:
            self._ranks.tell(RunStep.of(batch, copies))
            return super().execute(batch, copies)
        except Exception:
            # The ranks are no longer at the same place.
            logger.exception("a step of several ranks failed")
            raise SystemExit(1) from None

    def close(self) -> None:
        self._ranks.end()


class LeadingBanks:
    """The banks of all ranks: an adapter is packed and placed on each."""

    def __init__(self, own: Banks, ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    @property
    def config(self) -> ModelConfig:
        return self._own.config

    def resolve(self, adapter: Adapter) -> Adapter:
        return self._own.resolve(adapter)

    def size(self, adapter: Adapter) -> int:
        return self._own.size(adapter)

    def pack(self, adapter: Adapter) -> PackedAdapter:
        self._ranks.tell(PackAdapter.of(adapter))
        return self._own.pack(adapter)

    def place(self, slot: int, adapter: PackedAdapter) -> None:
        self._ranks.tell(PlaceAdapter(slot, adapter.digest))
        self._own.place(slot, adapter)

    def clear(self, slot: int) -> None:
        self._ranks.tell(PlaceAdapter(slot, None))
        self._own.clear(slot)


def make_runner(config: EngineConfig, progress: Callable[[str], None]) -> ModelRunner:
    """The runner of an engine, of as many ranks as its config has. Raises HaganeError."""
    if config.tensor_parallel == 1:
        return ModelRunner(config, progress)
    return LeadingRunner(config, progress, Ranks(config))
