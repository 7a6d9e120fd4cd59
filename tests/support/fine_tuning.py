"""Requests of the tests of fine-tuning jobs, and how they wait for a job."""

from __future__ import annotations

import json
import time


def examples(count: int = 24) -> bytes:
    """A training file of short chats."""
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Once upon {number}"},
                {"role": "assistant", "content": "there was a small cat " * (1 + number % 3)},
            ]
        }
        for number in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def wait(client, job_id: str, *statuses: str, seconds: float = 90):
    """The job once it has one of `statuses`; any other end fails the test."""
    deadline = time.monotonic() + seconds
    while True:
        job = client.fine_tuning.jobs.retrieve(job_id)
        if job.status in statuses:
            return job
        assert time.monotonic() < deadline, job
        assert job.status not in ("failed", "succeeded", "cancelled"), job
        time.sleep(0.05)


def supervised(**hyperparameters) -> dict:
    """The `method` of a job."""
    return {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}}
