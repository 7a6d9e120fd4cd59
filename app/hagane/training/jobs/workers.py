"""Where the workers of jobs run: in processes of this machine, or elsewhere. Needs no torch."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hagane.store.jobs import Job
from hagane.store.store import Store
from hagane.training.jobs.inspection import Spawn, spawn_process
from hagane.training.jobs.options import JobOptions

# In a data directory: its worker has it locked.
WORKER_LOCK = "worker.lock"


class WorkerProcess(Protocol):
    """A worker that runs, as `asyncio.subprocess.Process` is one."""

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for signals; None while it runs."""
        ...

    async def wait(self) -> int:
        """The exit status, at its end."""
        ...

    def terminate(self) -> None:
        """Have it end after its step. Raises ProcessLookupError."""
        ...

    def kill(self) -> None:
        """End it now. Raises ProcessLookupError."""
        ...


class Workers(Protocol):
    """Starts workers, at most `most` at a time."""

    most: int

    def fits(self, store: Store, job: Job, others: Iterable[Job]) -> bool:
        """Whether the worker of a job may run next to those of `others`, fewer than `most`."""
        ...

    async def start(self, store: Store, job: Job, options: JobOptions) -> WorkerProcess:
        """Start the worker of a job, once there is room for it. Raises OSError."""
        ...


def worker_command(directory: Path, job_id: str, options: JobOptions) -> list[str]:
    """The command of a worker whose data directory is `directory`.

    It ends when its standard input closes.
    """
    module = "hagane.training.jobs.worker"
    return [sys.executable, "-m", module, str(directory), job_id, options.model_dump_json()]


@dataclass
class LocalWorkers:
    """Processes of this machine: one, since it uses all that it may."""

    spawn: Spawn = spawn_process
    most: int = 1

    def fits(self, store: Store, job: Job, others: Iterable[Job]) -> bool:
        """As `Workers.fits`."""
        return True

    async def start(self, store: Store, job: Job, options: JobOptions) -> WorkerProcess:
        """As `Workers.start`; the worker lives no longer than this process."""
        return await self.spawn(
            *worker_command(store.directory, job.id, options),
            stdin=asyncio.subprocess.PIPE,
            variables=store.environment,
        )
