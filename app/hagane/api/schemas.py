"""OpenAI's request bodies. A field that is not named here is refused, never ignored.

null means "not given" for every optional field. Fields of OpenAI's contract that this server does
not implement accept only the values that mean "do nothing", and are refused with the remedy
otherwise. Hints that change no answer are accepted; docs/serving.md lists them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from hagane.api.chat_messages import Message
from hagane.api.decoding import DecodingBody
from hagane.api.fields import (
    Body,
    Count,
    Flag,
    Metadata,
    ModelName,
    Texts,
    TokenIds,
    either,
)
from hagane.api.structured import StructuredBody
from hagane.api.tools import ToolsBody
from hagane.generation.request import Parameters

StopString = Annotated[str, Field(min_length=1, max_length=1000)]
_MOST_STOP_STRINGS = 16


class StreamOptions(Body):
    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Literal[False] = False


class SamplingBody(DecodingBody, StructuredBody):
    """Fields that chat and text completions share."""

    stream_options: StreamOptions | None = None
    n: Annotated[Count, Field(ge=1, le=128)] | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("str")]
            | Annotated[
                list[StopString],
                Field(max_length=_MOST_STOP_STRINGS),
                Field(fail_fast=True),
                Tag("list"),
            ],
            either("str", "list"),
        ]
        | None
    ) = None
    # Extensions that vLLM's clients know.
    prompt_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    return_token_ids: Flag = False
    # Hints that change no answer. Chat completions are stored for `store`, with `metadata`.
    metadata: Metadata | None = None
    store: Flag | None = None

    @field_validator("stream_options")
    @classmethod
    def need_a_stream(cls, value: StreamOptions | None, info: Any) -> StreamOptions | None:
        if value is not None and info.data.get("stream") is False:
            raise PydanticCustomError("needs_stream", "it needs 'stream': true")
        return value

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        """Whether every chunk of a stream carries the token counts so far."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def parameters(
        self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None = None
    ) -> Parameters:
        """The parameters of the generation."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return self.decoding(
            max_tokens=max_tokens,
            stop=stop,
            n=self.n or 1,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if prompt_logprobs is None else prompt_logprobs,
        )


class ChatBody(SamplingBody, ToolsBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), Field(fail_fast=True)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    add_generation_prompt: Flag = True
    continue_final_message: Flag = False
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    thinking_token_budget: Annotated[Count, Field(ge=0)] | None = None
    # Hints that change no answer; templates that know it see the effort.
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    # Of OpenAI's contract, and not implemented: null alone is accepted.
    audio: None = None
    prediction: None = None
    web_search_options: None = None

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar is to be compiled for this body: tools' calls follow one, too."""
        return bool(self.tools or self.functions) or super().has_grammar


Prompt = Annotated[
    Annotated[str, Tag("str")]
    | Annotated[Texts, Tag("list")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], Field(fail_fast=True), Tag("lists")],
    either("str", "list", "ids", "lists"),
]


class CompletionBody(SamplingBody):
    """POST /v1/completions. `max_tokens` 0 is for `echo`: score the prompt alone."""

    prompt: Prompt
    max_tokens: Annotated[Count, Field(ge=0)] = 16
    logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    echo: Flag = False
    best_of: Count | None = None
    suffix: str | None = None


class TokenizeBody(Body):
    """POST /tokenize: a text, or a conversation."""

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1), Field(fail_fast=True)] | None = None
    add_special_tokens: Flag = True
    add_generation_prompt: Flag = True


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: ModelName | None = None
    tokens: TokenIds
