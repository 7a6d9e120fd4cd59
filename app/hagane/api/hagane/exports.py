"""/admin/exports: adapters and trained models as files to take away. Admin only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from hagane.api.access import guarded_router
from hagane.api.downloads import Download
from hagane.api.fields import Body, ModelName
from hagane.api.serving import Serving, get_serving
from hagane.system.errors import ConflictError, InvalidRequestError, ModelError
from hagane.training.exports.queue import Export
from hagane.training.exports.task import ExportFormat, ExportTask, MatrixType
from hagane.weights.sources.config import is_gguf

router = guarded_router(prefix="/admin/exports")

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


class ExportBody(Body):
    """POST /admin/exports: an adapter, a checkpoint or a trained model, served or not.

    `format` is `adapter` (its PEFT directory, zipped), `model` (a Hugging Face directory, the
    adapter merged into it, zipped), `gguf` (the same for llama.cpp, matrices of `type`) or
    `gguf_adapter` (the adapter alone, for llama.cpp's --lora).
    """

    model: ModelName
    format: ExportFormat
    type: MatrixType = "Q8_0"


@router.post("")
async def create(body: ExportBody, request: Request) -> dict[str, Any]:
    """Start an export; one is written at a time, on what the server leaves free.

    Raises ModelNotFoundError, InvalidRequestError for a model that cannot be read, ConflictError
    for one without such a form or when there are too many, and DiskFullError.
    """
    serving = get_serving(request)
    base, adapter = await _find(serving, body.model, body.format)
    task = ExportTask(
        base=base,
        adapter=adapter,
        target=serving.exports.target(body.model, body.format),
        format=body.format,
        type=body.type,
    )
    try:
        await run_in_threadpool(serving.exports.require_room, task)
    except ModelError as error:
        raise InvalidRequestError(f"{error}.", param="model", code="invalid_model") from None
    return describe(serving.exports.add(body.model, task))


@router.get("")
async def list_exports(request: Request) -> dict[str, Any]:
    """Those of this server, newest first. They are gone when it ends."""
    data = [describe(export) for export in get_serving(request).exports.list]
    return {"object": "list", "data": data, "has_more": False}


@router.get("/{export_id}")
async def get_export(export_id: str, request: Request) -> dict[str, Any]:
    """One export and how far it is. Raises NotFoundError."""
    return describe(get_serving(request).exports.get(export_id))


@router.get("/{export_id}/content", response_class=Download, responses={200: {"content": _BYTES}})
async def get_content(export_id: str, request: Request) -> Download:
    """The file. Raises NotFoundError, or ConflictError before it is written."""
    export = get_serving(request).exports.get(export_id)
    if export.status != "succeeded":
        raise ConflictError(
            f"The export '{export_id}' is {export.status}; it has no file.", param="export_id"
        )
    target = export.task.target
    return Download(target, media_type="application/octet-stream", filename=target.name)


@router.delete("/{export_id}")
async def delete_export(export_id: str, request: Request) -> dict[str, Any]:
    """Stop an export that has not ended, and remove its file. Raises NotFoundError."""
    await get_serving(request).exports.delete(export_id)
    return {"id": export_id, "object": "export", "deleted": True}


async def _find(serving: Serving, name: str, kind: ExportFormat) -> tuple[Path, Path | None]:
    """The base's directory, and the adapter's. Raises ModelNotFoundError or ConflictError."""
    stored = await run_in_threadpool(serving.store.artifacts.find, name)
    if stored is not None and (stored.standalone or stored.path.is_dir()):
        root, directory, standalone = stored.root, stored.path, stored.standalone
    else:
        ref = await serving.find_ref(name)
        standalone, root = ref.standalone, ref.root
        directory = ref.adapter_directory or ref.model_directory or serving.model.directory
    if standalone or directory == serving.model.directory:
        if kind in ("adapter", "gguf_adapter"):
            raise ConflictError(
                f"'{name}' is a standalone model; it has no adapter: export it as model or gguf.",
                param="format",
            )
        if kind == "model" and is_gguf(directory):
            raise ConflictError(
                f"'{name}' is a GGUF file, and no Hugging Face directory: export it as gguf.",
                param="format",
            )
        return directory, None
    on_disk = await run_in_threadpool(serving.catalogue.on_disk)
    base = serving.model.directory if root == serving.model.id else on_disk.get(root)
    if base is None and kind != "adapter":
        raise ConflictError(
            f"'{name}' is an adapter for '{root}', which is not on this server: only its own "
            "files can be exported here.",
            param="format",
        )
    return base or serving.model.directory, directory


def describe(export: Export) -> dict[str, Any]:
    """An export as JSON; `path` is its file on the server."""
    task = export.task
    return {
        "id": export.id,
        "object": "export",
        "created_at": export.created_at,
        "model": export.model,
        "format": task.format,
        "type": task.type if task.format == "gguf" else None,
        "status": export.status,
        "stage": export.stage,
        "progress": export.progress,
        "error": export.error,
        "filename": task.target.name,
        "bytes": export.bytes,
        "path": str(task.target) if export.status == "succeeded" else None,
    }
