"""POST /v1/chat/completions."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, Request
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.generation import Generation, Piece, build_generation
from hagane.api.limits import Account
from hagane.api.schemas import ChatBody
from hagane.api.serving import ServedModel, Serving, Target, get_serving, meter
from hagane.api.sse import stream, unless_disconnected
from hagane.api.tracing import describe_request
from hagane.pool.messages import TokenLogprobs
from hagane.system.errors import InvalidRequestError
from hagane.text.tokenizer import Tokenizer

router = guarded_router()


@router.post("/v1/chat/completions", response_model=None)
async def chat(
    body: ChatBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | dict[str, Any]:
    """One answer to a conversation, streamed or whole."""
    serving = get_serving(request)
    target = await serving.target(body.model)
    describe_request("chat", body, target.served.id)
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("'stream_options' needs 'stream': true.", param="stream_options")
    generation = _generation(serving, account, body, target)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": target.served.id,
    }
    if body.stream:
        chunks = _chunks(generation, body, {**head, "object": "chat.completion.chunk"})
        return await stream(request, chunks, serving.settings.keep_alive_seconds)
    choices = await unless_disconnected(request, _whole(generation, body))
    return {
        **head,
        "object": "chat.completion",
        "choices": choices,
        "usage": generation.usage.as_json(),
    }


def render_chat(model: ServedModel, body: ChatBody) -> list[int]:
    """The conversation as token ids, through the model's own template."""
    template = model.template
    if template is None:
        raise InvalidRequestError(
            f"The model '{model.id}' has no chat template; use /v1/completions.",
            param="messages",
        )
    text = template.render(
        [message.as_template_input() for message in body.messages],
        add_generation_prompt=body.add_generation_prompt,
        **_template_arguments(body),
    )
    return model.tokenizer.encode(text, add_special_tokens=False)


def _template_arguments(body: ChatBody) -> dict[str, Any]:
    extra = body.chat_template_kwargs or {}
    if taken := {"messages", "add_generation_prompt"} & set(extra):
        raise InvalidRequestError(
            f"'chat_template_kwargs' must not set {sorted(taken)[0]!r}.",
            param="chat_template_kwargs",
        )
    return extra


def _generation(serving: Serving, account: Account, body: ChatBody, target: Target) -> Generation:
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise InvalidRequestError(
            "Give 'max_completion_tokens' or the older 'max_tokens', not both.",
            param="max_tokens",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("'top_logprobs' needs 'logprobs': true.", param="top_logprobs")
    prompt = render_chat(target.model, body)
    room = target.check_prompt(prompt, body.max_completion_tokens or body.max_tokens, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return build_generation(
        serving, account, body, prompt, target, max_tokens=room, logprobs=logprobs
    )


async def _chunks(
    generation: Generation, body: ChatBody, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    started: set[int] = set()
    usage = {"usage": None} if body.stream_options and body.stream_options.include_usage else {}

    def chunk(index: int, delta: dict[str, Any], piece: Piece | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": None}
        choice["logprobs"] = _logprobs(generation, body, piece)
        return {**head, "choices": [choice], **usage}

    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            if piece.index not in started:
                started.add(piece.index)
                yield chunk(piece.index, {"role": "assistant", "content": ""}, None)
            if piece.text or (body.logprobs and piece.logprobs):
                yield chunk(piece.index, {"content": piece.text}, piece)
            if piece.finish_reason is not None:
                last = chunk(piece.index, {}, None)
                last["choices"][0]["finish_reason"] = piece.finish_reason
                yield last
    if usage:
        yield {**head, "choices": [], "usage": generation.usage.as_json()}


async def _whole(generation: Generation, body: ChatBody) -> list[dict[str, Any]]:
    count = generation.request.n
    texts = [""] * count
    reasons: list[str | None] = [None] * count
    entries: list[list[dict[str, Any]]] = [[] for _ in range(count)]
    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            texts[piece.index] += piece.text
            reasons[piece.index] = piece.finish_reason
            if (logprobs := _logprobs(generation, body, piece)) is not None:
                entries[piece.index] += logprobs["content"]
    return [
        {
            "index": index,
            "message": {"role": "assistant", "content": texts[index], "refusal": None},
            "logprobs": {"content": entries[index], "refusal": None} if body.logprobs else None,
            "finish_reason": reasons[index],
        }
        for index in range(count)
    ]


def _logprobs(generation: Generation, body: ChatBody, piece: Piece | None) -> dict[str, Any] | None:
    if not body.logprobs or piece is None:
        return None
    tokenizer = generation.target.model.tokenizer
    return {"content": [_entry(tokenizer, entry) for entry in piece.logprobs], "refusal": None}


def _entry(tokenizer: Tokenizer, entry: TokenLogprobs) -> dict[str, Any]:
    def shown(token: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token)
        text = raw.decode("utf-8", errors="replace")
        # JSON has no infinity; OpenAI's own floor for impossible tokens is -9999.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    return {
        **shown(entry.token, entry.logprob),
        "top_logprobs": [shown(token, logprob) for token, logprob in entry.top],
    }
