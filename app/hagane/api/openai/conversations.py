"""/v1/conversations: items that responses go on from and are added to."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query, Request, Response

from hagane.api.access import guarded_router
from hagane.api.openai.response_items import new_id, show_item
from hagane.api.openai.response_runs import as_stored
from hagane.api.openai.response_schemas import (
    ConversationBody,
    ConversationUpdate,
    Item,
    ItemReference,
    ItemsBody,
)
from hagane.api.openai.responses import list_items
from hagane.api.serving import get_serving
from hagane.api.sse import json_response
from hagane.store.paging import Page, Paging
from hagane.store.responses import Responses, StoredConversation, StoredItem
from hagane.system.errors import InvalidRequestError

PATH = "/v1/conversations"
ONE = PATH + "/{conversation_id}"
router = guarded_router()


@router.post(PATH)
async def create(body: ConversationBody, request: Request) -> dict[str, Any]:
    """Start a conversation, with items where any are given."""
    conversation = StoredConversation(
        new_id("conv"), request.state.key_label, int(time.time()), body.metadata or {}
    )
    items = _stored(body.items or [])
    await asyncio.to_thread(_store(request).create_conversation, conversation, items)
    return _describe(conversation)


@router.get(ONE)
async def retrieve(conversation_id: str, request: Request) -> dict[str, Any]:
    """One conversation. Raises NotFoundError."""
    label = request.state.key_label
    found = await asyncio.to_thread(_store(request).conversation, conversation_id, label)
    return _describe(found)


@router.post(ONE)
async def update(
    conversation_id: str, body: ConversationUpdate, request: Request
) -> dict[str, Any]:
    """Set a conversation's metadata. Raises NotFoundError."""
    change = _store(request).update_conversation
    label = request.state.key_label
    return _describe(await asyncio.to_thread(change, conversation_id, label, body.metadata))


@router.delete(ONE)
async def delete(conversation_id: str, request: Request) -> dict[str, Any]:
    """Forget a conversation and its items. Raises NotFoundError."""
    label = request.state.key_label
    await asyncio.to_thread(_store(request).delete_conversation, conversation_id, label)
    return {"id": conversation_id, "object": "conversation.deleted", "deleted": True}


@router.post(ONE + "/items", response_model=None)
async def add_items(conversation_id: str, body: ItemsBody, request: Request) -> Response:
    """Append items. Raises NotFoundError."""
    items = _stored(body.items)
    label = request.state.key_label
    await asyncio.to_thread(_store(request).add_items, conversation_id, label, items)
    return json_response(list_items(Page(items, has_more=False)))


@router.get(ONE + "/items", response_model=None)
async def get_items(
    conversation_id: str,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    include: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """The items, newest first unless requested otherwise. Raises NotFoundError."""
    del include
    paging = Paging(after, limit, newest_first=order == "desc")
    label = request.state.key_label
    page = await asyncio.to_thread(_store(request).items, conversation_id, label, paging)
    return json_response(list_items(page))


@router.get(ONE + "/items/{item_id}", response_model=None)
async def get_item(
    conversation_id: str,
    item_id: str,
    request: Request,
    include: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """One item. Raises NotFoundError."""
    del include
    find = _store(request).conversation_item
    item = await asyncio.to_thread(find, conversation_id, item_id, request.state.key_label)
    return json_response(msgspec.Raw(item.body.encode()))


@router.delete(ONE + "/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, request: Request) -> dict[str, Any]:
    """Take an item out of a conversation. Raises NotFoundError."""
    remove = _store(request).delete_item
    label = request.state.key_label
    return _describe(await asyncio.to_thread(remove, conversation_id, item_id, label))


def _store(request: Request) -> Responses:
    return get_serving(request).store.responses


def _stored(items: list[Item]) -> list[StoredItem]:
    for place, item in enumerate(items):
        if isinstance(item, ItemReference):
            raise InvalidRequestError(
                "A conversation holds items themselves, no references.", param=f"items[{place}]"
            )
    return [as_stored(show_item(item)) for item in items]


def _describe(conversation: StoredConversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created_at,
        "metadata": conversation.metadata,
    }
