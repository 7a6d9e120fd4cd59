"""The queue of jobs."""

from __future__ import annotations

import pytest
from hagane.store.artifacts import ServedArtifact
from hagane.store.jobs import Event, Job, JobCheckpoint, new_job_id
from hagane.store.paging import Paging
from hagane.system.errors import NotFoundError


def add(store, status="queued") -> Job:
    job = Job(new_job_id(), 1, status, "tiny", "file-a", {"n": 1}, {"s": 2}, suffix="mine")
    store.jobs.add(job, Event("Created"))
    return job


def test_a_job_is_read_as_it_was_written(store):
    job = add(store)
    assert store.jobs.get(job.id) == job
    with pytest.raises(NotFoundError):
        store.jobs.get("ftjob-unknown")


def test_names_follow_openai(store):
    job = add(store)
    assert job.model_name == f"ft:tiny:mine:{job.id[-8:]}"
    assert job.checkpoint_name(88) == f"{job.model_name}:ckpt-step-88"


def test_jobs_that_are_taken_are_passed_over(store):
    store.database.beat()
    first, second = add(store), add(store)
    assert store.jobs.claim("queued").id == first.id
    assert store.jobs.claim("queued", without=(first.id,)).id == second.id
    assert store.jobs.claim("queued", without=(first.id, second.id)) is None


def test_of_two_transitions_from_one_status_the_second_fails(store):
    job = add(store)
    assert store.jobs.transition(job.id, ("queued",), "running", Event("Started"))
    assert not store.jobs.transition(job.id, ("queued",), "cancelled", Event("Cancelled"))
    assert store.jobs.status(job.id) == "running"
    messages = [event.message for event in store.jobs.events(job.id, Paging()).items]
    assert messages == ["Started", "Created"]


def test_finishing_sets_the_moment_and_the_values(store):
    job = add(store, "running")
    store.jobs.transition(job.id, ("running",), "succeeded", trained_tokens=5, fine_tuned_model="m")
    done = store.jobs.get(job.id)
    assert done.finished
    assert done.finished_at is not None
    assert (done.trained_tokens, done.fine_tuned_model) == (5, "m")


def test_the_oldest_job_is_first_and_running_ones_before_it(store):
    assert store.jobs.first("running", "queued") is None
    older, newer = add(store), add(store)
    assert store.jobs.first("running", "queued").id == older.id
    store.jobs.transition(newer.id, ("queued",), "running")
    assert store.jobs.first("running", "queued").id == newer.id


def test_deaths_are_counted_since_the_last_checkpoint(store):
    job = add(store, "running")
    assert [store.jobs.count_death(job.id, Event("died", "warn")) for _ in range(2)] == [1, 2]
    store.jobs.add_checkpoint(job.id, JobCheckpoint(job.checkpoint_name(2), 2, "d", "x", {}))
    assert store.jobs.count_death(job.id, Event("died", "warn")) == 1


def test_a_checkpoint_that_is_told_again_stays_and_forgives_no_death(store):
    job = add(store, "running")
    first = JobCheckpoint(job.checkpoint_name(2), 2, "d", "x", {})
    store.jobs.add_checkpoint(job.id, first)
    store.jobs.count_death(job.id, Event("died", "warn"))
    store.jobs.add_checkpoint(job.id, JobCheckpoint(job.checkpoint_name(2), 2, "d", "x", {}))
    assert store.jobs.checkpoints(job.id, Paging()).items == [first]
    assert store.jobs.get(job.id).deaths == 1


def test_the_best_and_the_latest_checkpoints_are_kept(store):
    job, other = add(store, "running"), add(store, "running")
    for owner, losses in ((job, (2.0, 1.0, 3.0, 4.0, 5.0)), (other, (1.0, 1.0, 1.0))):
        for step, loss in enumerate(losses, 1):
            point = JobCheckpoint(
                owner.checkpoint_name(step), step, f"d{step}", "x", {"valid_loss": loss}
            )
            store.jobs.add_checkpoint(owner.id, point)
    assert [point.step for point in store.jobs.prune_checkpoints(job.id, 3)] == [3, 1]
    assert [point.step for point in store.jobs.checkpoints(job.id, Paging()).items] == [5, 4, 2]
    assert store.jobs.prune_checkpoints(job.id, 3) == []
    assert [point.step for point in store.jobs.prune_checkpoints(other.id, 1)] == [3, 2]
    assert len(store.jobs.checkpoints(job.id, Paging()).items) == 3


def test_success_enters_the_adapter_unless_the_job_was_cancelled(store):
    for status, expected in (("running", True), ("cancelled", False)):
        job = add(store, status)
        adapter = ServedArtifact(job.model_name, "tiny", "d", "x", True, job.id)
        assert store.jobs.succeed(job.id, adapter, [Event("done")], trained_tokens=9) is expected
        assert (store.artifacts.find(job.model_name) is not None) is expected
        assert store.jobs.get(job.id).status == ("succeeded" if expected else "cancelled")


def test_who_has_lost_a_job_says_nothing_about_it_any_more(store):
    job = add(store, "running")
    store.jobs.record(job.id, server="a")
    lost = store.jobs.get(job.id)
    store.jobs.record(job.id, [Event("kept")], held=lost, server="b")
    held = store.jobs.get(job.id)
    point = JobCheckpoint(job.checkpoint_name(2), 2, "d", "x", {})
    model = ServedArtifact(job.model_name, "tiny", "d", "x", True, job.id)
    assert not store.jobs.add_checkpoint(job.id, point, Event("no"), held=lost)
    store.jobs.record(job.id, [Event("no")], held=lost, progress={"step": 1})
    assert not store.jobs.transition(job.id, ("running",), "failed", Event("no"), held=lost)
    assert not store.jobs.succeed(job.id, model, [Event("no")], held=lost)
    assert store.jobs.get(job.id) == held
    assert store.jobs.checkpoints(job.id, Paging()).items == []
    assert store.artifacts.find(job.model_name) is None
    messages = [event.message for event in store.jobs.events(job.id, Paging()).items]
    assert messages == ["kept", "Created"]
    assert store.jobs.add_checkpoint(job.id, point, held=held)
    assert store.jobs.succeed(job.id, model, [], held=held)


def test_events_are_paged_per_job(store):
    job, other = add(store), add(store)
    store.jobs.record(job.id, [Event(f"step {n}") for n in range(3)], progress={"step": 3})
    assert store.jobs.get(job.id).progress == {"step": 3}
    page = store.jobs.events(job.id, Paging(limit=2, newest_first=False))
    assert [event.message for event in page.items] == ["Created", "step 0"]
    page = store.jobs.events(job.id, Paging(page.items[-1].id, 2, newest_first=False))
    assert [event.message for event in page.items] == ["step 1", "step 2"]
    assert not page.has_more
    assert len(store.jobs.events(other.id, Paging()).items) == 1
