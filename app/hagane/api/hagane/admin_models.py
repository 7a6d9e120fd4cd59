"""/admin/models: the models in memory and on disk; loading, pinning and unloading them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Flag, ModelName
from hagane.api.serving import Serving, get_serving
from hagane.pool.models import ResidentModel
from hagane.store.catalogue import ModelRef
from hagane.system.errors import ConflictError
from hagane.text.hub import models_in, own_store, stored_bytes

router = guarded_router(prefix="/admin/models")


class LoadModelBody(Body):
    """POST /admin/models/load. A pinned model stays in memory until it is unloaded."""

    model: ModelName
    pinned: Flag = False


class UnloadModelBody(Body):
    """POST /admin/models/unload."""

    model: ModelName


@router.get("")
async def list_models(request: Request) -> dict[str, Any]:
    """The models with an engine of their own, in memory or not; the default model comes first.

    DELETE takes those that are `removable`, if nothing names them.
    """
    serving = get_serving(request)
    own = await run_in_threadpool(models_in, own_store(serving.settings))
    residents = dict(serving.fleet.by_directory())
    data = [_describe_resident(one, path) for path, one in residents.items()]
    for model in await run_in_threadpool(serving.catalogue.list):
        path = model.model_directory
        if model.standalone and path is not None and path not in residents:
            size = await run_in_threadpool(stored_bytes, path)
            described = _describe(model.id, path, "on_disk", size)
            data.append(described | {"removable": own.get(model.id) == path})
    return {"object": "list", "data": data, "has_more": False}


@router.post("/load")
async def load_model(body: LoadModelBody, request: Request) -> dict[str, Any]:
    """Have a model in memory; answers when it takes requests.

    Raises ModelNotFoundError, ConflictError for a model without an engine of its own, and
    EngineUnavailableError if it cannot be had.
    """
    serving = get_serving(request)
    ref, directory = await _standalone(serving, body.model)
    await serving.fleet.load(ref.id, directory, pinned=body.pinned)
    return _state(serving, ref, directory)


@router.post("/unload")
async def unload_model(body: UnloadModelBody, request: Request) -> dict[str, Any]:
    """Free a model's memory once its last request is done; the next request loads it again.

    Raises ModelNotFoundError, or ConflictError for a model without an engine of its own.
    """
    serving = get_serving(request)
    ref, directory = await _standalone(serving, body.model)
    await serving.fleet.release(directory)
    return _state(serving, ref, directory)


async def _standalone(serving: Serving, name: str) -> tuple[ModelRef, Path]:
    ref = await serving.find_ref(name)
    if ref.model_directory is not None and not ref.standalone:
        raise ConflictError(
            f"'{name}' is an adapter: its engine is that of '{ref.root}'.",
            param="model",
            code="model_in_use",
        )
    if ref.model_directory is None:
        raise ConflictError(
            f"'{name}' runs in the engine of '{serving.model.id}', which is always loaded.",
            param="model",
            code="model_in_use",
        )
    return ref, ref.model_directory


def _state(serving: Serving, ref: ModelRef, directory: Path) -> dict[str, Any]:
    for path, resident in serving.fleet.by_directory():
        if path == directory:
            return _describe_resident(resident, path)
    return _describe(ref.id, directory, "on_disk", stored_bytes(directory))


def _describe_resident(resident: ResidentModel, path: Path) -> dict[str, Any]:
    client = resident.client
    return {
        **_describe(resident.name, path, client.state, resident.bytes or stored_bytes(path)),
        "default": resident.base,
        "pinned": resident.base or resident.pinned,
        "requests": {"running": client.stats.running, "waiting": client.stats.waiting},
        "idle_seconds": 0.0 if resident.users else round(time.monotonic() - resident.used_at, 1),
        "pid": client.info.pid if client.info else None,
    }


def _describe(name: str, path: Path, state: str, size: int) -> dict[str, Any]:
    return {
        "id": name,
        "object": "admin.model",
        "state": state,
        "path": str(path),
        "weight_bytes": size,
        "default": False,
        "pinned": False,
        "removable": False,
        "requests": {"running": 0, "waiting": 0},
        "idle_seconds": None,
        "pid": None,
    }
