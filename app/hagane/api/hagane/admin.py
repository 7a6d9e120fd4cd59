"""Routes for operators: the state of the server, and removing a model. Admin only."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from hagane import __version__
from hagane.api.access import guarded_router
from hagane.api.serving import Serving, get_serving
from hagane.pool.models import ResidentModel
from hagane.system.errors import ConflictError
from hagane.system.machine import available_memory, memory_limit

router = guarded_router()


@router.get("/admin/status")
def status(request: Request) -> dict[str, Any]:
    """The engine, the load on it, the job that runs, and what is left of memory and disk."""
    serving = get_serving(request)
    client, stats = serving.client, serving.client.stats
    job = serving.store.jobs.first("running")
    return {
        "version": __version__,
        "model": serving.model.id,
        "engine": {
            "state": client.state,
            "restarts": client.restarts,
            "pid": client.info.pid if client.info else None,
            "context_length": serving.context_length(serving.model.config),
        },
        "resident_models": [_describe(one) for one in serving.fleet.residents if not one.base],
        "requests": {"running": stats.running, "waiting": stats.waiting},
        "kv_cache": {
            "blocks_used": stats.blocks_used,
            "blocks_cached": stats.blocks_cached,
            "blocks_total": stats.blocks_total,
            "usage_ratio": stats.blocks_used / max(stats.blocks_total, 1),
        },
        "tokens_per_second": serving.metrics.tokens_per_second(),
        "job": None if job is None else {"id": job.id, "progress": job.progress},
        "memory": {"total_bytes": memory_limit(), "available_bytes": available_memory()},
        "disk": _disk(serving),
    }


def _disk(serving: Serving) -> dict[str, int] | None:
    """Bytes of the disk that holds the data directory; None for a store in memory."""
    address = serving.store.address
    if address is None:
        return None
    usage = shutil.disk_usage(address.directory)
    return {"total_bytes": usage.total, "free_bytes": usage.free}


@router.delete("/v1/models/{model_id:path}")
async def delete_model(model_id: str, request: Request) -> dict[str, Any]:
    """Remove an adapter or a standalone model once its last request is done, with all that its job
    left on disk.

    The job's checkpoints go with it; the job and its events stay. Raises ModelNotFoundError, or
    ConflictError while an alias points to one of them or the server's base is what is to go.
    """
    serving = get_serving(request)
    store = serving.store
    await run_in_threadpool(_require_not_base, serving, model_id)
    before = await run_in_threadpool(store.artifacts.find, model_id)
    digests: Sequence[str] = ()
    if before is not None:
        digests = await run_in_threadpool(store.jobs.checkpoint_digests, before.job or "")
    removed = await run_in_threadpool(store.artifacts.delete, model_id)
    if not removed.standalone:
        await serving.fleet.unload_adapter(removed.digest)
    if removed.job is not None:
        folder = store.job_directory(removed.job)
        await run_in_threadpool(store.published.withdraw, model_id)
        await serving.fleet.release(folder)
        others = [stored.path for stored in await run_in_threadpool(store.artifacts.list)]
        # The same files may have been loaded under another name, too.
        if not any(path.is_relative_to(folder) for path in others):
            await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)
    await run_in_threadpool(store.forget_adapters, [removed.digest, *digests])
    return {"id": model_id, "object": "model", "deleted": True}


def _require_not_base(serving: Serving, model_id: str) -> None:
    found = serving.store.artifacts.find(model_id)
    if found is None and model_id in serving.catalogue.on_disk():
        raise ConflictError(
            f"'{model_id}' was not made here: unload it by POST /admin/models/unload, and remove "
            "its files with `hagane models rm`.",
            param="model",
            code="model_not_removable",
        )
    if found is not None and found.path.resolve() == serving.model.directory:
        raise ConflictError(
            f"'{model_id}' is what this server was started on: serve another model first.",
            param="model",
            code="model_in_use",
        )


def _describe(resident: ResidentModel) -> dict[str, Any]:
    client = resident.client
    return {
        "model": resident.name,
        "state": client.state,
        "restarts": client.restarts,
        "pid": client.info.pid if client.info else None,
        "requests": {"running": client.stats.running, "waiting": client.stats.waiting},
    }
