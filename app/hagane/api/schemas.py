"""OpenAI's request bodies. A field that is not named here is refused, never ignored.

Fields of OpenAI's contract that this server does not implement accept only the value that means
"do nothing", and are refused with the remedy otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

TokenId = Annotated[int, Field(ge=0, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Flag = Annotated[bool, Field(strict=True)]
# What messages, tensors and the database can hold.
Count = Annotated[int, Field(strict=True, ge=-(1 << 63), lt=1 << 63)]


class Body(BaseModel):
    """Base of all bodies: no unknown fields."""

    model_config = ConfigDict(extra="forbid")


class StreamOptions(Body):
    include_usage: Flag = False
    include_obfuscation: Literal[False] = False


class TextPart(Body):
    type: Literal["text"]
    text: str


class Message(Body):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart]
    name: str | None = None

    def as_template_input(self) -> dict[str, Any]:
        """What chat templates expect: text content, and OpenAI's newer role by its older name."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        named = {"name": self.name} if self.name is not None else {}
        return {"role": role, "content": content, **named}


class ResponseFormat(Body):
    type: Literal["text"]


class SamplingBody(Body):
    """What chat and text completions have in common."""

    model: str
    stream: Flag = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    n: Annotated[Count, Field(ge=1, le=128)] | None = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: dict[int, Annotated[Number, Field(ge=-100, le=100)]] | None = None
    seed: Annotated[Count, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    user: str | None = None
    # Extensions that vLLM's clients know.
    top_k: Annotated[Count, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[Count, Field(ge=0)] = 0
    stop_token_ids: list[TokenId] | None = None
    ignore_eos: Flag = False
    skip_special_tokens: Flag = True
    priority: Annotated[Count, Field(ge=-1000, le=1000)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    timeout: Annotated[Number, Field(gt=0)] | None = None


class ChatBody(SamplingBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    add_generation_prompt: Flag = True
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: ResponseFormat | None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    parallel_tool_calls: Flag | None = None
    metadata: dict[str, str] | None = None


class CompletionBody(SamplingBody):
    """POST /v1/completions. `max_tokens` 0 is for `echo`: score the prompt alone."""

    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: Annotated[Count, Field(ge=0)] | None = 16
    logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    echo: Flag = False
    best_of: Count | None = None


class TokenizeBody(Body):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: Flag = True
    add_generation_prompt: Flag = True


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[TokenId]
