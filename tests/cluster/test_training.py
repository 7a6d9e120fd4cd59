"""Workers of jobs as tasks of a Ray cluster of this process."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from dataclasses import replace

import pytest
from hagane.cli.cluster import RAY_VARIABLES
from hagane.store.jobs import Job, new_job_id
from hagane.store.paging import Paging
from hagane.store.store import Store, StoreAddress
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.options import JobOptions
from hagane.training.jobs.workers import WorkerProcess

from tests.support.cluster import ALONE, PATIENCE_SECONDS, worker_of
from tests.support.postgres import Postgres, missing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'hagane[cluster]'"
    ),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


@pytest.fixture(scope="module")
def workers():
    """Tasks with a core each."""
    with pytest.MonkeyPatch.context() as variables:
        for name, value in (RAY_VARIABLES | ALONE).items():
            variables.setenv(name, value)
        import ray
        from hagane.cluster.training import RayWorkers

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield RayWorkers(most=2, cpus=1, gpus=0)
        ray.shutdown()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder, database = tmp_path_factory.mktemp("training"), Postgres.create()
    address = StoreAddress(folder / "data", database.url(), f"file://{folder / 'blobs'}")
    opened = Store.open(address)
    yield opened
    opened.close()
    database.remove()


@pytest.fixture
def job(store, tiny_model_dir) -> Job:
    """A job of thousands of steps, whose first checkpoint is far away."""
    with store.files.upload() as upload:
        lines = (json.dumps({"text": f"Line {n} of the file."}) for n in range(400))
        upload.write("\n".join(lines).encode())
        file = upload.finish("train.jsonl", "fine-tune")
    spec = FineTuneSpec(
        model=tiny_model_dir, training_file="here", n_epochs=50, batch_size=1, threads=3,
        checkpoint_every=10_000,
    )  # fmt: skip
    request, given = {"extra": {"promote": "always"}}, spec.model_dump(mode="json")
    made = Job(new_job_id(), 1, "queued", "tiny", file.id, request, given)
    store.jobs.add(made)
    return made


async def trained(store: Store, job: Job, after: int) -> int:
    """A step later than `after` that the job has come to."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            now = await asyncio.to_thread(store.jobs.get, job.id)
            assert now.error is None
            if (now.progress or {}).get("step", 0) > after:
                return now.progress["step"]
            await asyncio.sleep(0.1)


async def ended(worker: WorkerProcess) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        await worker.wait()


async def test_a_stopped_task_saves_its_state_which_goes_with_the_job(store, job, workers):
    kept = store.directory / "tasks" / job.id
    worker = await workers.start(store, job, JobOptions())
    await trained(store, job, 2)
    assert '"threads":1' in worker_of(job.id).cmdline()[-1]
    worker.terminate()
    await ended(worker)
    assert worker_of(job.id) is None, "nor is it cut short"
    assert job.id in store.blobs.names("job-states")
    assert kept.is_dir()
    stopped = store.jobs.get(job.id)
    assert stopped.status == "running"

    worker = await workers.start(store, job, JobOptions())
    await trained(store, job, stopped.progress["step"])
    events = store.jobs.events(job.id, Paging(None, 1000)).items
    steps = [event.data["step"] for event in events if event.type == "metrics"]
    assert len(steps) == len({*steps})
    assert "Fine-tuning goes on from the last checkpoint" in {event.message for event in events}
    store.jobs.transition(job.id, ("running",), "cancelled")
    await ended(worker)
    assert not kept.exists()


def test_one_job_at_a_time_stays_on_this_machine(store, job, workers):
    whole = replace(job, spec=job.spec | {"full": True})
    text = replace(job, request={"kind": "pretraining"})
    assert workers.fits(store, whole, [job])
    assert workers.fits(store, job, [whole, text])
    assert not workers.fits(store, whole, [text])
    assert not workers.fits(store, text, [job, whole])
