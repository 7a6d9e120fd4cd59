"""One continuation of a request, as the scheduler and the KV cache see it: plain data, no torch."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from enum import Enum

from hagane.pool.messages import (
    IDLE_PRIORITY,
    GenerateRequest,
    GrammarRef,
    SamplingParams,
    Speculation,
)
from hagane.text.embedding_style import Pooling

PRIORITY_SECONDS = 10.0
"""The worth of one level of priority, in seconds of waiting."""


def _random_seed() -> int:
    return secrets.randbits(63)


class Phase(Enum):
    """Where a sequence is in its life: it waits, runs, may wait again, and finishes once."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, weakref_slot=True)
class Sequence:
    """The tokens of one continuation and where their keys and values lie.

    A sequence holds blocks exactly while it is RUNNING. A request with `n` > 1 is one sequence
    until its prefill is done: `pending` are the indices of the continuations that are then forked
    off.

    Attributes:
        request_id: the request it belongs to.
        index: which of the request's continuations it is, from 0.
        tokens: prompt, then generated token ids, as far as they are known; only ever appended to.
        prompt_length: how many of `tokens` are the prompt.
        sampling: how the next token is chosen.
        phase: WAITING for its admission, or as a sibling for its fork; the scheduler sets it.
        priority: smaller runs first.
        arrival: ticket of the request, rising by one from request to request.
        arrived: `time.monotonic()` moment the request was added, seconds.
        deadline: `time.monotonic()` moment after which the request is dropped, or None.
        cache_salt: sequences of different salts never share blocks by content.
        adapter: digest of its adapter, "" for the base; they never share blocks either.
        grammar: what its answer must follow, or None for any text.
        speculation: who may guess tokens for it, to be verified several at a time.
        seed: decides, with the position, the random number of each token. It is the request's, or
            made up: one who guesses the tokens takes the same numbers.
        pooling: how its embedding is made of hidden states, or None if none is wanted.
        adjusts: whether its logits are to be changed before a token is chosen, apart from what its
            grammar allows. Known once, since every step asks.
        pending: indices of the siblings to fork off after the prefill.
        in_flight: how many more tokens a device that is still at work samples.
        computed: number of leading tokens whose keys and values are in the cache, or will be when
            the device has done what it was given.
        blocks: block table; `blocks[p // block_size]` holds position `p`.
        digests: content hashes of the leading full blocks, as far as they were needed yet.
        registered: number of leading blocks already offered to the prefix cache.
        cached_tokens: prompt tokens found in the prefix cache at the first admission.
        first_scheduled: `time.monotonic()` moment of the first admission, or None.
    """

    request_id: str
    index: int
    tokens: list[int]
    prompt_length: int
    sampling: SamplingParams
    priority: int
    arrival: int
    arrived: float
    deadline: float | None = None
    phase: Phase = Phase.WAITING
    cache_salt: str = ""
    adapter: str = ""
    grammar: GrammarRef | None = None
    speculation: Speculation = "auto"
    seed: int = field(default_factory=_random_seed)
    pooling: Pooling | None = None
    adjusts: bool = False
    pending: list[int] = field(default_factory=list)
    in_flight: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    registered: int = 0
    cached_tokens: int = 0
    first_scheduled: float | None = None

    @classmethod
    def of(cls, request: GenerateRequest, arrival: int, now: float) -> Sequence:
        """The sequence that prefills `request` for all its `n` continuations."""
        sampling = request.sampling
        return cls(
            request_id=request.request_id,
            index=0,
            tokens=list(request.prompt),
            prompt_length=len(request.prompt),
            sampling=sampling,
            priority=request.priority,
            arrival=arrival,
            arrived=now,
            deadline=request.deadline,
            cache_salt=request.cache_salt,
            adapter=request.adapter.digest if request.adapter else "",
            grammar=request.grammar,
            speculation=request.speculation,
            seed=_random_seed() if sampling.seed is None else sampling.seed,
            pooling=request.pooling,
            adjusts=bool(sampling.needs_history or sampling.logit_bias or sampling.min_tokens),
            pending=list(range(1, request.n)),
        )

    def sibling(self, index: int) -> Sequence:
        """Continuation `index` of the same request: equal tokens so far, no blocks yet."""
        return replace(
            self,
            index=index,
            phase=Phase.WAITING,
            tokens=list(self.tokens),
            digests=list(self.digests),
            pending=[],
            computed=0,
            blocks=[],
            registered=0,
        )

    def ahead(self, tokens: tuple[int, ...]) -> Sequence:
        """The same sequence where `tokens` have followed, for the choice of the token after them.

        Tokens are copied only where that choice needs those that came before.
        """
        if self.adjusts or self.grammar is not None:
            return replace(self, tokens=[*self.tokens, *tokens])
        return replace(self, in_flight=self.in_flight + len(tokens))

    @property
    def length(self) -> int:
        """Tokens there are: prompt, generated, and those in flight."""
        return len(self.tokens) + self.in_flight

    @property
    def generated(self) -> int:
        """Tokens generated so far that are known."""
        return len(self.tokens) - self.prompt_length

    @property
    def sampled(self) -> int:
        """Tokens generated so far, known or not: the number of the next one, from 0."""
        return self.length - self.prompt_length

    @property
    def uncomputed(self) -> int:
        """Tokens that still have to pass through the model; 1 while decoding."""
        return self.length - self.computed

    @property
    def width(self) -> int:
        """Sequences this one is or will become: 1 and its siblings still to be forked off."""
        return 1 + len(self.pending)

    def room(self, context_length: int) -> int:
        """Tokens it may still have, besides those in flight; it ends when the last one is known."""
        most = min(self.prompt_length + self.sampling.max_tokens, context_length)
        return max(most - self.length, 0)

    def stops_on(self, token: int) -> bool:
        """Whether `token`, as the next one, ends the text."""
        sampling = self.sampling
        ends = token in sampling.stop_token_ids or (
            token in sampling.eos_token_ids and not sampling.ignore_eos
        )
        return ends and self.generated >= sampling.min_tokens

    @property
    def needs_prompt_logits(self) -> bool:
        """Whether every prompt position must be computed for its logits, cached or not."""
        return self.sampling.prompt_logprobs is not None and self.sampled == 0

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every prompt position must pass through the model, cached or not."""
        every = self.pooling in ("mean", "first") and self.sampled == 0
        return every or self.needs_prompt_logits

    @property
    def queue_seconds(self) -> float:
        """Seconds from arrival to the first admission; 0 before it."""
        return 0.0 if self.first_scheduled is None else self.first_scheduled - self.arrived

    @property
    def needs(self) -> list[str]:
        """Digests of its adapter and its grammar, if it has them."""
        grammar = "" if self.grammar is None else self.grammar.digest
        return [digest for digest in (self.adapter, grammar) if digest]

    @property
    def idle(self) -> bool:
        """Whether it runs only while no sequence of a higher priority runs or waits."""
        return self.priority >= IDLE_PRIORITY

    @property
    def order(self) -> tuple[bool, float, int, int]:
        """Sort key of scheduling: smaller runs first, larger is preempted first.

        Idle ones come last, however long they wait. Then follows a virtual arrival time: each level
        of priority moves a request `PRIORITY_SECONDS` back or forth in time. All requests age at
        one rate, so the order of two of them never changes, and whatever a request's priority,
        those that arrive more than its handicap later queue after it: no other request starves.
        """
        virtual = self.arrived + PRIORITY_SECONDS * self.priority
        return (self.idle, virtual, self.arrival, self.index)
