"""OpenAI's request bodies. A field that is not named here is refused, never ignored.

null means "not given" for every optional field. Fields of OpenAI's contract that this server does
not implement accept only the values that mean "do nothing", and are refused with the remedy
otherwise. Hints that change no answer are accepted; docs/serving.md lists them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator
from pydantic_core import PydanticCustomError

from hagane.api.fields import (
    Body,
    Count,
    Flag,
    Hint,
    Metadata,
    ModelName,
    Number,
    Texts,
    TokenIds,
    either,
)
from hagane.api.messages import Message
from hagane.api.structured import StructuredBody
from hagane.api.tools import ToolsBody
from hagane.generation.request import Parameters

StopString = Annotated[str, Field(min_length=1, max_length=1000)]
_MOST_STOP_STRINGS = 16
_MOST_BIASES = 1024
_MOST_STOP_TOKENS = 128


class StreamOptions(Body):
    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Literal[False] = False


class SamplingBody(StructuredBody):
    """What chat and text completions have in common."""

    model: ModelName
    stream: Flag = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
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
    presence_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Number, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[int, Annotated[Number, Field(ge=-100, le=100)]], Field(max_length=_MOST_BIASES)
        ]
        | None
    ) = None
    seed: Annotated[Count, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    # Extensions that vLLM's clients know.
    top_k: Annotated[Count, Field(ge=-1)] | None = None
    min_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Number, Field(ge=0.01, le=10)] | None = None
    min_tokens: Annotated[Count, Field(ge=0)] = 0
    stop_token_ids: Annotated[TokenIds, Field(max_length=_MOST_STOP_TOKENS)] | None = None
    ignore_eos: Flag = False
    skip_special_tokens: Flag = True
    priority: Annotated[Count, Field(ge=-1000, le=1000)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    timeout: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    # Hints that change no answer.
    user: Hint | None = None
    metadata: Metadata | None = None
    store: Flag | None = None
    prompt_cache_key: Hint | None = None
    prompt_cache_retention: Hint | None = None
    safety_identifier: Hint | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

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
        """What a generation needs to know of the body."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Parameters(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            n=self.n or 1,
            stop=stop,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias or {},
            seed=self.seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            skip_special_tokens=self.skip_special_tokens,
            priority=self.priority,
            cache_salt=self.cache_salt,
            timeout=self.timeout,
        )


class ChatBody(SamplingBody, ToolsBody):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1), Field(fail_fast=True)]
    max_tokens: Annotated[Count, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Count, Field(ge=1)] | None = None
    logprobs: Flag = False
    top_logprobs: Annotated[Count, Field(ge=0, le=20)] | None = None
    add_generation_prompt: Flag = True
    chat_template_kwargs: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    # Hints that change no answer; templates that know it see the effort.
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    # Of OpenAI's contract, and not implemented: null alone is accepted.
    audio: None = None
    prediction: None = None
    web_search_options: None = None


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
    suffix: Annotated[str, Field(max_length=0)] | None = None


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
