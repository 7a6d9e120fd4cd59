"""Responses on their way: how one is made, and kept when it is done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from pydantic import ValidationError

from hagane.api.errors import describe
from hagane.api.generation import Generation
from hagane.api.limits import Account
from hagane.api.logprobs import show_logprobs
from hagane.api.openai.response_events import ResponseWriter, Wire
from hagane.api.openai.response_record import ResponseRecord
from hagane.api.serving import Serving
from hagane.generation.events import Update
from hagane.store.responses import Responses, StoredItem, StoredResponse
from hagane.system.errors import HaganeError

logger = logging.getLogger(__name__)

# Roughly, of an answer as JSON.
_BYTES_PER_TOKEN = 64


@dataclass
class PreparedResponse:
    """A response that is ready to be made: its generation, and what will be kept of it."""

    generation: Generation
    writer: ResponseWriter
    owner: str
    inputs: list[StoredItem]
    store: bool
    logprobs: bool
    record: ResponseRecord | None = None

    @property
    def id(self) -> str:
        """The response's id."""
        return str(self.writer.response["id"])

    def save(self, responses: Responses, *, inputs: bool) -> None:
        """Keep the response as it is now, and its `inputs` where they are not kept yet."""
        shown = self.writer.response
        finished = shown["status"] not in ("queued", "in_progress")
        outputs = [as_stored(item) for item in self.writer.output] if finished else []
        row = StoredResponse(
            id=self.id,
            owner=self.owner,
            created_at=shown["created_at"],
            status=shown["status"],
            previous=shown["previous_response_id"],
            conversation=(shown["conversation"] or {}).get("id"),
            body=msgspec.json.encode(shown).decode(),
        )
        responses.save(row, self.inputs if inputs else (), outputs)


def as_stored(item: dict[str, Any]) -> StoredItem:
    """An item as the store keeps it."""
    return StoredItem(item["id"], msgspec.json.encode(item).decode())


async def make_response(
    serving: Serving, account: Account, prepared: PreparedResponse, *, queued: bool = False
) -> AsyncGenerator[Wire, None]:
    """The events of a response, which is kept before the last of them.

    Raises HaganeError for what goes wrong before the first one; later that is an event.
    """
    writer = prepared.writer
    begun = False
    try:
        async with aclosing(prepared.generation.updates(serving, account)) as updates:
            async for update in updates:
                if not begun:
                    begun = True
                    for event in writer.begin():
                        yield event
                for event in writer.add(update, _logprobs(prepared, update)):
                    yield event
        ending = writer.finish(prepared.generation.usage)
    except Exception as error:
        if not (begun or queued):
            raise
        ending = writer.fail(*_reason(error))
    except asyncio.CancelledError:
        writer.stop()
        raise
    if prepared.store:
        await asyncio.to_thread(prepared.save, serving.store.responses, inputs=not queued)
    if prepared.record is not None and writer.response["status"] in ("completed", "incomplete"):
        await _record(serving, prepared, prepared.record)
    for event in ending:
        yield event


async def _record(serving: Serving, prepared: PreparedResponse, record: ResponseRecord) -> None:
    """Keep the response among the stored completions."""
    writer, usage = prepared.writer, prepared.generation.usage
    try:
        body, answer = await asyncio.to_thread(
            record.as_completion, writer.response, writer.output, usage.as_json()
        )
    except ValidationError as error:
        # What was said is nobody's who reads the log.
        places = [".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)]
        logger.warning("%s is no stored completion: %s", prepared.id, ", ".join(places))
        return
    size = record.conversation.size + _BYTES_PER_TOKEN * usage.completion_tokens
    serving.answers.keep(body, answer, record.origin, size)


def _reason(error: Exception) -> tuple[str, str]:
    """(code, message) in the words of a response's `error`."""
    if not isinstance(error, HaganeError):
        logger.error("a response failed by a fault of this program", exc_info=error)
        return "server_error", "Internal error; the log has the details."
    status, body, _ = describe(error)
    code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(status, "server_error")
    return code, body["error"]["message"]


def _logprobs(prepared: PreparedResponse, update: Update) -> list[msgspec.Raw]:
    if not prepared.logprobs or update.reasoning_tokens:
        return []
    tokenizer = prepared.generation.resolved.text.tokenizer
    return [show_logprobs(tokenizer, entry) for entry in update.logprobs]


def cancelled(stored: StoredResponse, shown: dict[str, Any]) -> StoredResponse:
    """A response that was stopped where it was."""
    body = msgspec.json.encode({**shown, "status": "cancelled"}).decode()
    return replace(stored, status="cancelled", body=body)
