"""POST /tokenize and /detokenize: what the model's tokenizer makes of a text."""

from __future__ import annotations

from fastapi import Request, Response

from hagane.api.access import guarded_router
from hagane.api.answering import tokenize_chat
from hagane.api.chat_messages import Message
from hagane.api.json_body import body_size
from hagane.api.openai.chat import read_messages
from hagane.api.schemas import DetokenizeBody, TokenizeBody
from hagane.api.serving import ResolvedModel, get_serving
from hagane.api.sse import json_response
from hagane.system.errors import InvalidRequestError, TooLargeError

router = guarded_router()

_MOST_CHARACTERS = 1 << 20
_MOST_TOKENS = 1 << 17


@router.post("/tokenize", response_model=None)
async def tokenize(body: TokenizeBody, request: Request) -> Response:
    """Token ids of a text or of a rendered conversation."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model or serving.model.id)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Give either 'prompt' or 'messages'.", param="prompt")
    if body.messages is not None:
        ids = await serving.offload.run_blocking(
            body_size(request), _render, resolved, body.messages, body.add_generation_prompt
        )
    else:
        text = body.prompt or ""
        _require_few(len(text), _MOST_CHARACTERS, "characters", "prompt")
        encode = resolved.text.tokenizer.encode
        ids = await serving.offload.run(
            len(text), encode, text, add_special_tokens=body.add_special_tokens
        )
    return json_response(
        {"tokens": ids, "count": len(ids), "max_model_len": resolved.context_length}
    )


def _render(
    resolved: ResolvedModel, messages: list[Message], add_generation_prompt: bool
) -> list[int]:
    conversation = read_messages(messages, add_generation_prompt=add_generation_prompt)
    return tokenize_chat(resolved, conversation)


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    """The text of token ids, special tokens included."""
    serving = get_serving(request)
    resolved = await serving.resolve(body.model or serving.model.id)
    _require_few(len(body.tokens), _MOST_TOKENS, "tokens", "tokens")
    return {"prompt": await serving.offload.run(len(body.tokens), _decode, resolved, body.tokens)}


def _decode(resolved: ResolvedModel, tokens: list[int]) -> str:
    # Rows that only pad the vocabulary are tokens of no text.
    size = max(resolved.text.tokenizer.vocab_size, resolved.text.config.vocab_size)
    bad = next((token for token in tokens if token >= size), None)
    if bad is not None:
        raise InvalidRequestError(
            f"Token id {bad} is outside the vocabulary of {size} tokens.", param="tokens"
        )
    return resolved.text.tokenizer.decode(tokens, skip_special_tokens=False)


def _require_few(count: int, most: int, what: str, param: str) -> None:
    if count > most:
        raise TooLargeError(
            f"'{param}' has {count} {what}; send at most {most} at a time.", param=param
        )
