"""Jobs as Ray tasks: they run where resources are free, and elsewhere again if that is lost.

A task is a process that runs a job's worker. What the job goes on from is in the object store, so
that a task on another machine ends with the same bits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from hagane.store.jobs import Job
from hagane.store.store import Store
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.state_mirror import state_mirror
from hagane.training.jobs.workers import LocalWorkers, WorkerProcess, worker_command

_FOLDER = "tasks"
# As of a process that was killed: a task whose machine is gone.
_LOST = -9


@dataclass
class RayWorkers:
    """Tasks with `cpus` and `gpus` each, `most` at a time.

    A job whose state and result stay in a data directory runs on this machine, one at a time.
    """

    most: int
    cpus: float
    gpus: float
    _here: WorkerProcess | None = None

    async def start(self, store: Store, job: Job, options: JobOptions) -> WorkerProcess:
        """As `Workers.start`."""
        if state_mirror(store, job) is None:
            while self._here is not None and self._here.returncode is None:
                await self._here.wait()
            self._here = await LocalWorkers().start(store, job, options)
            return self._here
        # Workers of one directory wait for each other.
        directory = store.directory / _FOLDER / job.id
        task = ray.remote(run_worker).options(
            num_returns="streaming",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=0,
            name=f"job {job.id}",
        )
        answers = task.remote(str(directory), job.id, options.model_dump_json(), store.environment)
        try:
            await _next(answers)
        except BaseException:
            ray.cancel(answers)
            raise
        return RayTask(answers)


class RayTask:
    """A task that runs, as a process."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._ended = asyncio.ensure_future(_next(answers))

    @property
    def returncode(self) -> int | None:
        """The exit status of the worker; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """The exit status of the worker; that of a killed one if its machine is gone."""
        # Shielded: several may wait.
        return await asyncio.shield(self._ended)

    def terminate(self) -> None:
        """Have the worker end after its step."""
        ray.cancel(self._answers)

    def kill(self) -> None:
        """End the worker now."""
        ray.cancel(self._answers, force=True)


def run_worker(
    directory: str, job_id: str, options: str, variables: dict[str, str]
) -> Iterator[int]:
    """In the task: 0 once it runs, and the exit status of the worker."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    command = worker_command(Path(directory), job_id, JobOptions.model_validate_json(options))
    yield 0
    # Held open as long as this process lives; the worker ends when it closes.
    environment = {**os.environ, **variables}
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)  # noqa: S603 - ours
    with contextlib.suppress(KeyboardInterrupt):
        yield worker.wait()
        return
    worker.terminate()
    yield worker.wait()


async def _next(answers: Any) -> int:
    try:
        return int(await (await anext(answers)))
    except (RayError, StopAsyncIteration):
        return _LOST
