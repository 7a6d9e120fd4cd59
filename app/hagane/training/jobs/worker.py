"""One job in a process of its own: between the store and `finetune` or `pretrain`.

Started by `hagane.training.jobs.supervisor` as
`python -m hagane.training.jobs.worker DATA_DIR JOB_ID OPTIONS`, the last a `JobOptions` as JSON.
The supervisor holds the other end of its standard input: when that closes, the server is gone, and
so is the worker. A lock in the data directory lets one worker run at a time on this machine, also
across servers. Servers of several machines share a database: a job is one server's at a time, and
its worker stops when it is another's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from hagane.lora.config import adapter_digest
from hagane.store.artifacts import ServedArtifact
from hagane.store.jobs import Event, Job, JobCheckpoint, Status
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import (
    DiskFullError,
    HaganeError,
    RankLostError,
    StoreUnavailableError,
    TrainingInterrupted,
)
from hagane.system.files import full, is_full
from hagane.system.logging import configure_logging, request_id
from hagane.system.loops import BackgroundLoop
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.allowance import confine, find_gpu
from hagane.training.jobs.gate import judgement, opens
from hagane.training.jobs.local_spec import local_spec
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.priority import step_back
from hagane.training.jobs.results import write_results
from hagane.training.jobs.state_mirror import StateMirror, state_mirror
from hagane.training.jobs.workers import WORKER_LOCK
from hagane.training.pretrain.config import PretrainConfig
from hagane.training.reinforce.spec import ReinforceSpec, read_spec
from hagane.training.report.listener import (
    CheckpointReport,
    FineTuneResult,
    PretrainReport,
    StepReport,
    describe_step,
)

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
_FLUSH_SECONDS = 0.5
_ATTEMPTS = 5
_PATIENCE_SECONDS = 1.0
_RUNNING: tuple[Status, ...] = ("running",)

T = TypeVar("T")
FineTune = Callable[[FineTuneSpec, Path, "StoreListener"], FineTuneResult]


class StoreListener:
    """Writes what the run reports to the store, several steps in one transaction.

    Steps that an earlier worker already reported are skipped. With `mirror`, what the run goes on
    from is kept for workers on other machines.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        kept_checkpoints: int,
        mirror: StateMirror | None = None,
    ) -> None:
        self._store, self._jobs, self.mirror = store, store.jobs, mirror
        self._job = job
        self._kept_checkpoints = kept_checkpoints
        self._reported: int = (job.progress or {}).get("step", 0)
        self._events: list[Event] = []
        self._progress: dict[str, Any] = {}
        self._flushed = 0.0
        self._stopping = False

    def stop(self, *_: object) -> None:
        """Make `interrupted` true from the next step on. Usable as a signal handler."""
        self._stopping = True

    def progress(self, report: StepReport | PretrainReport) -> None:
        data = asdict(report)
        if report.step > self._reported:
            self._reported = report.step
            self._events.append(Event(describe_step(report), type="metrics", data=data))
        self._progress = data
        if isinstance(report, PretrainReport) and report.bits_per_byte is not None:
            # The run has written a checkpoint, so earlier deaths no longer count.
            self._flush(deaths=0)
        elif _validated(report) or time.monotonic() > self._flushed + _FLUSH_SECONDS:
            self._flush()
        self.keep_state()

    def keep_state(self, *, last: bool = False) -> None:
        """Store what the run goes on from, if it was saved since; as `StateMirror.attempt`."""
        event = None if self.mirror is None else self.mirror.attempt(at_once=last)
        if event is not None:
            patiently(lambda: self._jobs.record(self._job.id, [event], held=self._job))

    def checkpoint(self, report: CheckpointReport) -> None:
        name = self._job.checkpoint_name(report.step)
        whole = read_spec(self._job.spec).full
        digest = "" if whole else adapter_digest(report.directory)
        metrics = {"step": report.step, **report.metrics}
        made = JobCheckpoint(name, report.step, str(report.directory), digest, metrics)
        event = Event(f"Checkpoint created at step {report.step}", data={"step": report.step})
        job, kept = self._job, self._kept_checkpoints

        def add() -> bool:
            with self._store.sharing(report.directory, digest):
                return self._jobs.add_checkpoint(job.id, made, event, held=job)

        if not patiently(add):
            # Another server's by now: the next step ends the run.
            return
        for pruned in patiently(lambda: self._jobs.prune_checkpoints(job.id, kept)):
            shutil.rmtree(pruned.directory, ignore_errors=True)
            patiently(partial(self._store.forget_adapters, [pruned.digest]))

    def interrupted(self) -> bool:
        held = patiently(lambda: self._jobs.is_held(self._job.id, self._job.server))
        if held and not self._stopping:
            return False
        self._flush()
        return True

    def _flush(self, **values: Any) -> None:
        values |= {"progress": self._progress}
        job = self._job
        patiently(lambda: self._jobs.record(job.id, self._events, held=job, **values))
        self._events, self._flushed = [], time.monotonic()


def patiently(action: Callable[[], T]) -> T:
    """The result of `action`, once the database can be reached; the run stands still until then.

    What may have been done before the connection broke is done again.
    """
    while True:
        try:
            return action()
        except StoreUnavailableError as error:
            logger.warning("%s The run waits for it.", error)
            time.sleep(_PATIENCE_SECONDS)


def _validated(report: StepReport | PretrainReport) -> bool:
    return isinstance(report, StepReport) and report.valid_loss is not None


def work(
    store: Store,
    job: Job,
    listener: StoreListener,
    gpu_memory_fraction: float,
    finetune: FineTune | None = None,
) -> None:
    """Train, and store the result. Raises TrainingInterrupted when asked to stop.

    `finetune` is what trains in a fine-tuning job; the product's own unless given.
    """
    try:
        confine(find_gpu(job.spec["device"]), gpu_memory_fraction)
        if job.kind == "pretraining":
            _pretrain(store, job, listener)
        else:
            _finetune(store, job, listener, finetune or _train)
    except TrainingInterrupted:
        raise
    except RankLostError as error:
        # As if this worker had died: the supervisor starts another.
        patiently(partial(store.jobs.record, job.id, [Event(str(error), "warn")], held=job))
        sys.exit(1)
    except Exception as error:
        logger.exception("job %s failed", job.id)
        _fail(store, job, error)


def _train(spec: FineTuneSpec, directory: Path, listener: StoreListener) -> FineTuneResult:
    # Importing these takes seconds, which a job that cannot start should not cost.
    if isinstance(spec, ReinforceSpec):
        from hagane.training.reinforce.loop import reinforce

        return reinforce(spec, directory, listener)
    from hagane.training.finetune.loop import finetune

    return finetune(spec, directory, listener)


def _finetune(store: Store, job: Job, listener: StoreListener, finetune: FineTune) -> None:
    directory = store.job_directory(job.id)
    spec = patiently(lambda: local_spec(store, job))
    if (mirror := listener.mirror) is not None:
        patiently(mirror.fetch)
    try:
        result = finetune(spec, directory, listener)
    except TrainingInterrupted:
        listener.keep_state(last=True)
        raise
    _succeed(store, job, result)
    if mirror is not None:
        # If it cannot now, the server will when it looks for such.
        with contextlib.suppress(HaganeError):
            mirror.forget()


def _pretrain(store: Store, job: Job, listener: StoreListener) -> None:
    from hagane.training.pretrain.loop import pretrain

    config = PretrainConfig.model_validate(job.spec)
    result = pretrain(config, listener)
    # Jobs of earlier versions have neither.
    policy = job.request.get("promote", "if_better")
    most = job.request.get("max_bits_per_byte")
    promoted, model = opens(policy, most, result), None
    if promoted:
        model = ServedArtifact.pretrained(job.id, job.pretrained_name, result.directory)
        # Before the success is stored: a link without a finished job does no harm.
        store.published.publish(model.name, model.path)
    outcome = {**asdict(result), "directory": str(result.directory), "promoted": promoted}
    event = Event(judgement(job.pretrained_name, promoted, most, result), data=outcome)
    events = (event, Event("The job has successfully completed"))
    values = {
        "fine_tuned_model": job.pretrained_name if promoted else None,
        "trained_tokens": config.steps * config.batch_rows * config.sequence_length,
        "result": outcome,
    }
    patiently(lambda: store.jobs.succeed(job.id, model, events, held=job, **values))


def _succeed(store: Store, job: Job, result: FineTuneResult) -> None:
    promoted = _passes(job, result)
    digest = result.digest or ""
    outcome = {
        "directory": str(result.directory),
        "digest": result.digest,
        "promoted": promoted,
        "step": result.step,
        "steps": result.steps,
        "base_valid_loss": result.base_valid_loss,
        "valid_loss": result.valid_loss,
        "files": [patiently(lambda: write_results(store, job)).id],
    }
    made = ServedArtifact(
        job.model_name, job.model, str(result.directory), digest, promoted, job.id
    )
    ending = Event("The job has successfully completed")
    events = (*_end(job, result), _outcome(job, outcome), ending)
    values = {
        "fine_tuned_model": job.model_name if promoted else None,
        "trained_tokens": result.trained_tokens,
        "result": outcome,
    }

    def succeed() -> None:
        with store.sharing(result.directory, digest):
            store.jobs.succeed(job.id, made, events, held=job, **values)

    patiently(succeed)


def _end(job: Job, result: FineTuneResult) -> tuple[Event, ...]:
    """An event if the run ended before its last step."""
    planned = (job.plan or {}).get("steps", 0)
    if result.steps >= planned:
        return ()
    return (Event(f"Ended after step {result.steps} of {planned}: checkpoints got no better"),)


def _outcome(job: Job, outcome: dict[str, Any]) -> Event:
    rewarded = job.spec.get("method") == "reinforcement"
    kind, sign = ("reward", -1) if rewarded else ("loss", 1)
    judged = (
        f"the checkpoint at step {outcome['step']}: validation {kind} "
        f"{sign * outcome['valid_loss']:.4f}, the base model's "
        f"{sign * outcome['base_valid_loss']:.4f}"
    )
    if outcome["promoted"]:
        text = f"New fine-tuned model created: {job.model_name} ({judged})"
        return Event(text, data=outcome)
    text = f"{job.model_name} is kept but not promoted ({judged})"
    return Event(text, "warn", data=outcome)


def _passes(job: Job, result: FineTuneResult) -> bool:
    """Whether the job's gate lets the result go live; a NaN loss never passes."""
    policy = job.request["extra"]["promote"]
    if policy == "if_better":
        return result.valid_loss < result.base_valid_loss
    return bool(policy == "always")


def _fail(store: Store, job: Job, error: Exception) -> None:
    """Store the reason; remove half-written files first, since they may have filled the disk."""
    for half in store.job_directory(job.id).rglob("*.partial"):
        with contextlib.suppress(OSError):
            half.unlink()
    if not isinstance(error, HaganeError) and is_full(error):
        error = full(store.job_directory(job.id))
    code = error.code if isinstance(error, HaganeError) else "training_error"
    message = str(error) if isinstance(error, HaganeError) else f"{type(error).__name__}: {error}"
    param = "training_file" if code == "invalid_file" else None
    reason = {"code": code, "message": message, "param": param}
    event = Event(f"The job failed: {message}", "error", data=reason)
    for attempt in range(_ATTEMPTS):
        try:
            store.jobs.transition(job.id, _RUNNING, "failed", event, held=job, error=reason)
            return
        except Exception:
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(1)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Wait until no other worker uses this directory. The kernel releases a dead one's lock."""
    with (directory / WORKER_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _end_with_the_server() -> None:
    # Not sys.stdin: this thread would hold its lock while the interpreter shuts down.
    while os.read(0, 1):
        continue
    os._exit(1)


def heartbeat(store: Store, job: Job) -> BackgroundLoop:
    """The loop that shows the supervisor that the worker of `job` lives."""

    async def beat() -> float:
        store.jobs.record(job.id, held=job, heartbeat_at=time.time())
        return HEARTBEAT_SECONDS

    return BackgroundLoop("worker heartbeat", beat)


def _beat(store: Store, job: Job) -> None:
    asyncio.run(heartbeat(store, job).run())


def main(directory: Path, job_id: str, options: JobOptions) -> None:
    # Of whatever has started the server: a job has ranks of its own.
    os.environ.pop("WORLD_SIZE", None)
    step_back()
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    configure_logging(options.log_level, options.log_format)
    request_id.set(job_id)
    store = Store.open(StoreAddress.in_process(directory, os.environ))
    # From here on, since it may wait for the worker of another server.
    threading.Thread(target=_beat, args=(store, store.jobs.get(job_id)), daemon=True).start()
    with _alone(directory):
        started = Event("Fine-tuning job started")
        job = store.jobs.get(job_id)
        if job.status == "running":
            started = Event("Fine-tuning goes on from the last checkpoint")
        waiting: tuple[Status, ...] = ("queued", "running")
        now = time.time()
        if not store.jobs.transition(
            job_id, waiting, "running", started, held=job, heartbeat_at=now
        ):
            return
        if options.threads is not None:
            job = replace(job, spec=job.spec | {"threads": options.threads})
        listener = StoreListener(store, job, options.kept_checkpoints, state_mirror(store, job))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, listener.stop)
        with contextlib.suppress(TrainingInterrupted):
            work(store, job, listener, options.gpu_memory_fraction)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], JobOptions.model_validate_json(sys.argv[3]))
    except DiskFullError as error:
        sys.exit(str(error))
