"""POST /v1/embeddings: texts or token ids in, vectors out."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Request, Response
from pydantic import Field

from hagane.api.access import guarded_router
from hagane.api.embedding import Embedder, Vector, normalized
from hagane.api.fields import Body, Count, Flag, Hint, ModelName, Number
from hagane.api.generation import Generation
from hagane.api.json_body import body_size
from hagane.api.limits import Account
from hagane.api.schemas import Prompt
from hagane.api.serving import ResolvedModel, get_serving, meter
from hagane.api.sse import json_response, unless_disconnected
from hagane.system.errors import InvalidRequestError

router = guarded_router()

_MOST_INPUTS = 2048
# Bytes that a number of the answer takes to write.
_BYTES = 20


class EmbeddingBody(Body):
    """POST /v1/embeddings."""

    model: ModelName
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[Count, Field(ge=1)] | None = None
    # Extensions that vLLM's clients know.
    truncate_prompt_tokens: Annotated[Count, Field(ge=-1)] | None = None
    add_special_tokens: Flag = True
    normalize: Flag | None = None
    priority: Annotated[Count, Field(ge=-1000, le=1000)] = 0
    timeout: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    # A hint that changes no answer.
    user: Hint | None = None


@router.post("/v1/embeddings", response_model=None)
async def embed(
    body: EmbeddingBody, request: Request, account: Annotated[Account, Depends(meter)]
) -> Response:
    """One vector for each text."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model)
    if resolved.text.scores:
        raise InvalidRequestError(
            f"The model '{body.model}' scores pairs of texts; use /v1/rerank or /v1/score.",
            param="model",
        )
    embedder = Embedder(
        serving,
        account,
        resolved,
        truncate=body.truncate_prompt_tokens,
        add_special_tokens=body.add_special_tokens,
        priority=body.priority,
        timeout=body.timeout,
    )
    texts = _texts(body)
    prepared = await serving.offload.run_blocking(body_size(request), embedder.prepare, texts)
    vectors = await unless_disconnected(request, embedder.embed(prepared))
    size = len(vectors) * len(vectors[0]) * _BYTES
    return await serving.offload.run(size, _answer, body, resolved, prepared, vectors)


def _texts(body: EmbeddingBody) -> Sequence[str | list[int]]:
    """The texts to embed. Raises InvalidRequestError."""
    given: Any = body.input
    texts = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not 1 <= len(texts) <= _MOST_INPUTS:
        raise InvalidRequestError(
            f"'input' has {len(texts)} texts; send 1 to {_MOST_INPUTS}.", param="input"
        )
    return list(texts)


def _answer(
    body: EmbeddingBody, resolved: ResolvedModel, prepared: list[Generation], vectors: list[Vector]
) -> Response:
    """Raises InvalidRequestError where more `dimensions` are wanted than there are."""
    # Layers after the pooling may have made them more or fewer than the model's own.
    width = len(vectors[0])
    if body.dimensions is not None and body.dimensions > width:
        raise InvalidRequestError(
            f"'dimensions' is {body.dimensions}; this model's embeddings have {width}.",
            param="dimensions",
        )
    wanted = resolved.text.embedding.normalize if body.normalize is None else body.normalize
    data = [
        {"object": "embedding", "index": index, "embedding": _show(body, vector, wanted)}
        for index, vector in enumerate(vectors)
    ]
    tokens = sum(len(generation.request.prompt) for generation in prepared)
    return json_response(
        {
            "object": "list",
            "data": data,
            "model": resolved.ref.id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def _show(body: EmbeddingBody, vector: Vector, normalize: bool) -> str | list[float]:
    cut = vector[: body.dimensions]
    if normalize:
        cut = normalized(cut)
    if body.encoding_format == "base64":
        return base64.b64encode(struct.pack(f"<{len(cut)}f", *cut)).decode()
    return cut.tolist()
