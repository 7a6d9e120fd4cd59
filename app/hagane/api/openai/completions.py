"""POST /v1/completions: text in, text out, no template."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, Request
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.generation import Generation, Piece, Usage, build_generation
from hagane.api.limits import Account
from hagane.api.schemas import CompletionBody
from hagane.api.serving import Serving, Target, get_serving, meter
from hagane.api.sse import stream, unless_disconnected
from hagane.api.tracing import describe_request
from hagane.pool.messages import TokenLogprobs
from hagane.system.errors import InvalidRequestError

router = guarded_router()

# A batch of prompts is one request to its sender, but as many to the queue.
_MOST_PROMPTS = 256


@router.post("/v1/completions", response_model=None)
async def complete(
    body: CompletionBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | dict[str, Any]:
    """Continue one text or several, streamed or whole."""
    serving = get_serving(request)
    target = await serving.target(body.model)
    describe_request("text_completion", body, target.served.id)
    if body.best_of not in (None, body.n or 1):
        raise InvalidRequestError(
            "'best_of' other than 'n' is not supported; leave it out.", param="best_of"
        )
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("'stream_options' needs 'stream': true.", param="stream_options")
    generations = [
        _generation(serving, account, body, prompt, target) for prompt in _prompts(target, body)
    ]
    head = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": target.served.id,
    }
    if body.stream:
        chunks = _chunks(generations, body, head)
        return await stream(request, chunks, serving.settings.keep_alive_seconds)
    per_prompt = await unless_disconnected(request, _all(generations, body))
    choices = [choice for choices in per_prompt for choice in choices]
    for index, choice in enumerate(choices):
        choice["index"] = index
    return {**head, "choices": choices, "usage": _total(generations).as_json()}


def _prompts(target: Target, body: CompletionBody) -> list[list[int]]:
    prompt = body.prompt
    encode = target.model.tokenizer.encode
    prompts: list[list[int]]
    if isinstance(prompt, str):
        prompts = [encode(prompt)]
    elif all(isinstance(part, int) for part in prompt):
        prompts = [[part for part in prompt if isinstance(part, int)]]
    else:
        prompts = [
            encode(part) if isinstance(part, str) else list(part)
            for part in prompt
            if not isinstance(part, int)
        ]
    if len(prompts) > _MOST_PROMPTS:
        raise InvalidRequestError(
            f"'prompt' has {len(prompts)} texts; send at most {_MOST_PROMPTS}.", param="prompt"
        )
    return prompts


def _generation(
    serving: Serving, account: Account, body: CompletionBody, prompt: list[int], target: Target
) -> Generation:
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "'max_tokens' 0 generates nothing; it is for 'echo': true.", param="max_tokens"
        )
    room = target.check_prompt(prompt, body.max_tokens or None, "prompt")
    wanted = room if body.max_tokens is None else max(body.max_tokens, 1)
    return build_generation(
        serving,
        account,
        body,
        prompt,
        target,
        max_tokens=wanted,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )


async def _all(generations: list[Generation], body: CompletionBody) -> list[list[dict[str, Any]]]:
    # A task group, so that one prompt's failure cancels the others.
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_whole(g, body)) for g in generations]
    except* Exception as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _whole(generation: Generation, body: CompletionBody) -> list[dict[str, Any]]:
    writers = [_Choice(generation, body) for _ in range(generation.request.n)]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    async with aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            prompt_logprobs = piece.prompt_logprobs or prompt_logprobs
            writers[piece.index].add(piece)
    return [writer.as_json(prompt_logprobs) for writer in writers]


class _Choice:
    """Writes one continuation, with the prompt before it where that is to be echoed."""

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        self.generation = generation
        self.body = body
        self.text = ""
        self.entries: list[TokenLogprobs | None] = []
        self.reason: str | None = None
        self._echoed = not body.echo
        self._offset = 0

    def add(self, piece: Piece) -> None:
        if self.body.max_tokens != 0:
            self.text += piece.text
            self.entries += piece.logprobs
            # It is no text, but clients that score prompts count on an entry for what follows.
            self.entries += [] if piece.end is None else [piece.end]
        self.reason = piece.finish_reason

    def as_json(self, prompt: tuple[TokenLogprobs | None, ...] | None) -> dict[str, Any]:
        """What was added since the last call, after the prompt in the first."""
        text, entries, first = self.text, self.entries, None
        if not self._echoed:
            ids = list(self.generation.request.prompt)
            skip = self.body.skip_special_tokens
            tokenizer = self.generation.target.model.tokenizer
            text = tokenizer.decode(ids, skip_special_tokens=skip) + text
            entries, first = [*(prompt or ()), *entries], ids[0]
        self._echoed, self.text, self.entries = True, "", []
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = _legacy_logprobs(self.generation, entries, first, self._offset)
            self._offset += sum(map(len, logprobs["tokens"]))
        reason = "length" if self.body.max_tokens == 0 and self.reason else self.reason
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _legacy_logprobs(
    generation: Generation, entries: list[TokenLogprobs | None], first: int | None, offset: int
) -> dict[str, Any]:
    """OpenAI's older format: parallel lists, the prompt's first token without a probability."""
    show = generation.target.model.tokenizer.token_text
    tokens, values, tops, offsets = [], [], [], []
    for entry in entries:
        token = show(first or 0) if entry is None else show(entry.token)
        tokens.append(token)
        offsets.append(offset)
        offset += len(token)
        values.append(None if entry is None else max(entry.logprob, -9999.0))
        tops.append(None if entry is None else {show(t): max(v, -9999.0) for t, v in entry.top})
    return {
        "tokens": tokens,
        "token_logprobs": values,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


async def _chunks(
    generations: list[Generation], body: CompletionBody, head: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    usage = {"usage": None} if body.stream_options and body.stream_options.include_usage else {}
    writers = [[_Choice(g, body) for _ in range(g.request.n)] for g in generations]
    prompts: dict[int, tuple[TokenLogprobs | None, ...] | None] = {}
    async with aclosing(_merged(generations)) as pieces:
        async for position, piece in pieces:
            prompts[position] = piece.prompt_logprobs or prompts.get(position)
            writer = writers[position][piece.index]
            writer.add(piece)
            choice = writer.as_json(prompts[position])
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                choice["index"] = position * len(writers[position]) + piece.index
                yield {**head, "choices": [choice], **usage}
    if usage:
        yield {**head, "choices": [], "usage": _total(generations).as_json()}


async def _merged(
    generations: list[Generation],
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(prompt's position, piece) of all generations as they come; closing it cancels them all."""
    if len(generations) == 1:
        # Most requests have one prompt: their tokens need not pass through a task of their own.
        async with aclosing(generations[0].pieces()) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    queue: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def feed(position: int, generation: Generation) -> None:
        try:
            async with aclosing(generation.pieces()) as pieces:
                async for piece in pieces:
                    queue.put_nowait((position, piece))
            queue.put_nowait((position, None))
        except Exception as error:
            queue.put_nowait((position, error))

    tasks = [asyncio.create_task(feed(i, g)) for i, g in enumerate(generations)]
    unfinished = len(tasks)
    try:
        while unfinished:
            position, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                unfinished -= 1
            else:
                yield position, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _total(generations: list[Generation]) -> Usage:
    total = Usage()
    for generation in generations:
        total.prompt_tokens += generation.usage.prompt_tokens
        total.completion_tokens += generation.usage.completion_tokens
        total.cached_tokens += generation.usage.cached_tokens
    return total
