"""The parameters of a generation, and the engine's request made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hagane.pool.messages import SamplingParams, Speculation
from hagane.system.errors import ContextLengthError, InvalidRequestError
from hagane.text.generation_defaults import GenerationDefaults

# Below, dividing logits by it overflows float32; the largest one wins with certainty anyway.
_COLDEST = 1e-5


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How to continue a prompt, in any dialect. None leaves the choice to the model's defaults.

    `max_tokens` None is as many as there is room for. `stop` are strings that end the text without
    being part of it. `timeout` is in seconds. `speculation`
    says who may guess tokens, which changes no answer.
    """

    max_tokens: int | None = None
    min_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    speculation: Speculation = "auto"
    priority: int = 0
    cache_salt: str = ""
    timeout: float | None = None


def sampling_params(
    parameters: Parameters, defaults: GenerationDefaults, *, vocab_size: int, max_tokens: int
) -> SamplingParams:
    """`parameters` over the model's defaults, with `max_tokens` tokens of room.

    Raises InvalidRequestError for token ids outside the vocabulary, and for more `min_tokens` than
    there is room for.
    """
    require_tokens("logit_bias", parameters.logit_bias, vocab_size)
    require_tokens("stop_token_ids", parameters.stop_token_ids, vocab_size)
    if parameters.min_tokens > max_tokens:
        raise InvalidRequestError(
            f"'min_tokens' is {parameters.min_tokens}, more than the {max_tokens} tokens of room.",
            param="min_tokens",
        )
    temperature = _either(parameters.temperature, defaults.temperature)
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=parameters.min_tokens,
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=_either(parameters.top_p, defaults.top_p),
        top_k=min(max(int(_either(parameters.top_k, defaults.top_k)), 0), vocab_size),
        min_p=parameters.min_p or 0.0,
        repetition_penalty=_either(parameters.repetition_penalty, defaults.repetition_penalty),
        presence_penalty=parameters.presence_penalty or 0.0,
        frequency_penalty=parameters.frequency_penalty or 0.0,
        logit_bias=dict(parameters.logit_bias),
        seed=parameters.seed,
        eos_token_ids=defaults.eos_token_ids,
        stop_token_ids=parameters.stop_token_ids,
        ignore_eos=parameters.ignore_eos,
        logprobs=parameters.logprobs,
        prompt_logprobs=parameters.prompt_logprobs,
    )


def require_tokens(param: str, ids: Mapping[int, float] | Sequence[int], vocab_size: int) -> None:
    """Raises InvalidRequestError naming the first id that the model has no token for."""
    bad = next((i for i in ids if not 0 <= i < vocab_size), None)
    if bad is not None:
        raise InvalidRequestError(
            f"'{param}' has token id {bad}, outside the vocabulary of {vocab_size} tokens.",
            param=param,
        )


def find_room(tokens: int, wanted: int | None, *, context_length: int, param: str) -> int:
    """Room for new tokens after a prompt of `tokens`: `wanted`, or all that is left when None.

    Raises ContextLengthError with both numbers, InvalidRequestError for an empty prompt.
    """
    if not tokens:
        raise InvalidRequestError(f"'{param}' has no tokens; send some text.", param=param)
    room = context_length - tokens
    if room < max(wanted or 1, 1):
        raise overflow(tokens, wanted, context_length=context_length, param=param)
    return room if wanted is None else wanted


def overflow(
    tokens: int, wanted: int | None, *, context_length: int, param: str, least: bool = False
) -> ContextLengthError:
    """The error of a prompt that is too long; `least` where the prompt was not counted to its end.

    Clients match the first sentence.
    """
    asked = f" and {wanted} in the completion" if wanted else ""
    more = "at least " if least else ""
    return ContextLengthError(
        f"This model's maximum context length is {context_length} tokens. However, you requested "
        f"{more}{tokens + (wanted or 0)} tokens ({tokens} in the {param}{asked}). Shorten the "
        f"{param} or ask for fewer tokens.",
        param=param,
    )


def _either(value: float | None, default: float) -> float:
    return default if value is None else value
