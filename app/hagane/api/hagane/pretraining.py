"""/admin/pretraining/jobs: models from text, in the queue of the fine-tuning jobs. Admin only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from hagane.api.access import guarded_router
from hagane.api.fields import Body
from hagane.api.openai import fine_tuning
from hagane.api.openai.fine_tuning import Limit
from hagane.api.openai.fine_tuning_schemas import describe_job
from hagane.api.serving import Serving, get_serving
from hagane.api.stored_models import stored_model
from hagane.store.artifacts import ServedArtifact
from hagane.store.jobs import Event, Job, new_job_id
from hagane.store.paging import Paging
from hagane.system.errors import InvalidRequestError
from hagane.training.jobs.gate import Policy
from hagane.training.pretrain.config import PretrainConfig

router = guarded_router()

_JOBS = "/admin/pretraining/jobs"
_JOB = _JOBS + "/{job_id}"


class PretrainingBody(Body):
    """`config` has the keys of `hagane pretrain`'s TOML file but `output`.

    A corpus' `path` is a path on the server or the id of an uploaded file; `start_from` may also be
    the name of a model in the store, or of one that an earlier job made. `promote` is the gate:
    whether the model gets a name and goes live always, if held-out text costs it at most
    `max_bits_per_byte` and less than the model it started from, or when asked to.
    """

    # Also the beginning of a file's name, which ends in the job's id.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "pretrained"
    config: dict[str, Any]
    promote: Policy = "if_better"
    max_bits_per_byte: Annotated[float, Field(strict=True, gt=0)] | None = None
    metadata: dict[str, str] | None = None


@router.post(_JOBS)
def create_job(body: PretrainingBody, request: Request) -> dict[str, Any]:
    """Queue a job. Raises InvalidRequestError naming the key at fault."""
    serving = get_serving(request)
    job_id, place = new_job_id(), serving.store.jobs.place
    config = _config(serving, body.config, job_id)
    job = Job(
        id=job_id,
        created_at=int(time.time()),
        status="queued",
        model=body.name,
        training_file="",
        request={
            "kind": "pretraining",
            "metadata": body.metadata,
            "promote": body.promote,
            "max_bits_per_byte": body.max_bits_per_byte,
            # What it reads and writes is on this machine.
            **({} if place is None else {"place": place}),
        },
        spec=config.model_dump(mode="json"),
        plan={"steps": config.steps},
        server=serving.store.database.server,
    )
    serving.store.jobs.add(job, Event(f"Created pretraining job: {job.id}"))
    return describe_job(job)


@router.get(_JOBS)
def list_jobs(request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The pretraining jobs, newest first."""
    page = get_serving(request).store.jobs.list(Paging(after, limit), kind="pretraining")
    data = [describe_job(job) for job in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


router.get(_JOB)(fine_tuning.get_job)
router.post(_JOB + "/cancel")(fine_tuning.cancel_job)
router.post(_JOB + "/pause")(fine_tuning.pause_job)
router.post(_JOB + "/resume")(fine_tuning.resume_job)
router.get(_JOB + "/events", response_model=None)(fine_tuning.list_events)


@router.post(_JOB + "/promote")
def promote(job_id: str, request: Request) -> dict[str, Any]:
    """Serve the model of a job that succeeded, under its name.

    Raises InvalidRequestError before that.
    """
    store = get_serving(request).store
    job = store.jobs.get(job_id)
    if job.kind != "pretraining" or job.status != "succeeded" or job.result is None:
        raise InvalidRequestError(
            f"Job '{job_id}' has made no model to promote (status: {job.status}).", param="job_id"
        )
    if job.fine_tuned_model is None:
        model = ServedArtifact.pretrained(
            job_id, job.pretrained_name, Path(job.result["directory"])
        )
        store.published.publish(model.name, model.path)
        store.artifacts.put(model)
        store.jobs.record(
            job_id, (Event(f"Promoted as {model.name}"),), fine_tuned_model=model.name
        )
    return describe_job(store.jobs.get(job_id))


def _config(serving: Serving, values: dict[str, Any], job_id: str) -> PretrainConfig:
    """The worker's specification. Raises RequestValidationError or InvalidRequestError."""
    _require_text(values)
    if "output" in values:
        raise InvalidRequestError(
            "'config.output' is the job's own directory; leave it out.", param="config.output"
        )
    threads = serving.settings.training_threads or max(1, (os.cpu_count() or 1) // 2)
    own = {"output": serving.store.job_directory(job_id) / "model", "threads": threads}
    if isinstance(start := values.get("start_from"), str):
        own["start_from"] = stored_model(serving, start, "config.start_from")
        values = {key: value for key, value in values.items() if key != "start_from"}
    try:
        config = PretrainConfig.model_validate(own | values)
    except ValidationError as error:
        raise RequestValidationError(
            [{**e, "loc": ("body", "config", *e["loc"])} for e in error.errors()]
        ) from None
    files = serving.store.files
    corpora = []
    for number, corpus in enumerate(config.corpora):
        if str(corpus.path).startswith("file-"):
            stored = files.get(str(corpus.path))
            kind = "jsonl" if stored.filename.endswith(".jsonl") else "text"
            corpus = corpus.model_copy(update={"path": files.local(stored.id), "format": kind})
        elif not corpus.path.is_absolute():
            raise InvalidRequestError(
                f"'{corpus.path}' is neither an absolute path nor the id of an uploaded file.",
                param=f"config.corpora[{number}].path",
            )
        corpora.append(corpus)
    return config.model_copy(update={"corpora": corpora})


def _require_text(values: dict[str, Any]) -> None:
    """Refuse what no path and no name can hold. Raises InvalidRequestError."""
    try:
        whole = json.dumps(values, ensure_ascii=False)
        whole.encode()
    except (UnicodeEncodeError, ValueError, RecursionError):
        whole = "\\u0000"
    if "\\u0000" in whole:
        raise InvalidRequestError(
            "'config' has a zero byte, half a character or too many levels; send plain text.",
            param="config",
        )
