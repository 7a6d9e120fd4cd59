"""The supervisor with real processes: what happens when they die."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import signal
import sqlite3
import sys
import time
from dataclasses import replace

import psutil
import pytest
import sqlalchemy as sa
from hagane.store.jobs import Job, Jobs, new_job_id
from hagane.store.paging import Paging
from hagane.store.store import Store
from hagane.system.errors import StoreUnavailableError
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs import supervisor as supervision
from hagane.training.jobs.inspection import spawn_process
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.supervisor import Silence, Supervisor
from hagane.training.jobs.workers import WorkerProcess


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "data")
    yield opened
    opened.close()


def add(store, model, file, status: str) -> Job:
    spec = FineTuneSpec(model=model, training_file=file).model_dump(mode="json")
    job = Job(new_job_id(), 1, status, "tiny", "file", {"extra": {"promote": "always"}}, spec)
    store.jobs.add(job)
    return job


def is_worker(process: psutil.Process) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and "hagane.training.jobs.worker" in process.cmdline()
    except psutil.NoSuchProcess:
        return False


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if is_worker(child)]


async def test_a_worker_that_keeps_dying_fails_the_job_and_says_why(
    store, tiny_model_dir, tmp_path
):
    job = add(store, tiny_model_dir, tmp_path / "none", "queued")
    supervisor = Supervisor(store, JobOptions())
    supervisor.start()
    killed = set()
    try:
        while not store.jobs.get(job.id).finished:
            for worker in workers():
                if worker.pid not in killed:
                    killed.add(worker.pid)
                    worker.kill()
            await asyncio.sleep(0.01)
    finally:
        await supervisor.stop(grace=1)
    failed = store.jobs.get(job.id)
    assert len(killed) == 3
    assert failed.error["code"] == "worker_died"
    assert "signal 9 (SIGKILL)" in failed.error["message"]
    assert "memory" in failed.error["message"]
    warnings = [e for e in store.jobs.events(job.id, Paging()).items if e.level == "warn"]
    assert len(warnings) == 3


class TwoAtATime:
    """Workers that do nothing until they are ended."""

    most = 2

    def __init__(self, alone: tuple[str, ...] = ()) -> None:
        self.jobs: list[str] = []
        self.alone = alone

    def fits(self, store, job, others) -> bool:
        return job.id not in self.alone or not {o.id for o in others} & {*self.alone}

    async def start(self, store, job, options) -> WorkerProcess:
        self.jobs.append(job.id)
        wait = "import sys; sys.stdin.read()"
        return await spawn_process(sys.executable, "-c", wait, stdin=asyncio.subprocess.PIPE)


async def test_as_many_jobs_run_as_there_are_workers_for(store, tmp_path):
    first, second, third = (add(store, tmp_path, tmp_path, "queued") for _ in range(3))
    supervisor = Supervisor(store, JobOptions(), workers=(workers := TwoAtATime()))
    supervisor.start()
    try:
        while len(workers.jobs) < 2:
            await asyncio.sleep(0.01)
        assert {*workers.jobs} == {first.id, second.id}
        store.jobs.transition(first.id, ("queued",), "cancelled")
        while len(workers.jobs) < 3:
            await asyncio.sleep(0.01)
        assert workers.jobs[2] == third.id
    finally:
        await supervisor.stop(grace=1)
    assert store.jobs.status(second.id) == "queued"


async def test_jobs_that_run_one_at_a_time_hold_up_no_others(store, tmp_path):
    jobs = [add(store, tmp_path, tmp_path, "queued") for _ in range(4)]
    first, second, third, last = (job.id for job in jobs)
    supervisor = Supervisor(store, JobOptions(), workers=(workers := TwoAtATime((first, second))))
    supervisor.start()
    try:
        while len(workers.jobs) < 2:
            await asyncio.sleep(0.01)
        assert {*workers.jobs} == {first, third}
        store.jobs.transition(third, ("queued",), "cancelled")
        while len(workers.jobs) < 3:
            await asyncio.sleep(0.01)
        assert workers.jobs[2] == last, "the first still runs"
        store.jobs.transition(first, ("queued",), "cancelled")
        while len(workers.jobs) < 4:
            await asyncio.sleep(0.01)
        assert workers.jobs[3] == second
    finally:
        await supervisor.stop(grace=1)


async def test_files_are_read_and_judged(store, tiny_model_dir, tmp_path):
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text("".join(json.dumps({"text": f"Once upon {n}"}) + "\n" for n in range(8)))
    bad.write_text("".join(f"no json {n}\n" for n in range(120)))
    fine, broken = (add(store, tiny_model_dir, path, "validating_files") for path in (good, bad))
    gone = add(store, tmp_path / "gone", good, "validating_files")
    supervisor = Supervisor(store, JobOptions())
    try:
        while await supervisor.validate_next():
            pass
    finally:
        await supervisor.stop(grace=1)
    assert store.jobs.get(fine.id).status == "queued"
    assert store.jobs.get(fine.id).plan["steps"] > 0
    error = store.jobs.get(broken.id).error
    assert error["code"] == "invalid_training_file"
    assert error["message"].startswith("120 problems in the file, the first 100 of them:\nline 1:")
    assert len(error["message"].splitlines()) == 101
    assert store.jobs.get(gone.id).error["code"] == "invalid_model"


@pytest.mark.parametrize(
    "last", ['{"\\ud800": 1}', '{"text": "\\ud800"}', "[" * 9000], ids=range(3)
)
async def test_no_file_stops_the_queue(store, tiny_model_dir, tmp_path, last):
    file = tmp_path / "strange.jsonl"
    file.write_text('{"text": "Once upon a time"}\n' * 8 + last + "\n")
    job = add(store, tiny_model_dir, file, "validating_files")
    assert await Supervisor(store, JobOptions()).validate_next()
    error = store.jobs.get(job.id).error
    assert error["code"] == "invalid_training_file"
    assert "\nline 9: " in error["message"]


async def test_a_fault_in_a_step_fails_its_job_and_the_queue_goes_on(store, tmp_path):
    """A specification of a later version is one that this one cannot read."""
    jobs = [
        Job(new_job_id(), 1, status, "tiny", "file", {"kind": "fine_tuning"}, {"unknown": "\ud800"})
        for status in ("validating_files", "validating_files")
    ]
    for job in jobs:
        store.jobs.add(job)
    supervisor = Supervisor(store, JobOptions())
    while await supervisor.validate_next():
        pass
    assert [store.jobs.get(job.id).error["code"] for job in jobs] == ["internal_error"] * 2


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "the disk of this file"),
        PermissionError(errno.EACCES, "not mine"),
        sa.exc.DataError("INSERT", {}, sqlite3.DataError("string or blob too big")),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("status", ["validating_files", "queued"])
async def test_an_error_of_one_job_fails_that_job_alone(
    store, tiny_model_dir, tmp_path, error, status
):
    """Raised by what starts its process, of which every job has one."""
    first, second = (add(store, tiny_model_dir, tmp_path / "none", status) for _ in range(2))
    supervisor = Supervisor(store, JobOptions(), spawn=raiser(error))
    step = supervisor.validate_next if status == "validating_files" else supervisor.train_next
    assert await step()
    failed = store.jobs.get(first.id)
    assert (failed.status, failed.error["code"]) == ("failed", "internal_error")
    assert store.jobs.first(status).id == second.id, "the next round takes the next job"


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "full"), OSError(errno.EMFILE, "too many open files"), None],
    ids=["full", "descriptors", "busy"],
)
async def test_what_strikes_all_jobs_fails_none(store, tiny_model_dir, tmp_path, error):
    if error is None:
        locked = sqlite3.OperationalError("database is locked")
        locked.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
        error = sa.exc.OperationalError("UPDATE", {}, locked)
    job = add(store, tiny_model_dir, tmp_path / "none", "queued")
    with pytest.raises(type(error)):
        await Supervisor(store, JobOptions(), spawn=raiser(error)).train_next()
    assert store.jobs.get(job.id).status == "queued"


def raiser(error: Exception):
    async def fail(*_, **__):
        raise error

    return fail


async def test_a_run_that_will_not_fit_is_refused_with_the_figure(store, tiny_model_dir, tmp_path):
    vast, good = tmp_path / "vast", tmp_path / "good.jsonl"
    shutil.copytree(tiny_model_dir, vast)
    config = json.loads((vast / "config.json").read_text())
    size = 1 << 24  # the largest that a configuration may name
    vast_shape = {"vocab_size": size, "intermediate_size": size, "num_hidden_layers": 4096}
    (vast / "config.json").write_text(json.dumps(config | vast_shape))
    good.write_text("".join(json.dumps({"text": f"Once upon {n}"}) + "\n" for n in range(8)))
    job = add(store, vast, good, "validating_files")
    supervisor = Supervisor(store, JobOptions())
    assert await supervisor.validate_next()
    error = store.jobs.get(job.id).error
    assert error["code"] == "out_of_memory"
    assert "GB" in error["message"]
    assert "job_gpu_memory_fraction" in error["message"]


async def test_finished_runs_keep_nothing_to_go_on_from(store, tiny_model_dir, tmp_path):
    jobs = {
        status: add(store, tiny_model_dir, tmp_path / "none", status)
        for status in ("succeeded", "cancelled", "failed", "paused")
    }
    for job in jobs.values():
        (store.job_directory(job.id) / "state").mkdir(parents=True)
        (store.job_directory(job.id) / "adapter").mkdir()
    # Of a job that another server's database knows, or of nobody's.
    (store.directory / "jobs" / "stray" / "state").mkdir(parents=True)
    (store.directory / "jobs" / "note.txt").touch()
    add(store, tiny_model_dir, tmp_path / "none", "queued")
    supervisor = Supervisor(store, JobOptions())
    assert await supervisor.train_next()
    left = {
        status: [path.name for path in store.job_directory(job.id).iterdir()]
        for status, job in jobs.items()
    }
    assert left["succeeded"] == left["cancelled"] == ["adapter"]
    assert sorted(left["failed"]) == sorted(left["paused"]) == ["adapter", "state"]


async def test_an_old_sign_of_life_is_not_held_against_a_new_worker(
    store, tiny_model_dir, tmp_path
):
    job = add(store, tiny_model_dir, tmp_path / "none", "running")
    store.jobs.record(job.id, heartbeat_at=1.0)
    supervisor = Supervisor(store, JobOptions())
    supervisor.start()
    try:
        while not (job := store.jobs.get(job.id)).finished:
            await asyncio.sleep(0.05)
    finally:
        await supervisor.stop(grace=1)
    assert (job.deaths, job.error["code"]) == (0, "invalid_file")


class Unreachable(Jobs):
    """Cannot be read for a while; the second time that it can, the worker is told to end."""

    def __init__(self, store, until: float, end) -> None:
        super().__init__(store.database)
        self.until, self.end, self.read = until, end, 0

    def get(self, job_id: str) -> Job:
        if time.monotonic() < self.until:
            raise StoreUnavailableError("gone")
        self.read += 1
        if self.read == 2:
            self.end()
        return super().get(job_id)


async def test_no_worker_is_to_blame_for_an_outage(store, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(supervision, "_SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(supervision, "_POLL_SECONDS", 0.05)
    job = add(store, tiny_model_dir, tmp_path / "none", "running")
    worker = await asyncio.create_subprocess_exec("sleep", "60")
    jobs = Unreachable(store, time.monotonic() + 1.2, worker.terminate)
    supervisor = Supervisor(replace(store, jobs=jobs), JobOptions())
    assert await supervisor._watch(worker, job) == -signal.SIGTERM, "not killed"


async def test_stopping_leaves_the_job_in_the_queue_and_no_process(store, tiny_model_dir, tmp_path):
    job = add(store, tiny_model_dir, tmp_path / "none", "queued")
    supervisor = Supervisor(store, JobOptions())
    supervisor.start()
    while not workers():
        await asyncio.sleep(0.01)
    await supervisor.stop(grace=0.1)
    assert not workers()
    assert store.jobs.get(job.id).status in ("queued", "running")


async def test_the_loops_outlive_a_database_that_fails(store, tiny_model_dir, tmp_path):
    """Both read the table of jobs in every round."""
    supervisor = Supervisor(store, JobOptions())
    _execute(store, "ALTER TABLE jobs RENAME TO elsewhere")
    supervisor.start()
    try:
        async with asyncio.timeout(60):
            while not all(loop.failing for loop in supervisor.loops):
                await asyncio.sleep(0.01)
            _execute(store, "ALTER TABLE elsewhere RENAME TO jobs")
            job = add(store, tiny_model_dir, tmp_path / "none", "validating_files")
            while not store.jobs.get(job.id).finished:
                await asyncio.sleep(0.01)
            assert all(loop.running and loop.failures for loop in supervisor.loops)
    finally:
        await supervisor.stop(grace=1)


def _execute(store, statement: str) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql(statement)


def test_silence_is_measured_by_one_clock_alone():
    now = 1000.0
    silence = Silence(lambda: now)
    assert silence.since(None) == 0
    now += 200
    # Signs of a machine whose clock is an hour late, or goes back.
    for sign in (-2600.0, -2595.0, -9000.0):
        assert silence.since(sign) == 0
        now += 5
        assert silence.since(sign) == 5
