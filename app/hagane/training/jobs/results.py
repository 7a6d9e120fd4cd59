"""Write a job's result file in OpenAI's format, a CSV of its steps. Needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from hagane.store.files import StoredFile
from hagane.store.jobs import Event, Job
from hagane.store.paging import Paging
from hagane.store.store import Store

_COLUMNS = {
    "step": "step",
    "train_loss": "train_loss",
    "token_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_token_accuracy": "valid_mean_token_accuracy",
    "learning_rate": "learning_rate",
}
_REWARD_COLUMNS = (
    "train_reward_mean",
    "answer_tokens_mean",
    "truncated_share",
    "grader_error_share",
    "divergence_mean",
    "clipped_share",
    "logprob_difference_mean",
    "logprob_difference_max",
)
_PAGE = 1000


def write_results(store: Store, job: Job) -> StoredFile:
    """Store a CSV with a row for every step among the job's events."""
    table = io.StringIO()
    writer = csv.writer(table)
    rewarded = _REWARD_COLUMNS if job.spec.get("method") == "reinforcement" else ()
    writer.writerow([*_COLUMNS.values(), *rewarded])
    for event in _events(store, job):
        if event.type == "metrics":
            figures = event.data.get("reinforcement") or {}
            values = [event.data.get(key) for key in _COLUMNS]
            writer.writerow([*values, *(figures.get(key) for key in rewarded)])
    with store.files.upload() as upload:
        upload.write(table.getvalue().encode())
        return upload.finish(f"step_metrics-{job.id}.csv", "fine-tune-results")


def _events(store: Store, job: Job) -> Iterator[Event]:
    after, more = None, True
    while more:
        page = store.jobs.events(job.id, Paging(after, _PAGE, newest_first=False))
        yield from page.items
        after, more = (page.items[-1].id if page.items else None), page.has_more
