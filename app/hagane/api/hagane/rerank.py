"""POST /v1/rerank and /v1/score: how close texts are.

A cross-encoder reads both and scores them; of other models it is the cosine of their embeddings.
The bodies are Jina's and Cohere's, and vLLM's.
"""

from __future__ import annotations

import math
import operator
import time
import uuid
from collections.abc import Iterator, Sequence
from itertools import cycle
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from pydantic import Discriminator, Field, Tag

from hagane.api.access import guarded_router
from hagane.api.embedding import Embedder, Vector
from hagane.api.fields import Body, Count, Flag, Hint, ModelName, either
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.serving import get_serving, meter
from hagane.api.sse import json_response, unless_disconnected
from hagane.system.errors import InvalidRequestError

router = guarded_router()
_T = TypeVar("_T")

_MOST_TEXTS = 1024
Texts = Annotated[list[str], Field(min_length=1, max_length=_MOST_TEXTS, fail_fast=True)]
OneOrMore = Annotated[
    Annotated[str, Tag("str")] | Annotated[Texts, Tag("list")], either("str", "list")
]


class Document(Body):
    text: str


Documents = Annotated[
    list[
        Annotated[
            Annotated[str, Tag("str")] | Annotated[Document, Tag("dict")],
            Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
        ]
    ],
    Field(min_length=1, max_length=_MOST_TEXTS, fail_fast=True),
]


class RerankBody(Body):
    """POST /v1/rerank."""

    model: ModelName
    query: str
    documents: Documents
    top_n: Annotated[Count, Field(ge=0)] | None = None
    return_documents: Flag = True
    truncate_prompt_tokens: Annotated[Count, Field(ge=-1)] | None = None
    user: Hint | None = None


class ScoreBody(Body):
    """POST /v1/score: one text against one or many, or pairs."""

    model: ModelName
    text_1: OneOrMore
    text_2: OneOrMore
    truncate_prompt_tokens: Annotated[Count, Field(ge=-1)] | None = None
    user: Hint | None = None


Metered = Annotated[Account, Depends(meter)]


@router.post("/v1/rerank", response_model=None)
async def rerank(body: RerankBody, request: Request, account: Metered) -> Response:
    """The documents, those closest to the query first."""
    texts = [each if isinstance(each, str) else each.text for each in body.documents]
    scores, tokens, model = await _scores(body, [body.query], texts, request, account, "documents")
    order = sorted(range(len(scores)), key=lambda place: -scores[place])
    if body.top_n:
        order = order[: body.top_n]
    results: list[dict[str, Any]] = [
        {"index": place, "relevance_score": scores[place]} for place in order
    ]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    head = {"id": f"rerank-{uuid.uuid4().hex}", "model": model}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({**head, "usage": usage, "results": results})


@router.post("/v1/score", response_model=None)
async def score(body: ScoreBody, request: Request, account: Metered) -> Response:
    """How close `text_1` is to each of `text_2`, or each pair."""
    first = [body.text_1] if isinstance(body.text_1, str) else body.text_1
    second = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    if len(first) not in (1, len(second)):
        raise InvalidRequestError(
            f"'text_1' has {len(first)} texts and 'text_2' {len(second)}; send one text, or as "
            "many as there are in 'text_2'.",
            param="text_1",
        )
    scores, tokens, model = await _scores(body, first, second, request, account, "text_2")
    data = [
        {"index": index, "object": "score", "score": score} for index, score in enumerate(scores)
    ]
    head = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time())}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return json_response({**head, "model": model, "data": data, "usage": usage})


async def _scores(
    body: RerankBody | ScoreBody,
    first: list[str],
    second: list[str],
    request: Request,
    account: Account,
    param: str,
) -> tuple[list[float], int, str]:
    """(scores, tokens of all texts, the model's id): of one text, or as many, with `second`."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    embedder = Embedder(
        serving, account, resolved, param=param, truncate=body.truncate_prompt_tokens
    )
    size, run = body_size(request), serving.offload.run_blocking
    if resolved.text.scores:
        prepared = await run(size, embedder.prepare_pairs, list(_pairs(first, second)))
    else:
        prepared = await run(size, embedder.prepare, [*first, *second])
    vectors = await unless_disconnected(request, embedder.embed(prepared))
    if resolved.text.scores:
        scores = [vector[0] for vector in vectors]
    else:
        pairs = list(_pairs(vectors[: len(first)], vectors[len(first) :]))
        scores = await _cosines(request, pairs)
    tokens = sum(len(generation.request.prompt) for generation in prepared)
    return scores, tokens, resolved.ref.id


def _pairs(first: Sequence[_T], second: Sequence[_T]) -> Iterator[tuple[_T, _T]]:
    """Each of `second` with its own of `first`, or with the only one there."""
    return zip(cycle(first) if len(first) == 1 else first, second, strict=len(first) > 1)


async def _cosines(request: Request, pairs: Sequence[tuple[Vector, Vector]]) -> list[float]:
    size = sum(2 * one.itemsize * len(one) for one, _ in pairs)
    return await get_serving(request).offload.run(size, _compare, pairs)


def _compare(pairs: Sequence[tuple[Vector, Vector]]) -> list[float]:
    """The cosine of each pair."""
    return [
        math.fsum(map(operator.mul, one, other)) / ((math.hypot(*one) * math.hypot(*other)) or 1.0)
        for one, other in pairs
    ]
