"""/v1/batches: many requests in a file, run when there is nothing else to do."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Annotated, Any, Literal

from fastapi import Query, Request

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Metadata
from hagane.api.openai.batch_input import WINDOW_SECONDS
from hagane.api.owners import owner_of, scope_of
from hagane.api.serving import get_serving
from hagane.store.batches import ADMINISTRATORS, StoredBatch
from hagane.store.paging import Paging
from hagane.system.errors import ConflictError, InvalidRequestError, RateLimitError

PATH = "/v1/batches"
router = guarded_router()
_RETRY_SECONDS = 30.0

_MOMENTS = (
    "in_progress",
    "finalizing",
    "completed",
    "failed",
    "expired",
    "cancelling",
    "cancelled",
)


class BatchBody(Body):
    """POST /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Literal["24h"]
    metadata: Metadata | None = None


@router.post(PATH)
async def create(body: BatchBody, request: Request) -> dict[str, Any]:
    """Queue the requests of a file that was uploaded for it. Raises NotFoundError."""
    serving, owner = get_serving(request), owner_of(request)
    store = serving.store
    stored = await asyncio.to_thread(store.files.get, body.input_file_id, scope_of(request))
    if stored.purpose != "batch":
        raise InvalidRequestError(
            f"The file '{stored.id}' was uploaded for '{stored.purpose}'; upload it with the "
            "purpose 'batch'.",
            param="input_file_id",
        )
    now = int(time.time())
    batch = StoredBatch(
        id=f"batch_{uuid.uuid4().hex}",
        created_at=now,
        expires_at=now + WINDOW_SECONDS,
        status="validating",
        endpoint=body.endpoint,
        input_file=stored.id,
        completion_window=body.completion_window,
        metadata=body.metadata or {},
        moments={},
        counts={"total": 0, "completed": 0, "failed": 0},
        errors=[],
        owner=owner,
    )
    most = None if owner == ADMINISTRATORS else serving.settings.key_batches
    if not await asyncio.to_thread(store.batches.add, batch, most):
        raise RateLimitError(
            f"{most} batches of this key wait or run, as many as may (key_batches); try again when "
            "one has ended, or cancel one.",
            retry_after=_RETRY_SECONDS,
        )
    return describe(batch)


@router.get(PATH)
def list_batches(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The batches, newest first."""
    page = get_serving(request).store.batches.list(Paging(after, limit), scope_of(request))
    data = [describe(batch) for batch in page.items]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": page.has_more,
    }


@router.get(PATH + "/{batch_id}")
def retrieve(batch_id: str, request: Request) -> dict[str, Any]:
    """One batch. Raises NotFoundError."""
    return describe(get_serving(request).store.batches.get(batch_id, scope_of(request)))


@router.post(PATH + "/{batch_id}/cancel")
def cancel(batch_id: str, request: Request) -> dict[str, Any]:
    """Stop a batch; what is done already stays. Raises NotFoundError, ConflictError."""
    batches = get_serving(request).store.batches
    batches.get(batch_id, scope_of(request))
    stoppable = ("validating", "in_progress", "finalizing", "cancelling")
    if not batches.move(batch_id, stoppable, "cancelling", int(time.time())):
        status = batches.get(batch_id).status
        raise ConflictError(
            f"The batch '{batch_id}' is {status} already and cannot be cancelled.",
            param="batch_id",
        )
    return describe(batches.get(batch_id))


def describe(batch: StoredBatch) -> dict[str, Any]:
    """A batch in OpenAI's shape."""
    errors = {"object": "list", "data": batch.errors} if batch.errors else None
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        **{f"{name}_at": batch.moments.get(f"{name}_at") for name in _MOMENTS},
        "request_counts": batch.counts,
        "metadata": batch.metadata,
    }
