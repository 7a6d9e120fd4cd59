"""A job's specification with the paths of this machine. Needs no torch."""

from __future__ import annotations

from hagane.store.jobs import Job
from hagane.store.store import Store
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.reinforce.spec import read_spec


def local_spec(store: Store, job: Job) -> FineTuneSpec:
    """The specification of a fine-tuning job, whose files are fetched if another server has them.

    Raises as `Files.local` does.
    """
    spec = read_spec(job.spec)
    if not store.files.shared:
        return spec
    files = {"training_file": store.files.local(job.training_file)}
    if job.validation_file is not None:
        files["validation_file"] = store.files.local(job.validation_file)
    return spec.model_copy(update=files)
