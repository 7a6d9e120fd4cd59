"""Fields of a body that say how tokens are chosen and when a request runs, in every dialect."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hagane.api.fields import Body, Count, Flag, Hint, ModelName, Number, TokenIds
from hagane.generation.request import Parameters
from hagane.pool.messages import Speculation

_MOST_BIASES = 1024
_MOST_STOP_TOKENS = 128


class DecodingBody(Body):
    """Sampling fields that the bodies of all dialects share, or have as extensions."""

    model: ModelName
    stream: Flag = False
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
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
    speculation: Speculation = "auto"
    priority: Annotated[Count, Field(ge=-1000, le=1000)] = 0
    cache_salt: Annotated[str, Field(max_length=256)] = ""
    timeout: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    # Hints that change no answer.
    user: Hint | None = None
    prompt_cache_key: Hint | None = None
    prompt_cache_retention: Hint | None = None
    safety_identifier: Hint | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    def decoding(
        self,
        *,
        max_tokens: int | None,
        stop: tuple[str, ...] = (),
        n: int = 1,
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
    ) -> Parameters:
        """These fields, with those that every dialect names in its own way."""
        return Parameters(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            n=n,
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
            speculation=self.speculation,
            priority=self.priority,
            cache_salt=self.cache_salt,
            timeout=self.timeout,
        )
