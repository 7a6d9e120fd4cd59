"""/v1/datasets: training files made of stored answers and feedback. Admin only."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Count, Name
from hagane.api.openai.stored_completions import Written
from hagane.api.serving import Serving, get_serving
from hagane.store.answers.datasets import Dataset
from hagane.store.paging import Paging
from hagane.system.errors import ConflictError, NotFoundError
from hagane.training.datasets.build import Built, Edit, Task, build
from hagane.training.datasets.spec import DatasetSpec

router = guarded_router(prefix="/v1/datasets")

_Source = Annotated[str, Field(min_length=1, max_length=128)]


class DatasetBody(Body):
    """POST /v1/datasets: the next version of the data set `name`."""

    name: Name
    filter: DatasetSpec = DatasetSpec()


class PreviewBody(Body):
    """POST /v1/datasets/preview: what a filter would give, without keeping it."""

    filter: DatasetSpec = DatasetSpec()
    limit: Annotated[Count, Field(ge=0, le=100)] = 10


class EditBody(Body):
    """POST /v1/datasets/{dataset_id}/edit: a new version; records are named by their `source`."""

    remove: Annotated[list[_Source], Field(max_length=10_000)] = Field([])
    answers: Annotated[
        dict[_Source, Annotated[str, Field(min_length=1)]], Field(max_length=10_000)
    ] = Field({})


@router.post("")
async def create(body: DatasetBody, request: Request, _: Written) -> dict[str, Any]:
    """Build a data set. The same records again are the version that has them.

    Raises InvalidRequestError where no answer fits.
    """
    serving = get_serving(request)
    built = await _build(request, Task(name=body.name, spec=body.filter))
    return describe(await asyncio.to_thread(_keep, serving, body.name, body.filter, built, None))


@router.post("/preview")
async def preview(request: Request, _: Written, body: PreviewBody | None = None) -> dict[str, Any]:
    """The card and the first records of what a filter gives."""
    asked = body or PreviewBody()
    built = await _build(request, Task(name="preview", spec=asked.filter, preview=asked.limit))
    return {"object": "dataset.preview", "card": built.card, "records": built.records}


@router.get("")
def list_datasets(
    request: Request,
    name: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """All versions, newest first."""
    page = get_serving(request).store.answers.datasets.list(Paging(after, limit), name)
    data = [describe(dataset) for dataset in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


@router.get("/{dataset_id}")
def get_dataset(dataset_id: str, request: Request) -> dict[str, Any]:
    """One version. Raises NotFoundError."""
    return describe(get_serving(request).store.answers.datasets.get(dataset_id))


@router.post("/{dataset_id}/edit")
async def edit(dataset_id: str, body: EditBody, request: Request) -> dict[str, Any]:
    """A version without some records, or with other answers. Raises NotFoundError."""
    serving = get_serving(request)
    parent = await asyncio.to_thread(serving.store.answers.datasets.get, dataset_id)
    spec = DatasetSpec.model_validate(parent.spec)
    files = [parent.training_file, parent.validation_file]
    changes = Edit(files=files, remove=body.remove, answers=body.answers)
    built = await _build(request, Task(name=parent.name, spec=spec, edit=changes))
    return describe(await asyncio.to_thread(_keep, serving, parent.name, spec, built, parent))


@router.delete("/{dataset_id}")
def delete_dataset(dataset_id: str, request: Request) -> dict[str, Any]:
    """Delete a version and its files. Raises NotFoundError, or ConflictError while a job trains."""
    store = get_serving(request).store
    dataset = store.answers.datasets.get(dataset_id)
    _delete_files(get_serving(request), [dataset.training_file, dataset.validation_file])
    store.answers.datasets.delete(dataset_id)
    return {"id": dataset_id, "object": "dataset", "deleted": True}


async def _build(request: Request, task: Task) -> Built:
    async with request.app.state.inspecting:
        address = get_serving(request).store.address
        if address is None:
            raise ConflictError("This server keeps nothing: start it with an admin key.")
        return await build(address, task)


def _keep(
    serving: Serving, name: str, spec: DatasetSpec, built: Built, parent: Dataset | None
) -> Dataset:
    training, validation = built.files
    dataset = Dataset(
        name=name,
        method=spec.method,
        spec=spec.model_dump(mode="json"),
        digest=hashlib.sha256("".join(built.sha256).encode()).hexdigest(),
        card=built.card,
        training_file=training or "",
        validation_file=validation,
        parent=None if parent is None else parent.id,
    )
    kept, added = serving.store.answers.datasets.add(dataset)
    if not added:
        _delete_files(serving, built.files)
    return kept


def _delete_files(serving: Serving, files: list[str | None]) -> None:
    for file_id in files:
        if file_id is not None:
            try:
                serving.store.files.delete(file_id)
            except NotFoundError:
                # Deleted by itself before.
                continue


def describe(dataset: Dataset) -> dict[str, Any]:
    """A version as JSON."""
    return {"object": "dataset", **vars(dataset)}
