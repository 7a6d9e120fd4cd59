"""The process boundary: every message that crosses between API process and engine process.

All are immutable msgspec structs, sent as MessagePack by `hagane.pool.channel`. Times are
seconds: durations as floats, moments as `time.monotonic()` values (one clock for all processes
of a machine). Messages of every step omit the names of their fields.
"""

from __future__ import annotations

from itertools import chain
from typing import Literal

import msgspec

from hagane.system.errors import InvalidRequestError
from hagane.system.recent_log import LogLine
from hagane.system.weight_formats import FormatChoice
from hagane.text.embedding_style import Pooling

FinishReason = Literal["stop", "length"]
Speculation = Literal["auto", "off", "lookup", "draft"]
"""Who may guess tokens: auto leaves it to the engine, which takes whichever guesses pay best."""
FailureCode = Literal[
    "deadline_exceeded",
    "queue_full",
    "adapter_error",
    "invalid_request",
    "engine_error",
    "engine_crashed",
    "engine_unavailable",
]


_LEAST_INT, _MOST_INT = -(1 << 31), (1 << 31) - 1
_MOST_BIAS = 1000.0
# Numbers that no comparison holds for, NaN among them, are out of every range. Temperatures and
# penalties have room for what generation_config.json may say; further ones overflow float32.
_BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("max_tokens", _LEAST_INT, _MOST_INT),
    ("min_tokens", 0, _MOST_INT),
    ("temperature", 0.0, 1000.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, _MOST_INT),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.01, 100.0),
    ("presence_penalty", -100.0, 100.0),
    ("frequency_penalty", -100.0, 100.0),
    ("seed", -(1 << 63), (1 << 63) - 1),
    ("logprobs", 0, _MOST_INT),
    ("prompt_logprobs", 0, _MOST_INT),
)


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How the next token is chosen. Defaults are OpenAI's.

    Temperature 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and penalties at their defaults are
    off. `logprobs` None is off; k >= 0 reports the chosen token and the k most likely ones.
    `eos_token_ids` end the text unless `ignore_eos`; `stop_token_ids` end it always; neither
    does before `min_tokens` tokens.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what tensors, or this process boundary, cannot hold."""
        for name, least, most in _BOUNDS:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise InvalidRequestError(
                    f"'{name}' is {value}; it must be from {least} to {most}.", param=name
                )
        for token in chain(self.logit_bias, self.eos_token_ids, self.stop_token_ids):
            if not _LEAST_INT <= token <= _MOST_INT:
                raise InvalidRequestError(f"{token} is no token id.", param="stop_token_ids")
        for token, bias in self.logit_bias.items():
            if not -_MOST_BIAS <= bias <= _MOST_BIAS:
                raise InvalidRequestError(
                    f"'logit_bias' of {token} is {bias}; it must be from -{_MOST_BIAS:g} to "
                    f"{_MOST_BIAS:g}.",
                    param="logit_bias",
                )

    @property
    def needs_history(self) -> bool:
        """Whether the choice of the next token depends on the tokens before it."""
        penalties = self.presence_penalty or self.frequency_penalty
        return bool(self.repetition_penalty != 1 or penalties)


class AdapterRef(msgspec.Struct, frozen=True):
    """A LoRA adapter: where it lies, and the digest of its content, by which it is known."""

    name: str
    directory: str
    digest: str


class GrammarRef(msgspec.Struct, frozen=True):
    """A grammar in llguidance's notation that an answer must follow, and the text's digest.

    `param` is the field of the client's request that has it, for errors.
    """

    digest: str
    text: str
    param: str | None = None


IDLE_PRIORITY = 1000
"""From this priority on, a request runs only while no other one runs or waits."""


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """One prompt and what to do with it.

    `n` continuations share one prefill and are distinguished by `TokenDelta.index`. Smaller
    `priority` runs first, and from `IDLE_PRIORITY` on only where nothing else does. `deadline` is a
    `time.monotonic()` moment. Requests share prefix-cache blocks only with requests of equal
    `cache_salt` and equal adapter. Answers follow `grammar` to its end, which ends them. Guessed
    tokens, of which `speculation` says who makes them, change the time that an answer takes and
    nothing else. With `pooling` the prompt's embedding is wanted, and at most a token; of a pair of
    texts, the second begins at `second`.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingParams
    n: int = 1
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""
    adapter: AdapterRef | None = None
    grammar: GrammarRef | None = None
    speculation: Speculation = "auto"
    pooling: Pooling | None = None
    second: int | None = None

    def __post_init__(self) -> None:
        """Raises InvalidRequestError for what this process boundary cannot carry."""
        for param, values in (
            ("prompt", self.prompt),
            ("n", (self.n,)),
            ("priority", (self.priority,)),
        ):
            if values and not _LEAST_INT <= min(values) <= max(values) <= _MOST_INT:
                raise InvalidRequestError(f"'{param}' has a number out of range.", param=param)


class UnloadAdapter(msgspec.Struct, frozen=True, tag=True):
    """Free an adapter's memory as soon as no request uses it. Unknown ones are ignored."""

    digest: str


class CheckAdapter(msgspec.Struct, frozen=True, tag=True):
    """Read an adapter, answer with `AdapterChecked`, and load it if there is room."""

    adapter: AdapterRef


class CancelRequest(msgspec.Struct, frozen=True, tag=True):
    """Forget a request, or one continuation of it; its blocks are free in the next step.

    Unknown ids are ignored: the request may just have finished.
    """

    request_id: str
    index: int | None = None


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the engine process after the current step."""


class TokenLogprobs(msgspec.Struct, frozen=True):
    """Natural-log probabilities at one position: the token there, then the most likely ones."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokenDelta(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """New tokens of one continuation; the last delta carries `finish_reason`.

    `tokens` includes the end-of-text or stop token that ended the text (`stopped_on_token` is
    then true, and the token is not part of the text). `prompt_logprobs` has one entry per prompt
    token, None for the first, and comes once, with the first delta of index 0. So does `embedding`:
    float32 values, little-endian, one after the other.
    """

    request_id: str
    index: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    finish_reason: FinishReason | None = None
    stopped_on_token: bool = False
    cached_tokens: int = 0
    queue_seconds: float = 0.0
    embedding: bytes | None = None


class RequestFailed(msgspec.Struct, frozen=True):
    """A request the engine gave up on; nothing more follows for its id."""

    request_id: str
    code: FailureCode
    message: str


class AdapterStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Adapters in memory and their bytes; `requests` wait for theirs. Then counters."""

    loaded: int = 0
    nbytes: int = 0
    requests: int = 0
    loads: int = 0
    evictions: int = 0


class TierStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Blocks below the KV cache's pool: how many there are, and counters since the start.

    `restored` went from host memory back to the pool, `loaded` from disk to host memory; `written`
    are files, `dropped` blocks came too fast or could not be written, `lost` ones not be read.
    """

    host_blocks: int = 0
    host_capacity: int = 0
    disk_blocks: int = 0
    restored: int = 0
    loaded: int = 0
    written: int = 0
    dropped: int = 0
    lost: int = 0


class ProposerStats(msgspec.Struct, frozen=True, array_like=True):
    """Tokens that one proposer guessed and steps verified, and how many of them were right."""

    proposed: int = 0
    accepted: int = 0


class EngineStats(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Gauges as of now, and counters since the engine process started."""

    running: int = 0
    waiting: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_total: int = 0
    prefix_tokens_queried: int = 0
    prefix_tokens_hit: int = 0
    preemptions: int = 0
    steps: int = 0
    lookup: ProposerStats = ProposerStats()
    draft: ProposerStats = ProposerStats()
    adapters: AdapterStats = AdapterStats()
    tiers: TierStats = TierStats()


class StepOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Everything one engine step has to say, in one message."""

    deltas: tuple[TokenDelta, ...] = ()
    failures: tuple[RequestFailed, ...] = ()
    stats: EngineStats = EngineStats()


class AdapterChecked(msgspec.Struct, frozen=True, tag=True):
    """The adapter fits the model; or why it does not."""

    digest: str
    error: str | None = None


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """The engine goes on, though it has nothing to report."""


class LogLines(msgspec.Struct, frozen=True, tag=True):
    """What the engine logged since the last of these."""

    lines: tuple[LogLine, ...]


class Loading(msgspec.Struct, frozen=True, tag=True):
    """The engine's start has come as far as `stage`, such as "weights"."""

    stage: str


class EngineReady(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The model is loaded and the KV cache allocated."""

    pid: int
    context_length: int
    block_size: int
    blocks_total: int
    load_seconds: float


class EngineFailed(msgspec.Struct, frozen=True, tag=True):
    """The engine could not start, for a reason that only the user can fix."""

    code: str
    message: str


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first message to the engine process: the settings it needs, and no others.

    `kv_cache_memory` is in bytes, None lets the engine decide from free memory, on a GPU within
    `gpu_memory_fraction` of all of it, and take no more than `kv_cache_limit` bytes unless one
    context needs more. That fraction is what all programs together may take, or this engine alone
    where another one `shares_device`. `max_batch_tokens` is the token budget of one step,
    `adapter_memory` the most bytes of packed adapters, `timeout` the seconds of silence after
    which an engine is taken to hang. Below the KV cache are `kv_cache_host_memory` bytes of host
    memory, None for as many as `kv_cache_disk` needs, a directory of at most
    `kv_cache_disk_memory` bytes. `draft_model` is the directory of the model that guesses tokens
    where `speculation` lets it.
    """

    model: str
    device: str
    dtype: str
    quantize: FormatChoice
    group_size: int
    block_size: int
    context_length: int | None
    kv_cache_memory: int | None
    kv_cache_limit: int | None = None
    kv_cache_dtype: Literal["auto", "model", "int8"]
    kv_cache_host_memory: int | None = None
    kv_cache_disk: str | None = None
    kv_cache_disk_memory: int = 10 << 30
    gpu_memory_fraction: float = 0.9
    shares_device: bool = False
    max_batch_tokens: int
    max_sequences: int
    max_waiting: int
    prefix_caching: bool
    speculation: Speculation = "auto"
    draft_model: str | None = None
    threads: int | None
    tensor_parallel: int = 1
    adapter_memory: int
    timeout: float = 30.0
    log_level: str = "info"
    log_format: str = "auto"


ToEngine = EngineConfig | GenerateRequest | CancelRequest | CheckAdapter | UnloadAdapter | Shutdown
FromEngine = (
    EngineReady | EngineFailed | StepOutput | AdapterChecked | Heartbeat | Loading | LogLines
)
