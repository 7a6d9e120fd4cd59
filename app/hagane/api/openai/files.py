"""/v1/files: upload, list, read, delete. Each API key has its own, for batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import Query, Request

from hagane.api.access import guarded_router
from hagane.api.downloads import Download
from hagane.api.openai.upload import FORM, receive
from hagane.api.owners import owner_of, refuse_foreign_page, scope_of
from hagane.api.serving import get_serving
from hagane.store.files import StoredFile
from hagane.store.paging import Paging

PATH = "/v1/files"
router = guarded_router()
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.post(PATH, openapi_extra={"requestBody": FORM})
async def upload(request: Request) -> dict[str, Any]:
    """Store a file: of requests for a batch, or with the admin key of examples."""
    serving = get_serving(request)
    limit = int(serving.settings.max_file_bytes)
    refuse_foreign_page(request)
    owner = owner_of(request)
    return _describe(await receive(request, serving.store.files, serving.file_room, limit, owner))


@router.get(PATH)
def list_files(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The files, newest first unless requested otherwise."""
    paging = Paging(after, limit, newest_first=order == "desc")
    page = get_serving(request).store.files.list(paging, purpose, scope_of(request))
    data = [_describe(stored) for stored in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


@router.get(PATH + "/{file_id}")
def get_file(file_id: str, request: Request) -> dict[str, Any]:
    """One file. Raises NotFoundError."""
    return _describe(get_serving(request).store.files.get(file_id, scope_of(request)))


@router.get(
    PATH + "/{file_id}/content", response_class=Download, responses={200: {"content": _BYTES}}
)
def get_content(file_id: str, request: Request) -> Download:
    """The uploaded content, byte for byte. Raises NotFoundError."""
    files = get_serving(request).store.files
    stored = files.get(file_id, scope_of(request))
    return Download(
        files.local(stored.id), media_type="application/octet-stream", filename=stored.filename
    )


@router.delete(PATH + "/{file_id}")
def delete_file(file_id: str, request: Request) -> dict[str, Any]:
    """Raises NotFoundError, or ConflictError while a job needs the file."""
    get_serving(request).store.files.delete(file_id, scope_of(request))
    return {"id": file_id, "object": "file", "deleted": True}


def _describe(stored: StoredFile) -> dict[str, Any]:
    return {
        "id": stored.id,
        "object": "file",
        "bytes": stored.bytes,
        "created_at": stored.created_at,
        "filename": stored.filename,
        "purpose": stored.purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": stored.expires_at,
        "sha256": stored.sha256,
    }
