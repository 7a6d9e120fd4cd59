"""Builds data sets in a process of their own, so that large ones do not slow the streams.

`python -m hagane.training.datasets.worker DIRECTORY` takes a Task as JSON on its standard input and
answers with the built files, or with a preview. Needs no torch.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from hagane.store.store import StoreAddress
from hagane.system.errors import InvalidRequestError, TrainingError
from hagane.training.datasets.spec import DatasetSpec
from hagane.training.jobs.inspection import exit_reason, spawn_process


class Edit(BaseModel):
    """Changes of a data set: records without those named, other answers for some.

    `files` are the ids of its training and validation file; a record is named by its `source`.
    """

    files: list[str | None]
    remove: list[str] = []
    answers: dict[str, str] = {}


class Task(BaseModel):
    """Build a data set from answers, or from a data set by an edit. `preview` records are shown."""

    name: str
    spec: DatasetSpec
    preview: int | None = None
    edit: Edit | None = None


@dataclass(frozen=True)
class Built:
    """The ids and hashes of the files that were written, the counts, and previewed records."""

    card: dict[str, Any]
    records: list[dict[str, Any]]
    files: list[str | None]
    sha256: list[str]


async def build(address: StoreAddress, task: Task) -> Built:
    """Do `task` on the store at `address`. Raises TrainingError, or InvalidRequestError."""
    process = await spawn_process(
        sys.executable,
        "-m",
        "hagane.training.datasets.worker",
        str(address.directory),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        variables=address.environment,
    )
    try:
        output, _ = await process.communicate(task.model_dump_json().encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise TrainingError(
            f"building the data set ended with {exit_reason(process.returncode)}; the log says "
            "more",
            code="build_failed",
        )
    answer = json.loads(output)
    if "error" in answer:
        raise InvalidRequestError(answer["error"], param=answer["param"])
    return Built(**answer)
