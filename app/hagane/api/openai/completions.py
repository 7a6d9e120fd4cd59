"""POST /v1/completions: text in, text out, no template."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from sse_starlette import EventSourceResponse

from hagane.api.access import guarded_router
from hagane.api.answers import Origin
from hagane.api.generation import Generation, prepare_generation
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.openai.completion_choice import CompletionChoice
from hagane.api.schemas import CompletionBody
from hagane.api.serving import ResolvedModel, Serving, get_serving, meter
from hagane.api.sse import json_response, stream, unless_disconnected
from hagane.api.tracing import describe_request
from hagane.generation.answer_form import AnswerForm
from hagane.generation.events import Update
from hagane.generation.request import Parameters
from hagane.generation.stream import no_parsers
from hagane.generation.usage import Usage
from hagane.system.errors import InvalidRequestError
from hagane.text.fill_in_the_middle import FillInTheMiddle

router = guarded_router()

# A batch of prompts is one request to its sender, but as many to the queue.
_MOST_SEQUENCES = 256

Prompt = str | list[int]
# A chunk is worth sending where it has any of these.
_SENT = ("text", "logprobs", "finish_reason", "token_ids")


@router.post("/v1/completions", response_model=None)
async def complete(
    body: CompletionBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> EventSourceResponse | Response:
    """Continue one text or several, streamed or whole."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    describe_request("text_completion", body, resolved.ref.id)
    lane = serving.offload.run_compiling if body.has_grammar else serving.offload.run
    generations = await lane(body_size(request), _prepare, serving, account, resolved, body)
    head: dict[str, Any] = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": resolved.ref.id,
    }
    user = body.user or body.safety_identifier
    serving.answers.note(head["id"], Origin.of(resolved.ref, account.label, user))
    running = _Running(serving, account, body, generations)
    if body.stream:
        chunks = _chunks(running, head)
        return await stream(request, chunks, serving.settings.keep_alive_seconds)
    choices = await unless_disconnected(request, _whole(running))
    return json_response({**head, "choices": choices, "usage": running.usage()})


def read_body(body: CompletionBody) -> tuple[list[Prompt], Parameters]:
    """The parameters of a body. Raises InvalidRequestError for fields that exclude each other."""
    if body.best_of not in (None, body.n or 1):
        raise InvalidRequestError(
            "'best_of' other than 'n' is not supported; leave it out.", param="best_of"
        )
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError(
            "'max_tokens' 0 generates nothing; it is for 'echo': true.", param="max_tokens"
        )
    if body.suffix and body.echo:
        raise InvalidRequestError(
            "'echo' and 'suffix' exclude each other: the prompt is not before the answer.",
            param="suffix",
        )
    prompts = _prompts(body.prompt)
    sequences = len(prompts) * (body.n or 1)
    if not prompts or sequences > _MOST_SEQUENCES:
        raise InvalidRequestError(
            f"'prompt' has {len(prompts)} texts and 'n' is {body.n or 1}; send 1 to "
            f"{_MOST_SEQUENCES} in all.",
            param="prompt",
        )
    parameters = body.parameters(
        max_tokens=max(body.max_tokens, 1),
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
    )
    return prompts, parameters


def _prompts(prompt: Any) -> list[Prompt]:
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)


def _prepare(
    serving: Serving,
    account: Account,
    resolved: ResolvedModel,
    body: CompletionBody,
) -> list[Generation]:
    prompts, parameters = read_body(body)
    answer = AnswerForm(no_parsers, body.wanted_grammar(resolved.text.tokenizer.added_id))
    generations = []
    for prompt in prompts:
        wanted = body.max_tokens or None
        ids = prompt
        if body.suffix:
            ids = _around(resolved, ids, body.suffix, wanted)
        elif isinstance(ids, str):
            ids = resolved.encode(ids, "prompt", wanted=wanted)
        resolved.find_room(ids, wanted, "prompt")
        generations.append(
            prepare_generation(
                serving,
                account,
                resolved,
                ids,
                parameters,
                max_tokens=parameters.max_tokens or 1,
                answer=answer,
            )
        )
    return generations


def _around(resolved: ResolvedModel, prompt: Prompt, suffix: str, wanted: int | None) -> list[int]:
    """The prompt for what stands between a text and its `suffix`. Raises InvalidRequestError."""
    form = FillInTheMiddle.find(resolved.text.tokenizer)
    if form is None:
        raise InvalidRequestError(
            f"The model '{resolved.text.id}' was not trained for filling in the middle; leave "
            "'suffix' out, or use one that has tokens for it.",
            param="suffix",
            code="unsupported_parameter",
        )
    before = prompt
    if isinstance(before, str):
        before = resolved.encode(before, "prompt", wanted=wanted, add_special_tokens=False)
    after = resolved.encode(suffix, "suffix", wanted=wanted, add_special_tokens=False)
    return form.prompt(before, after)


class _Running:
    """The generations of one request, with a writer for each of their continuations."""

    def __init__(
        self,
        serving: Serving,
        account: Account,
        body: CompletionBody,
        generations: list[Generation],
    ) -> None:
        self.body = body
        self.offload = serving.offload
        self.choices = [
            [CompletionChoice(g, body) for _ in range(g.request.n)] for g in generations
        ]
        self._generations = generations
        self._updates = [g.updates(serving, account) for g in generations]

    def usage(self) -> dict[str, object]:
        usage = Usage.total(generation.usage for generation in self._generations)
        if self.body.max_tokens == 0:
            # The engine makes a token to score the prompt; nobody requested it.
            usage.completion_tokens = 0
        return usage.as_json()

    async def updates(self) -> AsyncGenerator[tuple[int, Update], None]:
        """(prompt's position, update) of all as they come; closing it cancels them all."""
        if len(self._updates) == 1:
            # Most requests have one prompt: its tokens need not pass through a task of their own.
            async with aclosing(self._updates[0]) as updates:
                async for update in updates:
                    yield 0, update
            return
        async with aclosing(_merge(self._updates)) as merged:
            async for position, update in merged:
                yield position, update


async def _merge(
    sources: list[AsyncGenerator[Update, None]],
) -> AsyncGenerator[tuple[int, Update], None]:
    queue: asyncio.Queue[tuple[int, Update | Exception | None]] = asyncio.Queue()

    async def feed(position: int, source: AsyncGenerator[Update, None]) -> None:
        try:
            async with aclosing(source):
                async for update in source:
                    queue.put_nowait((position, update))
            queue.put_nowait((position, None))
        except Exception as error:
            queue.put_nowait((position, error))

    tasks = [asyncio.create_task(feed(i, source)) for i, source in enumerate(sources)]
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


async def _whole(running: _Running) -> list[dict[str, Any]]:
    async with aclosing(running.updates()) as updates:
        async for position, update in updates:
            running.choices[position][update.index].add(update)
    choices = [choice for choices in running.choices for choice in choices]
    return [
        await running.offload.run(choice.size, choice.take, index)
        for index, choice in enumerate(choices)
    ]


async def _chunks(running: _Running, head: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    body = running.body
    async with aclosing(running.updates()) as updates:
        async for position, update in updates:
            choice = running.choices[position][update.index]
            choice.add(update)
            index = position * len(running.choices[position]) + update.index
            written = await running.offload.run(choice.size, choice.take, index)
            if any(written[name] for name in _SENT if name in written):
                usage: dict[str, Any] = {"usage": None} if body.include_usage else {}
                if body.continuous_usage:
                    usage = {"usage": running.usage()}
                yield {**head, "choices": [written], **usage}
    if body.include_usage:
        yield {**head, "choices": [], "usage": running.usage()}
