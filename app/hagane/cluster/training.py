"""Jobs as Ray tasks: they run where resources are free, and elsewhere again if that is lost.

A task is a process that runs a job's worker. What the job goes on from is in the object store, so
that a task on another machine ends with the same bits.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from hagane.store.jobs import Job, Jobs
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import HaganeError
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.state_mirror import state_mirror
from hagane.training.jobs.workers import (
    WORKER_LOCK,
    LocalWorkers,
    WorkerProcess,
    worker_command,
)

_FOLDER = "tasks"
# Ray interrupts the main thread of a task, which notices between two waits.
_WAIT_SECONDS = 0.5
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

    def fits(self, store: Store, job: Job, others: Iterable[Job]) -> bool:
        """As `Workers.fits`."""
        return not _is_local(store, job) or not any(_is_local(store, other) for other in others)

    async def start(self, store: Store, job: Job, options: JobOptions) -> WorkerProcess:
        """As `Workers.start`."""
        if _is_local(store, job):
            return await LocalWorkers().start(store, job, options)
        # Workers of one directory wait for each other.
        directory = store.directory / _FOLDER / job.id
        task = ray.remote(run_worker).options(
            num_returns="streaming",
            num_cpus=self.cpus,
            num_gpus=self.gpus,
            max_retries=0,
            name=f"job {job.id}",
        )
        # Those of the job are chosen for this machine.
        given = options.model_copy(update={"threads": max(1, int(self.cpus))}).model_dump_json()
        answers = task.remote(str(directory), job.id, given, store.environment)
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
    try:
        code = _end(worker)
    except KeyboardInterrupt:
        worker.terminate()
        # What it goes on from stays: it may be needed here again.
        yield worker.wait()
        return
    with contextlib.suppress(HaganeError, OSError):
        _remove_finished(Path(directory).parent, variables)
    yield code


def _end(worker: subprocess.Popen[bytes]) -> int:
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return worker.wait(_WAIT_SECONDS)


def _remove_finished(folder: Path, variables: Mapping[str, str]) -> None:
    """Remove the directories in `folder` of jobs that are over: their results are objects.

    Also what tasks that were killed have left. Raises HaganeError, OSError.
    """
    database, answers = StoreAddress.in_process(folder, variables).databases()
    try:
        jobs = Jobs(database)
        for directory in folder.iterdir():
            with (directory / WORKER_LOCK).open("w") as lock:
                try:
                    # Its worker may still be at it.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if jobs.status(directory.name) in ("succeeded", "failed", "cancelled"):
                    shutil.rmtree(directory, ignore_errors=True)
    finally:
        database.close()
        answers.close()


def _is_local(store: Store, job: Job) -> bool:
    return state_mirror(store, job) is None


async def _next(answers: Any) -> int:
    try:
        return int(await (await anext(answers)))
    except (RayError, StopAsyncIteration):
        return _LOST
