"""/v1/responses: create, follow, read, cancel, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, Query, Request, Response
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.answering import prepare_answer, tokenize_chat
from hagane.api.answers import Origin
from hagane.api.background import BackgroundRun
from hagane.api.errors import describe
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.openai.response_events import ResponseWriter, Wire
from hagane.api.openai.response_input import read_input, show_head
from hagane.api.openai.response_items import new_id, show_item
from hagane.api.openai.response_record import ResponseRecord
from hagane.api.openai.response_runs import (
    PreparedResponse,
    as_stored,
    cancelled,
    make_response,
)
from hagane.api.openai.response_schemas import InputTokensBody, ResponseBody
from hagane.api.serving import ResolvedModel, Serving, get_serving, meter
from hagane.api.sse import Framing, json_response, stream, unless_disconnected
from hagane.api.tools import choose
from hagane.api.tracing import describe_request
from hagane.store.paging import Page, Paging
from hagane.store.responses import UNFINISHED, StoredItem
from hagane.system.errors import HaganeError, InvalidRequestError, NotFoundError

PATH = "/v1/responses"
router = guarded_router()


def _error_event(error: HaganeError) -> dict[str, Any]:
    shown = describe(error)[1]["error"]
    fields = {name: shown[name] for name in ("code", "message", "param")}
    return {"type": "error", "sequence_number": 0, **fields}


FRAMING = Framing(named=True, end=b"", error=_error_event)


@router.post(PATH, response_model=None)
async def create(
    body: ResponseBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | Response:
    """Answer, at once, as a stream, or in the background."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    describe_request("chat", body, resolved.ref.id)
    _require_sense(body)
    lane = serving.offload.run_compiling if body.has_grammar else serving.offload.run_blocking
    origin = Origin.of(resolved.ref, account.label, body.user or body.safety_identifier)
    prepared = await lane(body_size(request), _prepare, serving, account, resolved, body, origin)
    serving.answers.note(prepared.id, origin)
    keep_alive = serving.settings.keep_alive_seconds
    if body.background:
        run = await _start(serving, account, prepared)
        if body.stream:
            return await stream(request, run.follow(-1), keep_alive, FRAMING)
        return json_response(prepared.writer.response)
    events = make_response(serving, account, prepared)
    if body.stream:
        return await stream(request, events, keep_alive, FRAMING)
    await unless_disconnected(request, _drain(events))
    return json_response(prepared.writer.response)


def _require_sense(body: ResponseBody) -> None:
    """Raises InvalidRequestError for fields that exclude each other."""
    if body.background and not body.store:
        raise InvalidRequestError(
            "'background' needs 'store': true: its answer is fetched later.", param="background"
        )
    if body.top_logprobs and body.logprobs is None:
        raise InvalidRequestError(
            "'top_logprobs' needs 'include': [\"message.output_text.logprobs\"].",
            param="top_logprobs",
        )


def _prepare(
    serving: Serving,
    account: Account,
    resolved: ResolvedModel,
    body: ResponseBody,
    origin: Origin,
) -> PreparedResponse:
    given = read_input(serving.store.responses, account.label, body)
    parameters = body.decoding(max_tokens=body.max_output_tokens, logprobs=body.logprobs)
    generation = prepare_answer(
        serving,
        account,
        resolved,
        given.conversation,
        parameters,
        tools=choose(body.choice, body.tools or (), parallel=body.parallel_tool_calls is not False),
        grammar=body.wanted_grammar(),
        param="input",
        truncate=body.truncation == "auto",
        reasoning_budget=body.reasoning.token_budget if body.reasoning else None,
    )
    head = show_head(body, new_id("resp"), resolved, generation.request.sampling)
    return PreparedResponse(
        generation=generation,
        writer=ResponseWriter(head),
        owner=account.label,
        inputs=[as_stored(show_item(item)) for item in given.new],
        store=body.store,
        logprobs=body.logprobs is not None,
        # Responses are stored unless a client objects; to be learned from, they have to be offered.
        record=(
            ResponseRecord(given.conversation, origin, body.metadata)
            if body.store and "store" in body.model_fields_set
            else None
        ),
    )


async def _start(serving: Serving, account: Account, prepared: PreparedResponse) -> BackgroundRun:
    """Make a response in the background; it is kept as queued first."""
    serving.runs.require_room()
    run = BackgroundRun(prepared.id, prepared.owner, prepared.writer.response)
    for event in prepared.writer.queue():
        run.add(event)
    await asyncio.to_thread(prepared.save, serving.store.responses, inputs=True)
    serving.runs.start(run, account, make_response(serving, account, prepared, queued=True))
    return run


async def _cancel(serving: Serving, response_id: str, owner: str) -> None:
    """Stop a response that is being made in the background, and keep it as cancelled."""
    run = serving.runs.find(response_id, owner)
    if run is not None and await serving.runs.cancel(run):
        responses = serving.store.responses
        stored = await asyncio.to_thread(responses.get, response_id, owner)
        if stored.status in UNFINISHED:
            await asyncio.to_thread(responses.save, cancelled(stored, run.shown))


async def _drain(events: AsyncGenerator[Wire, None]) -> None:
    async with aclosing(events):
        async for event in events:
            if event["type"] == "response.failed":
                break


@router.post(PATH + "/input_tokens")
async def count_tokens(body: InputTokensBody, request: Request) -> dict[str, Any]:
    """How many tokens the input of a response would have."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model or serving.model.id)
    size = body_size(request)
    label = request.state.key_label
    count = await serving.offload.run_blocking(size, _count, serving, label, resolved, body)
    return {"object": "response.input_tokens", "input_tokens": count}


def _count(serving: Serving, owner: str, resolved: ResolvedModel, body: InputTokensBody) -> int:
    given = read_input(serving.store.responses, owner, body)
    return len(tokenize_chat(resolved, given.conversation, "input"))


@router.get(PATH + "/{response_id}", response_model=None)
async def retrieve(
    response_id: str,
    request: Request,
    include: Annotated[list[str] | None, Query()] = None,
    stream_it: Annotated[bool, Query(alias="stream")] = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
    include_obfuscation: bool = False,
) -> EventSourceResponse | Response:
    """A stored response; one made in the background can be followed while it is. NotFoundError."""
    del include, include_obfuscation
    serving = get_serving(request)
    label = request.state.key_label
    run = serving.runs.find(response_id, label)
    if stream_it:
        if run is None:
            await asyncio.to_thread(serving.store.responses.get, response_id, label)
            raise InvalidRequestError(
                f"The events of '{response_id}' are gone: only a response made in the background "
                "can be followed, and for a while. Read it without 'stream'.",
                param="stream",
            )
        after = -1 if starting_after is None else starting_after
        return await stream(
            request, run.follow(after), serving.settings.keep_alive_seconds, FRAMING
        )
    if run is not None and not run.done:
        return json_response(run.shown)
    stored = await asyncio.to_thread(serving.store.responses.get, response_id, label)
    return json_response(msgspec.Raw(stored.body.encode()))


@router.delete(PATH + "/{response_id}")
async def delete(response_id: str, request: Request) -> dict[str, Any]:
    """Forget a response; one that is being made is cancelled first. Raises NotFoundError."""
    serving = get_serving(request)
    label = request.state.key_label
    await _cancel(serving, response_id, label)
    await asyncio.to_thread(serving.store.responses.delete, response_id, label)
    await serving.answers.flush()
    with suppress(NotFoundError):
        # One that data sets could have been made of.
        await asyncio.to_thread(serving.store.answers.completions.delete, response_id, label)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post(PATH + "/{response_id}/cancel", response_model=None)
async def cancel(response_id: str, request: Request) -> Response:
    """Stop a response that is made in the background. Raises NotFoundError."""
    serving = get_serving(request)
    label = request.state.key_label
    await _cancel(serving, response_id, label)
    stored = await asyncio.to_thread(serving.store.responses.get, response_id, label)
    shown = msgspec.json.decode(stored.body)
    if not shown["background"]:
        raise InvalidRequestError(
            f"'{response_id}' was not made in the background; close its connection to cancel one "
            "that was not.",
            param="response_id",
        )
    return json_response(shown)


@router.get(PATH + "/{response_id}/input_items", response_model=None)
async def input_items(
    response_id: str,
    request: Request,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    include: Annotated[list[str] | None, Query()] = None,
) -> Response:
    """The input items of a response, without its context. Raises NotFoundError."""
    del include
    responses = get_serving(request).store.responses
    paging = Paging(after, limit, newest_first=order == "desc")
    page = await asyncio.to_thread(responses.inputs, response_id, request.state.key_label, paging)
    return json_response(list_items(page))


def list_items(page: Page[StoredItem]) -> dict[str, Any]:
    """A page of items in OpenAI's shape."""
    return {
        "object": "list",
        "data": [msgspec.Raw(item.body.encode()) for item in page.items],
        "first_id": page.items[0].id if page.items else None,
        "last_id": page.items[-1].id if page.items else None,
        "has_more": page.has_more,
    }
