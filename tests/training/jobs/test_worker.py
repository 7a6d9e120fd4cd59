"""A worker's handling of a run's end. The run itself is played; tests of the API run real ones."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import subprocess
import time

import pytest
from hagane.store.blobs import Blobs
from hagane.store.catalogue import Catalogue
from hagane.store.jobs import Job, new_job_id
from hagane.store.paging import Paging
from hagane.store.store import Store
from hagane.system.errors import TrainingError, TrainingInterrupted
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.state_mirror import StateMirror
from hagane.training.jobs.worker import StoreListener, heartbeat, work
from hagane.training.jobs.workers import WORKER_LOCK, worker_command
from hagane.training.report.listener import CheckpointReport, FineTuneResult, StepReport


@pytest.fixture
def store(tmp_path):
    opened = Store.open(tmp_path / "data")
    yield opened
    opened.close()


@pytest.fixture
def play(store, tmp_path):
    """Works off a running job whose run is the function given."""

    def start(run, promote: str = "if_better", **spec) -> Job:
        whole = {"model": str(tmp_path), "training_file": "f", "device": "cpu", **spec}
        request = {"extra": {"promote": promote}}
        job = Job(new_job_id(), 1, "running", "tiny", "file", request, whole)
        store.jobs.add(job)
        work(store, job, StoreListener(store, job, 3), 0.1, finetune=run)
        return store.jobs.get(job.id)

    return start


def ends_with(base: float, new: float, digest: str | None = "d"):
    def run(spec, directory, listener) -> FineTuneResult:
        (directory / "adapter").mkdir(parents=True)
        return FineTuneResult(directory / "adapter", digest, 8, 100, base, new, 8)

    return run


@pytest.mark.parametrize(
    ("promote", "base", "new", "live"),
    [
        ("if_better", 2.0, 1.9, True),
        ("if_better", 2.0, 2.0, False),
        ("if_better", 2.0, float("nan"), False),
        ("always", 2.0, 3.0, True),
        ("manual", 2.0, 1.0, False),
    ],
)
def test_the_gate(store, play, promote, base, new, live):
    job = play(ends_with(base, new), promote)
    assert (job.status, job.trained_tokens) == ("succeeded", 100)
    assert job.result["promoted"] is live
    assert job.fine_tuned_model == (job.model_name if live else None)
    catalogue = Catalogue(store.database, "tiny")
    assert (catalogue.resolve(job.model_name) is not None) is live
    store.artifacts.promote(job.model_name)
    assert catalogue.resolve(job.model_name).digest == "d"
    assert store.jobs.get(job.id).fine_tuned_model == job.model_name


def test_a_model_trained_whole_goes_live_as_adapters_do(store, play):
    job = play(ends_with(2.0, 1.0, digest=None), full=True)
    assert (job.status, job.fine_tuned_model) == ("succeeded", job.model_name)
    # It needs no base: a server of another one has it too.
    for base in ("tiny", "another"):
        served = Catalogue(store.database, base).resolve(job.model_name)
        assert str(served.model_directory) == job.result["directory"]
        assert (served.root, served.adapter_directory, served.digest) == ("tiny", None, None)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            TrainingError("loss is NaN", code="non_finite_loss"),
            "non_finite_loss",
            "loss is NaN",
        ),
        (TrainingError("the disk is full", code="disk_full"), "disk_full", "the disk is full"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "free some of it"),
        (OSError(errno.EIO, "broken disk"), "training_error", "broken disk"),
        (ValueError("unforeseen"), "training_error", "unforeseen"),
    ],
)
def test_failures_give_their_reason_and_free_what_is_half_written(store, play, error, code, words):
    def run(spec, directory, listener) -> FineTuneResult:
        (directory / "state").mkdir(parents=True)
        for name in ("checkpoint.pt", "checkpoint.partial", ".adapter.safetensors.partial"):
            (directory / "state" / name).write_bytes(b"x")
        raise error

    job = play(run)
    assert job.status == "failed"
    assert job.error["code"] == code
    assert words in job.error["message"]
    left = [path.name for path in (store.job_directory(job.id) / "state").iterdir()]
    assert left == ["checkpoint.pt"]


def test_a_deleted_base_model_fails_the_job(store, tmp_path):
    examples = tmp_path / "examples.jsonl"
    examples.write_text('{"text": "one"}\n{"text": "two"}\n')
    spec = {"model": str(tmp_path / "gone"), "training_file": str(examples), "device": "cpu"}
    job = Job(new_job_id(), 1, "running", "tiny", "file", {"extra": {}}, spec)
    store.jobs.add(job)
    work(store, job, StoreListener(store, job, 3), 0.1)
    failed = store.jobs.get(job.id)
    assert failed.error["code"] == "invalid_model"
    assert "gone" in failed.error["message"]


def step(number: int, valid: float | None = None) -> StepReport:
    return StepReport(number, 9, 1.5, 0.5, valid, valid, 1e-3, 10.0, 1000, 50, 3.0)


def test_steps_are_told_once_however_often_they_run(store, play, tmp_path):
    def run(spec, directory, listener) -> FineTuneResult:
        for number in (1, 2, 3):
            listener.progress(step(number, 1.25 if number == 2 else None))
        raise TrainingInterrupted("the worker died here")

    with pytest.raises(TrainingInterrupted):
        play(run)
    job = store.jobs.list(Paging()).items[0]
    assert job.progress["step"] == 2  # step 3 was not written yet
    listener = StoreListener(store, job, 3)
    for number in (2, 3, 4):
        listener.progress(step(number))
    listener.stop()
    assert listener.interrupted()
    events = store.jobs.events(job.id, Paging(newest_first=False)).items
    assert [event.data["step"] for event in events] == [1, 2, 3, 4]
    assert "validation loss=1.2500" in events[1].message


def test_a_checkpoint_is_entered_with_its_content_s_digest(store, play, tmp_path):
    directory = tmp_path / "step-2"
    directory.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (directory / name).write_bytes(b"x")

    def run(spec, folder, listener) -> FineTuneResult:
        listener.progress(step(2, 1.0))
        listener.checkpoint(CheckpointReport(2, directory, {"valid_loss": 1.0}))
        raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        play(run)
    job = store.jobs.list(Paging()).items[0]
    (checkpoint,) = store.jobs.checkpoints(job.id, Paging()).items
    assert (checkpoint.name, checkpoint.step) == (job.checkpoint_name(2), 2)
    served = Catalogue(store.database, "tiny").resolve(checkpoint.name)
    assert served.digest == checkpoint.digest != ""
    assert checkpoint.metrics == {"step": 2, "valid_loss": 1.0}


def test_a_job_that_left_the_running_state_interrupts_its_run(store, play):
    seen = []

    def run(spec, directory, listener) -> FineTuneResult:
        seen.append(listener.interrupted())
        listener.progress(step(1))
        job = store.jobs.first("running")
        store.jobs.transition(job.id, ("running",), "cancelled")
        seen.append(listener.interrupted())
        return ends_with(2.0, 1.0)(spec, directory, listener)

    job = play(run)
    assert seen == [False, True]
    assert job.status == "cancelled"
    assert store.artifacts.list() == []


def test_a_worker_with_nothing_to_do_ends_in_peace(store):
    job = Job(new_job_id(), 1, "cancelled", "tiny", "file", {}, {})
    store.jobs.add(job)
    command = worker_command(store.directory, job.id, JobOptions())
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as worker:
        assert (worker.wait(60), worker.stderr.read()) == (0, b"")


def test_a_worker_that_waits_for_another_shows_that_it_lives(store):
    job = Job(new_job_id(), 1, "queued", "tiny", "file", {}, {})
    store.jobs.add(job)
    command = worker_command(store.directory, job.id, JobOptions())
    with (store.directory / WORKER_LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
            until = time.monotonic() + 60
            while store.jobs.get(job.id).heartbeat_at is None:
                assert time.monotonic() < until
                time.sleep(0.02)
            assert store.jobs.status(job.id) == "queued"
            store.jobs.transition(job.id, ("queued",), "cancelled")
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert worker.wait(60) == 0


async def test_the_heartbeat_outlives_a_database_that_fails(store):
    job = Job(new_job_id(), 1, "running", "tiny", "file", {}, {})
    store.jobs.add(job)
    rename(store, "jobs", "elsewhere")
    loop = heartbeat(store, job)
    loop.start()
    async with asyncio.timeout(20):
        while not loop.failing:
            await asyncio.sleep(0.01)
        rename(store, "elsewhere", "jobs")
        while not store.jobs.get(job.id).heartbeat_at:
            await asyncio.sleep(0.01)
    assert loop.failures
    await loop.stop()


def rename(store, old: str, new: str) -> None:
    with store.database.write() as connection:
        connection.exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")


def test_a_state_that_cannot_be_stored_is_a_warning_and_the_run_goes_on(store, tmp_path):
    job = Job(new_job_id(), 1, "running", "tiny", "file", {}, {"method": "supervised"})
    store.jobs.add(job)
    directory = store.job_directory(job.id)
    (directory / "state").mkdir(parents=True)
    (directory / "state" / "run.pt").write_bytes(b"x")
    blobs = Blobs(f"file://{tmp_path / 'blobs'}")
    obstacle = tmp_path / "blobs" / "job-states"
    obstacle.write_bytes(b"")
    listener = StoreListener(store, job, 3, StateMirror(blobs, job.id, directory))
    for number in (1, 2, 3):
        listener.progress(step(number))
        assert not listener.interrupted()
    obstacle.unlink()
    listener.keep_state(last=True)
    assert blobs.has(f"job-states/{job.id}")
    events = store.jobs.events(job.id, Paging(newest_first=False)).items
    told = [(event.level, event.message) for event in events if event.type == "message"]
    (first, warning), (second, relief) = told
    assert (first, second) == ("warn", "info")
    assert "could not be stored" in warning
    assert "again" in relief
