"""POST /v1/chat/completions: from its body to a conversation, and from events to its chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.answering import effort_variables, new_call_id, prepare_answer, render_chat
from hagane.api.answers import Origin
from hagane.api.chat_messages import Message
from hagane.api.generation import Generation
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.logprobs import show_logprobs
from hagane.api.openai.chat_answer import ChatAnswer
from hagane.api.openai.chat_extras import ChatExtras
from hagane.api.schemas import ChatBody
from hagane.api.serving import ResolvedModel, Serving, get_serving, meter
from hagane.api.sse import json_response, stream, unless_disconnected
from hagane.api.tracing import describe_request
from hagane.generation.conversation import Conversation, ToolCall, Turn
from hagane.generation.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStarted,
    Update,
)
from hagane.generation.request import Parameters
from hagane.system.errors import InvalidRequestError

router = guarded_router()

# Of an answer that waits to be stored, with its log-probabilities.
_BYTES_PER_TOKEN = 64


@router.post("/v1/chat/completions", response_model=None)
async def chat(
    body: ChatBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | Response:
    """One answer to a conversation, streamed or whole."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    describe_request("chat", body, resolved.ref.id)
    lane = serving.offload.run_compiling if body.has_grammar else serving.offload.run_blocking
    generation = await lane(body_size(request), _prepare, serving, account, resolved, body)
    updates = generation.updates(serving, account)
    head: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": resolved.ref.id,
    }
    user = body.user or body.safety_identifier
    origin = Origin.of(resolved.ref, account.label, user)
    serving.answers.note(head["id"], origin)

    def finish(choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole answer, which is stored if the body wants it."""
        usage = generation.usage
        whole = {**head, "object": "chat.completion", "choices": choices, "usage": usage.as_json()}
        whole |= extras.of_prompt
        if body.store:
            size = body_size(request) + _BYTES_PER_TOKEN * usage.completion_tokens
            serving.answers.keep(body, whole, origin, size)
        return whole

    extras = ChatExtras(body, generation)
    if body.stream:
        chunk = {**head, "object": "chat.completion.chunk"}
        chunks = _chunks(generation, updates, body, chunk, finish, extras)
        return await stream(request, chunks, serving.settings.keep_alive_seconds)
    choices = await unless_disconnected(request, _whole(generation, updates, body, extras))
    return json_response(finish(choices))


@router.post("/v1/chat/completions/render", response_model=None)
async def render(body: ChatBody, request: Request) -> Response:
    """The prompt that a body makes, as text and as token ids; nothing is generated."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    size = body_size(request)
    text, ids = await serving.offload.run_blocking(size, _render, resolved, body)
    most = resolved.context_length
    return json_response(
        {"prompt": text, "prompt_token_ids": ids, "count": len(ids), "max_model_len": most}
    )


def _render(resolved: ResolvedModel, body: ChatBody) -> tuple[str, list[int]]:
    conversation, parameters = read_body(body)
    text = render_chat(resolved, conversation)
    wanted = parameters.max_tokens
    return text, resolved.encode(text, "messages", wanted=wanted, add_special_tokens=False)


def read_body(body: ChatBody) -> tuple[Conversation, Parameters]:
    """The parameters of a body. Raises InvalidRequestError for fields that exclude each other."""
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequestError(
            "Give 'max_completion_tokens' or the older 'max_tokens', not both.",
            param="max_tokens",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    conversation = read_messages(
        body.messages,
        tools=body.shown_tools(),
        add_generation_prompt=body.add_generation_prompt,
        extra=_template_arguments(body),
    )
    if body.continue_final_message:
        conversation = continued(conversation, body.model_fields_set)
    parameters = body.parameters(
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return conversation, parameters


def read_messages(
    messages: list[Message],
    *,
    tools: tuple[dict[str, Any], ...] = (),
    add_generation_prompt: bool,
    extra: dict[str, Any] | None = None,
) -> Conversation:
    """OpenAI's messages as a conversation."""
    turns = tuple(map(_turn, messages))
    return Conversation(turns, tools, add_generation_prompt, tuple((extra or {}).items()))


def continued(conversation: Conversation, given: set[str]) -> Conversation:
    """A conversation whose last message is the beginning of the answer.

    `given` are the fields of the body. Raises InvalidRequestError where that cannot be.
    """
    last = conversation.turns[-1]
    if last.role != "assistant" or last.calls or not last.text.strip():
        raise InvalidRequestError(
            "'continue_final_message' needs a last message of the assistant's, with text and "
            "without calls.",
            param="continue_final_message",
        )
    if conversation.add_generation_prompt and "add_generation_prompt" in given:
        raise InvalidRequestError(
            "'continue_final_message' and 'add_generation_prompt' exclude each other.",
            param="continue_final_message",
        )
    return replace(conversation, add_generation_prompt=False, continue_final=True)


def _turn(message: Message) -> Turn:
    older = {"developer": "system", "function": "tool"}
    calls = [
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in message.tool_calls or ()
    ]
    if message.function_call is not None:
        calls.append(ToolCall("", message.function_call.name, message.function_call.arguments))
    role: Any = older.get(message.role, message.role)
    reasoning = message.reasoning_content or message.reasoning
    return Turn(role, message.text, message.name, reasoning, tuple(calls), message.tool_call_id)


def _template_arguments(body: ChatBody) -> dict[str, Any]:
    extra = body.chat_template_kwargs or {}
    if taken := {"messages", "add_generation_prompt", "tools"} & set(extra):
        raise InvalidRequestError(
            f"'chat_template_kwargs' must not set {sorted(taken)[0]!r}.",
            param="chat_template_kwargs",
        )
    return effort_variables(body.reasoning_effort) | extra


def _prepare(
    serving: Serving, account: Account, resolved: ResolvedModel, body: ChatBody
) -> Generation:
    conversation, parameters = read_body(body)
    return prepare_answer(
        serving,
        account,
        resolved,
        conversation,
        parameters,
        tools=body.wanted_tools(),
        grammar=body.wanted_grammar(resolved.text.tokenizer.added_id),
        reasoning_budget=body.thinking_token_budget,
    )


async def _chunks(
    generation: Generation,
    updates: AsyncGenerator[Update, None],
    body: ChatBody,
    head: dict[str, Any],
    keep: Callable[[list[dict[str, Any]]], object],
    extras: ChatExtras,
) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a stream; `keep` gets its choices at the end where they are to be stored."""
    started: set[int] = set()
    stored = [ChatAnswer() for _ in range(generation.request.n)] if body.store else None

    def chunk(
        index: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}
        usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
        if body.continuous_usage:
            usage = {"usage": generation.usage.as_json()}
        return {**head, "choices": [choice], **usage}

    async with aclosing(updates):
        async for update in updates:
            index = update.index
            if index not in started:
                started.add(index)
                extras.add(update)
                yield {**chunk(index, {"role": "assistant", "content": ""}), **extras.of_prompt}
            deltas, reason = _deltas(update, body), _reason(update, body)
            logprobs = _logprobs(generation, body, update)
            if stored is not None:
                stored[index].add(deltas, logprobs, reason)
            if (logprobs or extras.wants_tokens) and not deltas:
                deltas = [{"content": ""}]
            tokens = extras.of_choice(update.tokens)
            for delta in deltas:
                written = chunk(index, delta, logprobs=logprobs)
                written["choices"][0] |= tokens
                yield written
                logprobs, tokens = None, extras.of_choice(())
            if reason is not None:
                yield chunk(index, {}, reason)
    if body.include_usage:
        yield {**head, "choices": [], "usage": generation.usage.as_json()}
    if stored is not None:
        keep([answer.as_json(i, body.logprobs) for i, answer in enumerate(stored)])


def write_delta(event: Event, older: bool = False) -> dict[str, Any] | None:
    """The `delta` of one event; None for the end, which has a chunk of its own.

    With `older` a call is written as the answer to `functions`.
    """
    if isinstance(event, TextDelta):
        return {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return {"reasoning_content": event.text}
    if isinstance(event, ToolCallStarted):
        function = {"name": event.name, "arguments": ""}
        if older:
            return {"function_call": function}
        call = {
            "index": event.index,
            "id": new_call_id(),
            "type": "function",
            "function": function,
        }
        return {"tool_calls": [call]}
    if isinstance(event, ToolCallArguments):
        function = {"arguments": event.text}
        if older:
            return {"function_call": function}
        return {"tool_calls": [{"index": event.index, "function": function}]}
    return None


async def _whole(
    generation: Generation,
    updates: AsyncGenerator[Update, None],
    body: ChatBody,
    extras: ChatExtras,
) -> list[dict[str, Any]]:
    answers = [ChatAnswer() for _ in range(generation.request.n)]
    tokens: list[list[int]] = [[] for _ in answers]
    async with aclosing(updates):
        async for update in updates:
            logprobs = _logprobs(generation, body, update)
            answers[update.index].add(_deltas(update, body), logprobs, _reason(update, body))
            tokens[update.index] += update.tokens
            extras.add(update)
    return [
        answer.as_json(index, body.logprobs) | extras.of_choice(tokens[index])
        for index, answer in enumerate(answers)
    ]


def _deltas(update: Update, body: ChatBody) -> list[dict[str, Any]]:
    written = (write_delta(event, body.calls_are_older) for event in update.events)
    return [delta for delta in written if delta]


def _reason(update: Update, body: ChatBody) -> str | None:
    reason = update.finish_reason
    return "function_call" if body.calls_are_older and reason == "tool_calls" else reason


def _logprobs(generation: Generation, body: ChatBody, update: Update) -> dict[str, Any] | None:
    if not body.logprobs or not update.logprobs:
        return None
    tokenizer = generation.resolved.text.tokenizer
    return {
        "content": [show_logprobs(tokenizer, entry) for entry in update.logprobs],
        "refusal": None,
    }
