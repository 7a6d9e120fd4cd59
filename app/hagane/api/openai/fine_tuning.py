"""/v1/fine_tuning/jobs: OpenAI's contract for training what is served. Admin only."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.openai.fine_tuning_schemas import (
    Hyperparameters,
    JobBody,
    Method,
    Preference,
    Supervised,
    describe_checkpoint,
    describe_event,
    describe_job,
)
from hagane.api.serving import Serving, get_serving
from hagane.api.sse import stream
from hagane.api.stored_models import stored_model
from hagane.models.encoder_config import EncoderConfig
from hagane.store.jobs import Event, Job, Status, new_job_id
from hagane.store.paging import Paging
from hagane.system.errors import ConflictError, InvalidRequestError, ModelNotFoundError
from hagane.training.finetune.spec import FineTuneSpec
from hagane.training.jobs.inspection import inspect_files
from hagane.training.reinforce.spec import read_spec

router = guarded_router()

_JOBS = "/v1/fine_tuning/jobs"
_JOB = _JOBS + "/{job_id}"
_EXTRA = ("body", "extra")
# Workers write events from processes of their own, of which SQLite gives no notice.
_STREAM_POLL_SECONDS = 0.25
_STREAM_PAGE = 100
_METADATA = re.compile(r"metadata\[(.+)\]")
Limit = Annotated[int, Query(ge=1, le=10_000)]


@router.post(_JOBS)
def create_job(body: JobBody, request: Request) -> dict[str, Any]:
    """Queue a job. Its files are read before it is, and a bad one fails it with a report.

    Raises InvalidRequestError naming the field at fault.
    """
    serving = get_serving(request)
    base = _base(serving, body.model)
    method = _method(body)
    seed = secrets.randbelow(1 << 31) if body.seed is None else body.seed
    job = Job(
        id=new_job_id(),
        created_at=int(time.time()),
        status="validating_files",
        model=body.model,
        suffix=body.suffix,
        training_file=body.training_file,
        validation_file=body.validation_file,
        request={
            "method": method.model_dump(exclude_none=True),
            "seed": seed,
            "metadata": body.metadata,
            "extra": body.extra.model_dump(exclude_none=True),
        },
        spec=_spec(serving, body, base, method, seed).model_dump(mode="json"),
    )
    message = f"Created fine-tuning job: {job.id}"
    validating = f"Validating training file: {job.training_file}"
    serving.store.jobs.add(job, Event(message), Event(validating))
    return describe_job(job)


@router.get(_JOBS)
def list_jobs(request: Request, after: str | None = None, limit: Limit = 20) -> dict[str, Any]:
    """The jobs, newest first; `metadata[KEY]=VALUE` keeps those that carry it."""
    wanted = {
        match[1]: value
        for key, value in request.query_params.items()
        if (match := _METADATA.fullmatch(key))
    }
    page = get_serving(request).store.jobs.list(Paging(after, limit), wanted)
    data = [describe_job(job) for job in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


@router.get(_JOB)
def get_job(job_id: str, request: Request) -> dict[str, Any]:
    """One job. Raises NotFoundError."""
    return describe_job(get_serving(request).store.jobs.get(job_id))


@router.post(_JOB + "/cancel")
def cancel_job(job_id: str, request: Request) -> dict[str, Any]:
    """End a job for good; its checkpoints stay. Raises NotFoundError or ConflictError."""
    sources: tuple[Status, ...] = ("validating_files", "queued", "running", "paused")
    return _change(request, job_id, sources, "cancelled", "The job was cancelled")


@router.post(_JOB + "/pause")
def pause_job(job_id: str, request: Request) -> dict[str, Any]:
    """Stop after the step that runs, with a checkpoint. Raises NotFoundError or ConflictError."""
    return _change(request, job_id, ("queued", "running"), "paused", "The job was paused")


@router.post(_JOB + "/resume")
def resume_job(job_id: str, request: Request) -> dict[str, Any]:
    """Queue a paused job, or one that failed in training, to go on from its last checkpoint.

    One that was refused for its memory is validated again: the limit may be another by now. Raises
    NotFoundError or ConflictError.
    """
    store = get_serving(request).store
    job = store.jobs.get(job_id)
    for name in filter(None, (job.training_file, job.validation_file)):
        if not store.files.has(name):
            raise ConflictError(
                f"The file '{name}' of this job has been deleted or has expired: make a new job.",
                code="file_gone",
            )
    if job.plan is None and (job.error or {}).get("code") == "out_of_memory":
        refused: tuple[Status] = ("failed",)
        return _change(
            request, job_id, refused, "validating_files", "The job is validated again",
            error=None, finished_at=None,
        )  # fmt: skip
    sources: tuple[Status, ...] = ("paused",) if job.plan is None else ("paused", "failed")
    return _change(
        request, job_id, sources, "queued", "The job was resumed",
        error=None, finished_at=None, deaths=0,
    )  # fmt: skip


@router.get(_JOB + "/events", response_model=None)
async def list_events(
    job_id: str,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    stream: bool = False,
) -> dict[str, Any] | EventSourceResponse:
    """The events of a job, newest first; or `stream=true`: from the beginning, as it happens.

    Raises NotFoundError.
    """
    serving = get_serving(request)
    await asyncio.to_thread(serving.store.jobs.get, job_id)
    if stream:
        return await _stream(serving, request, job_id, after)
    page = await asyncio.to_thread(serving.store.jobs.events, job_id, Paging(after, limit))
    data = [describe_event(event) for event in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


@router.get(_JOB + "/checkpoints")
def list_checkpoints(
    job_id: str, request: Request, after: str | None = None, limit: Limit = 10
) -> dict[str, Any]:
    """The checkpoints, newest first; each can be chatted with by name. Raises NotFoundError."""
    jobs = get_serving(request).store.jobs
    jobs.get(job_id)
    page = jobs.checkpoints(job_id, Paging(after, limit))
    data = [describe_checkpoint(checkpoint, job_id) for checkpoint in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


@router.get("/v1/files/{file_id}/report")
async def file_report(
    file_id: str,
    request: Request,
    model: str | None = None,
    method: Literal["supervised", "dpo", "orpo", "kto"] = "supervised",
    sequence_length: Annotated[int | None, Query(ge=8)] = None,
) -> dict[str, Any]:
    """A forecast of training on the file: bad lines, tokens, steps, time, memory.

    Raises NotFoundError, ModelNotFoundError, or TrainingError when the file cannot be read.
    """
    serving = get_serving(request)
    base = await asyncio.to_thread(_base, serving, model or serving.model.id)
    await asyncio.to_thread(serving.store.files.get, file_id)
    spec = FineTuneSpec(
        model=base,
        training_file=await asyncio.to_thread(serving.store.files.local, file_id),
        method=method,
        sequence_length=sequence_length,
        device=serving.settings.device,
    )
    async with request.app.state.inspecting:
        inspection = await inspect_files(spec, serving.settings.job_gpu_memory_fraction)
    return {"object": "file.report", "file": file_id, **asdict(inspection)}


async def _stream(
    serving: Serving, request: Request, job_id: str, after: str | None
) -> EventSourceResponse:
    events = _events(serving, job_id, after)
    return await stream(request, events, serving.settings.keep_alive_seconds)


async def _events(
    serving: Serving, job_id: str, after: str | None
) -> AsyncGenerator[dict[str, Any], None]:
    """Every event after `after`, oldest first, until the job has finished and all are sent."""
    jobs = serving.store.jobs
    while True:
        # Read before the events: all events of a finished job are stored by then.
        finished = (await asyncio.to_thread(jobs.get, job_id)).finished
        paging = Paging(after, _STREAM_PAGE, newest_first=False)
        page = await asyncio.to_thread(jobs.events, job_id, paging)
        for event in page.items:
            yield describe_event(event)
            after = event.id
        if page.has_more:
            continue
        if finished:
            return
        await asyncio.sleep(_STREAM_POLL_SECONDS)


def _base(serving: Serving, name: str) -> Path:
    """The directory or file of a model to train: the default one, or another with its own weights.

    Raises ModelNotFoundError, or InvalidRequestError for what is none.
    """
    if name == serving.model.id:
        return serving.model.directory
    found = serving.catalogue.resolve(name)
    if found is None:
        raise ModelNotFoundError(
            f"The model '{name}' does not exist here; this server trains '{serving.model.id}', and "
            "others that GET /v1/models lists.",
            param="model",
        )
    directory = found.model_directory
    if directory is None or not found.standalone or found.alias is not None:
        raise InvalidRequestError(
            f"'{name}' is not a base model; train a model that is no adapter and no alias, such as "
            f"'{serving.model.id}'.",
            param="model",
            code="model_not_available",
        )
    if EncoderConfig.find(directory) is not None:
        raise InvalidRequestError(
            f"'{name}' makes embeddings and no text: it cannot be trained here.",
            param="model",
            code="model_not_available",
        )
    return directory


def _method(body: JobBody) -> Method:
    """The method with its hyperparameters, wherever the client put them."""
    method = body.method or Method(type="supervised")
    for other in sorted(method.model_fields_set - {"type", method.type}):
        if getattr(method, other) is not None:
            raise InvalidRequestError(
                f"'method.{other}' does not go with 'method.type' '{method.type}'.",
                param=f"method.{other}",
            )
    if body.hyperparameters is not None and body.method is not None:
        raise InvalidRequestError(
            "Give 'method' or the older 'hyperparameters', not both.", param="hyperparameters"
        )
    if method.type == "reinforcement":
        if method.reinforcement is None:
            raise InvalidRequestError(
                "'method.reinforcement' with its 'grader' is missing.", param="method.reinforcement"
            )
        return method
    if method.type != "supervised":
        return method.model_copy(update={method.type: method.block or Preference()})
    older = Supervised(hyperparameters=body.hyperparameters or Hyperparameters())
    return method.model_copy(update={"supervised": method.supervised or older})


def _spec(serving: Serving, body: JobBody, base: Path, method: Method, seed: int) -> FineTuneSpec:
    """The worker's specification of training `base`.

    Raises RequestValidationError where a value is out of bounds.
    """
    files = serving.store.files
    for param, file_id in (("training_file", body.training_file),
                           ("validation_file", body.validation_file)):  # fmt: skip
        if file_id is not None:
            _require_examples(serving, file_id, param)
    hyperparameters = (method.block or Supervised()).hyperparameters.model_dump(
        exclude={"reasoning_effort"}
    )
    extra = body.extra.model_dump(exclude_none=True, exclude={"promote"})
    settings = serving.settings
    served = {"quantize": "none" if body.extra.full else settings.quantize}
    if body.extra.teacher is not None:
        extra["teacher"] = stored_model(serving, body.extra.teacher, "extra.teacher")
    rewarding = {}
    if method.reinforcement is not None:
        rewarding = {"grader": method.reinforcement.grader, "base_name": body.model}
    try:
        return read_spec(
            {
                "model": base,
                "training_file": files.path(body.training_file),
                "validation_file": body.validation_file and files.path(body.validation_file),
                "method": method.type,
                "seed": seed,
                "dtype": "auto" if settings.dtype == "float16" else settings.dtype,
                "device": settings.device,
                "threads": settings.training_threads or max(1, (os.cpu_count() or 1) // 2),
                **hyperparameters,
                **rewarding,
                **(served | extra),
            }
        )
    except ValidationError as error:
        place = ("body", "method", method.type, "hyperparameters")
        raise RequestValidationError(
            [
                {
                    **e,
                    "loc": (
                        *(place if set(e["loc"]) & set(hyperparameters) else _EXTRA),
                        *e["loc"],
                    ),
                }
                for e in error.errors()
            ]
        ) from None


def _require_examples(serving: Serving, file_id: str, param: str) -> None:
    try:
        stored = serving.store.files.get(file_id)
    except InvalidRequestError as error:
        raise InvalidRequestError(str(error), param=param, code="file_not_found") from None
    if stored.purpose != "fine-tune":
        raise InvalidRequestError(
            f"The file '{file_id}' has the purpose '{stored.purpose}', not 'fine-tune'.",
            param=param,
        )


def _change(
    request: Request,
    job_id: str,
    sources: Collection[Status],
    target: Status,
    message: str,
    **values: Any,
) -> dict[str, Any]:
    jobs = get_serving(request).store.jobs
    job = jobs.get(job_id)
    if not jobs.transition(job_id, sources, target, Event(message), **values):
        raise ConflictError(
            f"The job '{job_id}' is {job.status}; only one that is {' or '.join(sources)} can "
            f"become {target}.",
            param="fine_tuning_job_id",
            code="invalid_job_status",
        )
    return describe_job(jobs.get(job_id))
