"""/admin/keys: API keys made, limited and revoked while serving, and their use by day."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Query, Request
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Count, Flag
from hagane.api.serving import get_serving
from hagane.store.keys import ApiKey, DayOfUse, KeyLimits
from hagane.store.paging import Paging
from hagane.system.errors import InvalidRequestError

router = guarded_router(prefix="/admin")

_DAY_SECONDS = 86400
_Name = Annotated[str, Field(min_length=1, max_length=128)]
_Limit = Annotated[Count, Field(ge=1, le=1_000_000_000)]


class Limits(Body):
    """Requests and tokens a minute, requests at a time; null leaves it to the settings."""

    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    concurrent_requests: _Limit | None = None

    def stored(self) -> KeyLimits:
        """As the store has them."""
        return KeyLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)


class KeyBody(Body):
    """POST /admin/keys. `expires_at` is in Unix seconds.

    `priority` allows requests to go before others (`priority` below 0).
    """

    name: _Name
    limits: Limits = Limits()
    priority: Flag = False
    expires_at: Count | None = None


class KeyChanges(Body):
    """POST /admin/keys/{key_id}. What is left out stays as it is."""

    name: _Name | None = None
    limits: Limits | None = None
    priority: Flag | None = None
    expires_at: Count | None = None


@router.post("/keys")
async def create_key(body: KeyBody, request: Request) -> dict[str, Any]:
    """Make a key. The answer alone has the key itself (`key`): it is stored as a digest.

    From the first key on, chat routes require one. Raises ConflictError when there are too many.
    """
    serving = get_serving(request)
    _require_future(body.expires_at)
    made, key = await asyncio.to_thread(
        serving.store.keys.create, body.name, body.limits.stored(),
        urgent=body.priority, expires_at=body.expires_at,
    )  # fmt: skip
    serving.keys.put(made)
    return {**describe(made), "key": key}


@router.get("/keys")
def list_keys(
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The keys that were made, newest first; those of the settings are not listed."""
    page = get_serving(request).store.keys.list(Paging(after, limit))
    data = [describe(key) for key in page.items]
    return {"object": "list", "data": data, "has_more": page.has_more}


@router.get("/keys/{key_id}")
def get_key(key_id: str, request: Request) -> dict[str, Any]:
    """Raises NotFoundError."""
    return describe(get_serving(request).store.keys.get(key_id))


@router.post("/keys/{key_id}")
async def change_key(key_id: str, body: KeyChanges, request: Request) -> dict[str, Any]:
    """Rename or limit a key. Raises NotFoundError, or ConflictError for a revoked one."""
    _require_future(body.expires_at)
    values: dict[str, Any] = {}
    if body.name is not None:
        values["name"] = body.name
    if body.limits is not None:
        values["limits"] = body.limits.stored()
    if body.priority is not None:
        values["urgent"] = body.priority
    if "expires_at" in body.model_fields_set:
        values["expires_at"] = body.expires_at
    return await _change(request, key_id, **values)


@router.delete("/keys/{key_id}")
async def revoke_key(key_id: str, request: Request) -> dict[str, Any]:
    """Revoke a key; its record and use stay. Raises NotFoundError, ConflictError if it is."""
    return await _change(request, key_id, revoked_at=int(time.time()))


@router.get("/key_usage")
def key_usage(
    request: Request,
    key_id: str | None = None,
    days: Annotated[int, Query(ge=1, le=3660)] = 30,
) -> dict[str, Any]:
    """Requests and tokens by day (UTC) and key, newest first; those of the last seconds follow.

    Keys of the settings, the admin key and requests without a key are there by their labels.
    Raises NotFoundError.
    """
    serving = get_serving(request)
    label = None if key_id is None else serving.store.keys.get(key_id).label
    first = time.strftime("%Y-%m-%d", time.gmtime(time.time() - (days - 1) * _DAY_SECONDS))
    names = serving.keys.names()
    data = [_describe_use(use, names) for use in serving.store.keys.use(first, label)]
    return {"object": "list", "data": data, "has_more": False}


async def _change(request: Request, key_id: str, **values: Any) -> dict[str, Any]:
    serving = get_serving(request)
    changed = await asyncio.to_thread(serving.store.keys.change, key_id, **values)
    serving.keys.put(changed)
    return describe(changed)


def _require_future(expires_at: int | None) -> None:
    if expires_at is not None and expires_at <= time.time():
        raise InvalidRequestError(
            f"'expires_at' is {expires_at}, which has passed; give a later time in Unix seconds.",
            param="expires_at",
        )


def describe(key: ApiKey) -> dict[str, Any]:
    """A key as JSON, without itself; metrics, logs and stored answers name it by `label`."""
    return {
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "hint": f"...{key.hint}",
        "label": key.label,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "limits": {
            "requests_per_minute": key.limits.requests,
            "tokens_per_minute": key.limits.tokens,
            "concurrent_requests": key.limits.concurrent,
        },
        "priority": key.urgent,
    }


def _describe_use(use: DayOfUse, names: dict[str, str]) -> dict[str, Any]:
    return {
        "object": "key_usage",
        "day": use.day,
        "label": use.label,
        "name": names.get(use.label),
        **asdict(use.use),
    }
