"""/admin/models/pull and DELETE /admin/models: models into and out of the server's store."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Annotated, Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, TypeAdapter, ValidationError

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Name
from hagane.api.serving import Serving, get_serving
from hagane.system.errors import ConflictError, InvalidRequestError, ModelError
from hagane.text.hub import own_store, split_hub_id
from hagane.text.hub_files import find_on_hub
from hagane.text.inventory import StoredModel, find_removable, take_out
from hagane.text.pulling import Pull

router = guarded_router(prefix="/admin/models")
_NAME = TypeAdapter(Name)


class PullModelBody(Body):
    """POST /admin/models/pull. `name` is what the store calls it; default: the hub's name."""

    model: Annotated[str, Field(min_length=3, max_length=512)]
    name: Name | None = None


@router.post("/pull")
async def pull_model(body: PullModelBody, request: Request) -> dict[str, Any]:
    """Begin to fetch a model of the hub, `OWNER/NAME` or `OWNER/NAME/FILE.gguf`.

    Answers when the hub has listed its files. Raises InvalidRequestError for what the hub has not,
    ConflictError for a name that is taken or files on their way, RateLimitError while others are
    pulled, DiskFullError.
    """
    serving = get_serving(request)
    try:
        split_hub_id(body.model)
        found = await run_in_threadpool(find_on_hub, body.model)
    except ModelError as error:
        raise InvalidRequestError(f"{error}.", param="model", code="invalid_model") from None
    pull = Pull(found, own_store(serving.settings), _name(body.name or found.name))
    serving.pulls.require_room(pull)
    await run_in_threadpool(_require_free, serving, pull)
    await run_in_threadpool(pull.require_room)
    return serving.pulls.start(pull).describe()


@router.get("/pulls")
async def list_pulls(request: Request) -> dict[str, Any]:
    """The pulls of this server's life, the newest first."""
    data = [pull.describe() for pull in get_serving(request).pulls]
    return {"object": "list", "data": data, "has_more": False}


@router.get("/pulls/{pull_id}")
async def get_pull(pull_id: str, request: Request) -> dict[str, Any]:
    """One pull, with the bytes so far. Raises NotFoundError."""
    return get_serving(request).pulls.find(pull_id).describe()


@router.post("/pulls/{pull_id}/cancel")
async def cancel_pull(pull_id: str, request: Request) -> dict[str, Any]:
    """End a pull and remove what it has fetched; one that has ended stays. Raises NotFoundError."""
    pulls = get_serving(request).pulls
    pull = pulls.find(pull_id)
    pulls.cancel(pull)
    return pull.describe()


@router.delete("/{name:path}")
async def delete_model(name: str, request: Request) -> dict[str, Any]:
    """Delete a model's files from the server's store.

    Raises NotFoundError, or ConflictError for a model in memory, one that the settings, an alias or
    an adapter name, a built-in one and a job's.
    """
    serving = get_serving(request)
    model = await run_in_threadpool(find_removable, name, serving.settings)
    await run_in_threadpool(_require_unnamed, serving, model)
    # On the loop, as requests that load it are: none comes between the question and the answer.
    _require_unloaded(serving, model)
    folder = take_out(model)
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    return {"id": name, "object": "admin.model", "deleted": True, "freed_bytes": model.size}


def _name(name: str) -> str:
    try:
        return _NAME.validate_python(name)
    except ValidationError:
        raise InvalidRequestError(
            f"'{name}' cannot be a model's name here: choose a `name`.", param="name"
        ) from None


def _require_free(serving: Serving, pull: Pull) -> None:
    """Raises ConflictError where a model, an adapter, an alias or a file has the name."""
    taken = {serving.model.id, *(model.id for model in serving.catalogue.list())}
    file = pull.target.with_name(f"{pull.name}.gguf")
    if pull.name in taken or pull.target.exists() or file.exists():
        raise ConflictError(
            f"The name '{pull.name}' is taken; choose another `name`, or delete the model.",
            param="name",
            code="name_taken",
        )


def _require_unnamed(serving: Serving, model: StoredModel) -> None:
    path = model.path.resolve()
    for name in serving.settings.other_models:
        offered = serving.catalogue.on_disk().get(name)
        if offered is not None and offered.is_relative_to(path):
            raise ConflictError(
                f"The setting models offers it as '{name}': take it out first.",
                param="model",
                code="model_in_use",
            )
    for alias in serving.store.aliases.current():
        if model.name in (alias.target, alias.candidate):
            raise ConflictError(
                f"The alias '{alias.name}' points to '{model.name}'; point it elsewhere first.",
                param="model",
                code="model_in_use",
            )
    # Of the default model's name are the adapters of that one.
    if model.name == serving.model.id:
        return
    for stored in serving.store.artifacts.list():
        if stored.root == model.name and not stored.standalone:
            raise ConflictError(
                f"The adapter '{stored.name}' changes '{model.name}': unload or delete it first.",
                param="model",
                code="model_in_use",
            )


def _require_unloaded(serving: Serving, model: StoredModel) -> None:
    path = model.path.resolve()
    draft = serving.client.config.draft_model
    if draft is not None and Path(draft).resolve().is_relative_to(path):
        raise ConflictError(
            f"'{model.name}' is the draft model of this server.", param="model", code="model_in_use"
        )
    for directory, resident in serving.fleet.by_directory():
        if not directory.resolve().is_relative_to(path):
            continue
        remedy = (
            "it is what this server was started on"
            if resident.base
            else "unload it by POST /admin/models/unload first"
        )
        raise ConflictError(
            f"'{model.name}' is in memory: {remedy}.", param="model", code="model_in_use"
        )
