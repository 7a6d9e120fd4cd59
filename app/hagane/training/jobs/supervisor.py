"""Looks after fine-tuning jobs from inside the server: files are read, workers kept alive.

Needs no torch. Everything it knows is in the store: a restarted server continues where the one
before it was, however that ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from hagane.store.database import strikes_all
from hagane.store.jobs import Event, Job, Status
from hagane.store.store import Store
from hagane.system.errors import StoreUnavailableError, TrainingError
from hagane.system.loops import BackgroundLoop, Backoff
from hagane.training.jobs.inspection import (
    Inspection,
    Spawn,
    exit_reason,
    inspect_files,
    spawn_process,
)
from hagane.training.jobs.local_spec import local_spec
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.workers import LocalWorkers, WorkerProcess, Workers

logger = logging.getLogger(__name__)

# Workers write to the store from processes of their own, of which SQLite gives no notice.
_POLL_SECONDS = 0.25
# Without a heartbeat for this long a worker is stuck: even on a busy machine it gets some time.
_SILENCE_SECONDS = 300.0
_MOST_DEATHS = 3


class Supervisor:
    """Loops: one reads the files of new jobs, others keep workers on the oldest jobs.

    `spawn` starts processes; workers are those of this machine unless `workers` are given.
    """

    def __init__(
        self,
        store: Store,
        options: JobOptions,
        spawn: Spawn = spawn_process,
        workers: Workers | None = None,
    ) -> None:
        self._store, self._options, self._spawn = store, options, spawn
        self._workers = workers or LocalWorkers(spawn)
        self.loops = (
            BackgroundLoop("job validation", _round(self.validate_next), Backoff(1.0, 5.0)),
            *(
                BackgroundLoop("job training", _round(self.train_next), Backoff(1.0, 5.0))
                for _ in range(self._workers.most)
            ),
        )
        self._claiming = asyncio.Lock()
        # Jobs that one of the loops is at, those that wait for the end of one of them, and the
        # workers of those that are trained.
        self._taken: dict[str, Job] = {}
        self._passed: set[str] = set()
        self._running: dict[str, WorkerProcess] = {}

    def start(self) -> None:
        """Begin, in the background."""
        for loop in self.loops:
            loop.start()

    async def stop(self, grace: float) -> None:
        """End workers after their step, or after `grace` seconds; jobs stay in the queue."""
        await asyncio.gather(*(loop.stop() for loop in self.loops))
        await asyncio.gather(*(_end(worker, grace) for worker in self._running.values()))

    async def validate_next(self) -> bool:
        """Judge the files of the oldest new job; False where there is none."""
        return await self._take_on(("validating_files",), self._validate)

    async def train_next(self) -> bool:
        """Keep a worker on the oldest waiting job until it ends; False where none waits."""
        return await self._take_on(("running", "queued"), self._train)

    async def _take_on(
        self, statuses: tuple[Status, ...], step: Callable[[Job], Awaitable[None]]
    ) -> bool:
        """One step of the oldest job in one of `statuses`, which fails by what the step raises.

        A full disk or an unusable database is no fault of the job's, and raised: it waits.
        """
        async with self._claiming:
            job = await self._claim(statuses)
            if job is None:
                return False
            self._taken[job.id] = job
        try:
            await step(job)
        except Exception as error:
            if strikes_all(error):
                raise
            logger.exception("job %s fails by a fault of this program", job.id)
            # The text may be what cannot be stored.
            message = f"{type(error).__name__}: {str(error)!a}; see the server's log."
            reason = {"code": "internal_error", "message": message, "param": None}
            event = Event(f"The job failed: {message}", "error", data=reason)
            await self._move(job, statuses, "failed", event, error=reason)
        finally:
            del self._taken[job.id]
            self._passed.clear()
        return True

    async def _claim(self, statuses: tuple[Status, ...]) -> Job | None:
        """The oldest job in one of `statuses` that may start now; other servers have the others."""
        while True:
            without = {*self._taken, *self._passed}
            claim = partial(self._store.jobs.claim, *statuses, without=without)
            job = await asyncio.to_thread(claim)
            if job is None or job.status == "validating_files":
                return job
            trained = [j for j in self._taken.values() if j.status != "validating_files"]
            if self._workers.fits(self._store, job, trained):
                return job
            self._passed.add(job.id)
            await asyncio.to_thread(self._store.jobs.record, job.id, held=job, server=None)

    async def _validate(self, job: Job) -> None:
        try:
            fraction = self._options.gpu_memory_fraction
            spec = await asyncio.to_thread(local_spec, self._store, job)
            inspection = await inspect_files(spec, fraction, self._spawn)
        except TrainingError as error:
            reason = {"code": error.code, "message": str(error), "param": "training_file"}
            await self._reject(job, reason, {})
            return
        if (refusal := _refusal(inspection)) is not None:
            await self._reject(job, *refusal)
            return
        event = Event("Files validated, moving job to queued state", data=asdict(inspection))
        warnings = [Event(f"Note: {text}", "warn") for text in inspection.training["warnings"]]
        await self._move(
            job,
            ("validating_files",),
            "queued",
            event,
            *warnings,
            plan=inspection.plan,
            # Whichever server has nothing to do may run it.
            server=None,
        )

    async def _reject(self, job: Job, reason: dict[str, Any], report: dict[str, Any]) -> None:
        event = Event(reason["message"], "error", data={**reason, "report": report})
        await self._move(job, ("validating_files",), "failed", event, error=reason)

    async def _train(self, job: Job) -> None:
        worker = await self._workers.start(self._store, job, self._options)
        self._running[job.id] = worker
        try:
            code = await self._watch(worker, job)
        except Exception:
            # Nobody watches it any more; it goes on from its checkpoint under the next one.
            await _kill(worker)
            del self._running[job.id]
            raise
        del self._running[job.id]
        now = await asyncio.to_thread(self._store.jobs.get, job.id)
        if code and now.status in ("queued", "running") and now.server == job.server:
            await self._count_death(job, code)
        try:
            await asyncio.to_thread(self._forget_states)
        except OSError:
            logger.exception("what finished jobs leave could not be removed")

    def _forget_states(self) -> None:
        """Remove what a run would go on from, of jobs that never will: most of what they leave."""
        for folder in (self._store.directory / "jobs").iterdir():
            places = (folder / "state", folder / "model" / "state", *folder.glob("seed-*/state"))
            states = [path for path in places if path.is_dir()]
            if states and self._store.jobs.status(folder.name) in ("succeeded", "cancelled"):
                for state in states:
                    shutil.rmtree(state, ignore_errors=True)

    async def _watch(self, worker: WorkerProcess, job: Job) -> int:
        """Wait for the worker's end, which comes at once for jobs that are cancelled or lost.

        While the database cannot be reached, the worker waits for it as well.
        """
        ended = asyncio.ensure_future(worker.wait())
        silence = Silence()
        while not (await asyncio.wait((ended,), timeout=_POLL_SECONDS))[0]:
            try:
                now = await asyncio.to_thread(self._store.jobs.get, job.id)
            except StoreUnavailableError:
                # Nor could the worker be heard.
                silence = Silence()
                continue
            silent = silence.since(now.heartbeat_at)
            lost = now.server != job.server
            if now.status == "cancelled" or lost or silent > _SILENCE_SECONDS:
                await _kill(worker)
        return ended.result()

    async def _count_death(self, job: Job, code: int) -> None:
        why = exit_reason(code)
        event = Event(f"The worker ended with {why}", "warn")
        deaths = await asyncio.to_thread(self._store.jobs.count_death, job.id, event)
        logger.warning("the worker of job %s ended with %s", job.id, why)
        if deaths < _MOST_DEATHS:
            return
        hint = (
            "; the system most likely ran out of memory: shorten sequence_length, lower rank, or "
            "quantize the base"
            if code == -9
            else ""
        )
        reason = {
            "code": "worker_died",
            "message": f"The worker ended {deaths} times with {why} before it reached another "
            f"checkpoint{hint}.",
            "param": None,
        }
        event = Event(reason["message"] or "", "error", data=reason)
        await self._move(job, ("queued", "running"), "failed", event, error=reason)

    async def _move(self, job: Job, *arguments: Any, **values: Any) -> None:
        # Waits for other writers and for the disk.
        await asyncio.to_thread(self._store.jobs.transition, job.id, *arguments, held=job, **values)


class Silence:
    """How long a sign of life has stayed as it is.

    By the clock of this process alone: that of the machine which makes the signs may be wrong.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._sign: float | None = None
        self._changed = clock()

    def since(self, sign: float | None) -> float:
        """Seconds since the sign was another, or since this began."""
        if sign != self._sign:
            self._sign, self._changed = sign, self._clock()
        return self._clock() - self._changed


def _round(step: Callable[[], Awaitable[bool]]) -> Callable[[], Awaitable[float]]:
    """A round of a loop: at once the next where there was something to do."""

    async def run() -> float:
        return 0.0 if await step() else _POLL_SECONDS

    return run


async def _end(worker: WorkerProcess, grace: float) -> None:
    """Have it end after its step, or within `grace` seconds."""
    if worker.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        worker.terminate()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.wait(), grace)
    await _kill(worker)


async def _kill(process: WorkerProcess) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _refusal(inspection: Inspection) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Why the job cannot run, with the full report; None if nothing prevents it."""
    for param, report in (
        ("training_file", inspection.training),
        ("validation_file", inspection.validation),
    ):
        if report is not None and report["total_problems"]:
            message = _problems(report)
            return {"code": f"invalid_{param}", "message": message, "param": param}, report
    least, allowed = inspection.training["least_memory_bytes"], inspection.allowed_memory
    if least <= allowed:
        return None
    message = (
        f"The run needs about {least / 1e9:.1f} GB and may take {allowed / 1e9:.1f} GB here: "
        "shorten sequence_length, lower rank, quantize the base, or on a GPU raise "
        "job_gpu_memory_fraction."
    )
    return {"code": "out_of_memory", "message": message, "param": None}, inspection.training


def _problems(report: dict[str, Any]) -> str:
    """Every listed problem on a line of its own."""
    lines = [f"line {line}: {reason}" if line else reason for line, reason in report["problems"]]
    total = report["total_problems"]
    head = f"{total} problem{'s' if total > 1 else ''} in the file" + (
        f", the first {len(lines)} of them" if total > len(lines) else ""
    )
    return "\n".join([f"{head}:", *lines])
