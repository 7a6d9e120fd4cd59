"""POST /tokenize and /detokenize: what the model's tokenizer makes of a text."""

from __future__ import annotations

from typing import Any

from fastapi import Request

from hagane.api.access import guarded_router
from hagane.api.openai.chat import render_chat
from hagane.api.schemas import ChatBody, DetokenizeBody, TokenizeBody
from hagane.api.serving import get_serving
from hagane.system.errors import InvalidRequestError

router = guarded_router()


@router.post("/tokenize")
async def tokenize(body: TokenizeBody, request: Request) -> dict[str, Any]:
    """Token ids of a text or of a rendered conversation."""
    serving = get_serving(request)
    target = await serving.target(body.model or serving.model.id)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequestError("Give either 'prompt' or 'messages'.", param="prompt")
    if body.messages is not None:
        chat = ChatBody(
            model=target.served.id,
            messages=body.messages,
            add_generation_prompt=body.add_generation_prompt,
        )
        ids = render_chat(target.model, chat)
    else:
        ids = target.model.tokenizer.encode(
            body.prompt or "", add_special_tokens=body.add_special_tokens
        )
    return {"tokens": ids, "count": len(ids), "max_model_len": target.context_length}


@router.post("/detokenize")
async def detokenize(body: DetokenizeBody, request: Request) -> dict[str, str]:
    """The text of token ids, special tokens included."""
    serving = get_serving(request)
    target = await serving.target(body.model or serving.model.id)
    tokenizer = target.model.tokenizer
    if bad := [i for i in body.tokens if i >= tokenizer.vocab_size]:
        raise InvalidRequestError(
            f"Token id {bad[0]} is outside the vocabulary of {tokenizer.vocab_size} tokens.",
            param="tokens",
        )
    return {"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)}
