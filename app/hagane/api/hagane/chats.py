"""/v1/chats: conversations of the chat page, where they may be kept. A key sees its own."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

from fastapi import Depends, Path, Request, Response
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.fields import Body, Count
from hagane.api.serving import get_serving
from hagane.api.sse import json_response
from hagane.store.answers.chats import ChatEntry, Chats
from hagane.system.errors import NotFoundError
from hagane.system.settings import Settings

router = guarded_router(prefix="/v1/chats")

_Id = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class StoredChatBody(Body):
    """PUT /v1/chats/{chat_id}. `revision` is the one that the client has seen, 0 for a new chat."""

    revision: Annotated[Count, Field(ge=0)]
    conversation: dict[str, Any]


def _allowed(request: Request) -> Chats:
    """Dependency of all routes. Raises NotFoundError where the operator keeps no chats."""
    serving = get_serving(request)
    if not serving.settings.stored_chats:
        raise NotFoundError("This server keeps no chats: its setting stored_chats is 0.")
    return serving.store.answers.chats


Kept = Annotated[Chats, Depends(_allowed)]


@router.get("")
def list_chats(request: Request, chats: Kept) -> dict[str, Any]:
    """The chats of the key, without their text; deleted ones are marked for as long."""
    settings = get_serving(request).settings
    found = chats.list(request.state.key_label, _since(settings))
    return {
        "object": "list",
        "data": [_describe(entry) for entry in found],
        "bytes": sum(entry.size for entry in found),
        "max_bytes": int(settings.stored_chats),
        "days": settings.stored_chats_days,
    }


@router.get("/{chat_id}", response_model=None)
def get_chat(chat_id: _Id, request: Request, chats: Kept) -> Response:
    """One chat. Raises NotFoundError."""
    since = _since(get_serving(request).settings)
    entry, body = chats.get(request.state.key_label, chat_id, since)
    return json_response(_describe(entry) | {"conversation": json.loads(body)})


@router.put("/{chat_id}")
def put_chat(chat_id: _Id, body: StoredChatBody, request: Request, chats: Kept) -> dict[str, Any]:
    """Store a chat over the revision that was seen. Raises ConflictError, TooLargeError."""
    settings = get_serving(request).settings
    text = json.dumps(body.conversation, ensure_ascii=False, separators=(",", ":"))
    entry = chats.put(
        request.state.key_label, chat_id, body.revision, text,
        most_bytes=int(settings.stored_chats), since=_since(settings),
    )  # fmt: skip
    return _describe(entry)


@router.delete("/{chat_id}")
def delete_chat(chat_id: _Id, request: Request, chats: Kept) -> dict[str, Any]:
    """Delete a chat. Raises NotFoundError."""
    chats.delete(request.state.key_label, chat_id)
    return {"id": chat_id, "object": "chat.deleted", "deleted": True}


def _since(settings: Settings) -> float:
    """What was changed before is forgotten, in Unix seconds."""
    return time.time() - settings.stored_chats_days * 86400


def _describe(entry: ChatEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "object": "chat",
        "revision": entry.revision,
        "updated_at": int(entry.updated_at),
        "bytes": entry.size,
        "deleted": entry.deleted,
    }
