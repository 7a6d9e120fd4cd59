"""POST /v1/messages: Anthropic's Messages, and the count of their tokens."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Annotated, Any

import msgspec
from fastapi import Depends, Request, Response
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.answering import prepare_answer, tokenize_chat
from hagane.api.answers import Origin
from hagane.api.anthropic.message_writer import MessageWriter, Wire
from hagane.api.anthropic.schemas import (
    AnthropicMessage,
    Block,
    MessagesBody,
    MessagesInput,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from hagane.api.error_shapes import ANTHROPIC_PATH, anthropic_error
from hagane.api.errors import describe
from hagane.api.generation import Generation
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.serving import ResolvedModel, Serving, get_serving, meter
from hagane.api.sse import Framing, json_response, stream, unless_disconnected
from hagane.api.tools import allowed, choose, shown
from hagane.api.tracing import describe_request
from hagane.generation.conversation import Conversation, ToolCall, Turn
from hagane.generation.request import Parameters
from hagane.system.errors import HaganeError

router = guarded_router()


def _error_event(error: HaganeError) -> dict[str, Any]:
    status, body, _ = describe(error)
    return anthropic_error(status, body)


FRAMING = Framing(named=True, end=b"", error=_error_event)


@router.post(ANTHROPIC_PATH, response_model=None)
async def create(
    body: MessagesBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | Response:
    """One answer to a conversation, streamed or whole."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    describe_request("chat", body, resolved.ref.id)
    lane = serving.offload.run_compiling if body.has_grammar else serving.offload.run_blocking
    generation = await lane(body_size(request), _prepare, serving, account, resolved, body)
    writer = MessageWriter(resolved.ref.id, generation.usage)
    user = body.metadata.user_id if body.metadata else None
    origin = Origin.of(resolved.ref, account.label, user)
    serving.answers.note(writer.message["id"], origin)
    events = _events(serving, account, generation, writer)
    if body.stream:
        return await stream(request, events, serving.settings.keep_alive_seconds, FRAMING)
    await unless_disconnected(request, _drain(events))
    return json_response(writer.message)


@router.post(ANTHROPIC_PATH + "/count_tokens")
async def count_tokens(body: MessagesInput, request: Request) -> dict[str, int]:
    """How many tokens a conversation has, without an answer."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    ids = await serving.offload.run_blocking(body_size(request), _tokenize, resolved, body)
    return {"input_tokens": len(ids)}


def read_body(body: MessagesBody) -> tuple[Conversation, Parameters]:
    """The conversation and parameters of a body."""
    parameters = Parameters(
        max_tokens=body.max_tokens,
        stop=tuple(body.stop_sequences or ()),
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        seed=body.seed,
        priority=body.priority,
        timeout=body.timeout,
    )
    return read_conversation(body), parameters


def read_conversation(body: MessagesInput) -> Conversation:
    """Messages as a conversation. A last message of the assistant's is continued."""
    system = [] if body.system is None else [Turn("system", _text(body.system))]
    turns = [turn for message in body.messages for turn in _turns(message)]
    continues = body.messages[-1].role == "assistant" and not turns[-1].calls
    return Conversation(
        (*system, *turns),
        shown(allowed(body.choice, body.functions)),
        add_generation_prompt=not continues,
        extra=_template_variables(body),
        continue_final=continues,
    )


def _turns(message: AnthropicMessage) -> Iterator[Turn]:
    """A message as turns: each result of a tool is its own turn, before the text after it."""
    blocks = message.content
    if isinstance(blocks, str):
        yield Turn(message.role, blocks)
        return
    if message.role == "assistant":
        yield _answer(blocks)
        return
    results = [block for block in blocks if isinstance(block, ToolResultBlock)]
    for result in results:
        yield Turn("tool", _text(result.content), call_id=result.tool_use_id)
    texts = [block.text for block in blocks if isinstance(block, TextBlock)]
    if texts or not results:
        yield Turn(message.role, "".join(texts))


def _answer(blocks: list[Block]) -> Turn:
    calls = tuple(
        ToolCall(block.id, block.name, msgspec.json.encode(block.input).decode())
        for block in blocks
        if isinstance(block, ToolUseBlock)
    )
    text = "".join(block.text for block in blocks if isinstance(block, TextBlock))
    thoughts = [block.thinking for block in blocks if isinstance(block, ThinkingBlock)]
    return Turn("assistant", text, reasoning="".join(thoughts) or None, calls=calls)


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content)


def _template_variables(body: MessagesInput) -> tuple[tuple[str, Any], ...]:
    # By the contract a model thinks only on request.
    thinking = body.thinking is not None and body.thinking.type != "disabled"
    given: dict[str, Any] = {"enable_thinking": thinking}
    if body.output_config is not None and body.output_config.effort is not None:
        given["reasoning_effort"] = body.output_config.effort
    return tuple((given | (body.chat_template_kwargs or {})).items())


def _prepare(
    serving: Serving, account: Account, resolved: ResolvedModel, body: MessagesBody
) -> Generation:
    conversation, parameters = read_body(body)
    return prepare_answer(
        serving,
        account,
        resolved,
        conversation,
        parameters,
        tools=choose(body.choice, body.functions, parallel=body.parallel),
        grammar=body.wanted_grammar(),
        reasoning_budget=body.thinking.budget_tokens if body.thinking else None,
    )


def _tokenize(resolved: ResolvedModel, body: MessagesInput) -> list[int]:
    return tokenize_chat(resolved, read_conversation(body))


async def _events(
    serving: Serving, account: Account, generation: Generation, writer: MessageWriter
) -> AsyncGenerator[Wire, None]:
    begun = False
    async with aclosing(generation.updates(serving, account)) as updates:
        async for update in updates:
            if not begun:
                begun = True
                for event in writer.begin():
                    yield event
            for event in writer.add(update):
                yield event
    for event in writer.finish():
        yield event


async def _drain(events: AsyncGenerator[Wire, None]) -> None:
    async with aclosing(events):
        async for _ in events:
            pass
