"""A job's state as an object: another machine goes on from it, bit for bit."""

from __future__ import annotations

import json
import time

import pytest
from hagane.store.blobs import Blobs
from hagane.store.jobs import Job
from hagane.store.store import Store, StoreAddress
from hagane.system.errors import NotFoundError, TrainingInterrupted
from hagane.training.finetune.loop import finetune
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.state_mirror import StateMirror, forget_states


class Preempted:
    """Keeps the state as a worker does, and dies after a step: without another word."""

    def __init__(self, mirror: StateMirror, after: int | None) -> None:
        self.mirror, self.after, self.steps = mirror, after, []

    def progress(self, report):
        self.steps.append(report.step)
        self.mirror.keep()

    def checkpoint(self, report):
        pass

    def interrupted(self):
        if len(self.steps) == self.after:
            raise TrainingInterrupted("killed")
        return False


@pytest.fixture
def spec(tiny_model_dir, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"Line {n} of the file."}) for n in range(12)))
    return FineTuneSpec(
        model=tiny_model_dir, training_file=path, n_epochs=2, batch_size=4, rank=2,
        checkpoint_every=2, threads=1,
    )  # fmt: skip


def test_a_preempted_run_ends_elsewhere_with_the_same_bits(spec, tmp_path):
    blobs = Blobs(f"file://{tmp_path / 'blobs'}")
    whole = finetune(spec, tmp_path / "whole", Preempted(StateMirror(blobs, "x", tmp_path), None))

    first = tmp_path / "first" / "job"
    mirror = StateMirror(blobs, "job", first)
    mirror.fetch()  # nothing was stored yet
    with pytest.raises(TrainingInterrupted):
        finetune(spec, first, Preempted(mirror, 4))

    second = tmp_path / "second" / "job"
    second.mkdir(parents=True)
    (second / "left").write_text("of another attempt")
    elsewhere = tmp_path / "elsewhere.jsonl"
    elsewhere.write_bytes(spec.training_file.read_bytes())
    mirror = StateMirror(blobs, "job", second)
    mirror.fetch()
    listener = Preempted(mirror, None)
    moved = finetune(spec.model_copy(update={"training_file": elsewhere}), second, listener)
    assert listener.steps[0] == 3, "not from the beginning"
    assert moved.digest == whole.digest
    assert [path.name for path in second.parent.iterdir()] == ["job"]

    mirror.forget()
    with pytest.raises(NotFoundError):
        blobs.get("job-states/job", tmp_path / "none")


def test_states_stay_as_long_as_a_job_may_go_on(tmp_path):
    blobs = f"file://{tmp_path / 'blobs'}"
    store = Store.open(StoreAddress(tmp_path / "data", blob_url=blobs))
    forget_states(store.blobs, store.jobs)  # none yet
    long_ago = int(time.time()) - 40 * 86_400
    jobs = {
        "running": {"status": "running"},
        "paused": {"status": "paused"},
        "failed": {"status": "failed", "finished_at": int(time.time())},
        "given-up": {"status": "failed", "finished_at": long_ago},
        "cancelled": {"status": "cancelled", "finished_at": int(time.time())},
        "succeeded": {"status": "succeeded", "finished_at": int(time.time())},
    }
    (tmp_path / "state").write_bytes(b"x")
    for name, values in jobs.items():
        store.jobs.add(Job(name, 1, model="tiny", training_file="f", request={}, spec={}, **values))
        store.blobs.put(f"job-states/{name}", tmp_path / "state")
    store.blobs.put("job-states/of-another-database", tmp_path / "state")
    forget_states(store.blobs, store.jobs)
    assert sorted(store.blobs.names("job-states")) == [
        "failed", "of-another-database", "paused", "running",
    ]  # fmt: skip
    store.close()
