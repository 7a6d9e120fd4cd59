"""Which tokens of which sequences run in the next step: continuous batching, pure Python.

All policies follow from one total order (`Sequence.order`: priority, ageing with waiting time, then
first come first served):

- One token budget per step. Each decoding sequence takes one token, then prefills take what is
  left in order, in chunks where they do not fit (Sarathi-Serve, Agrawal et al. 2024,
  arXiv:2403.02310). While no more prompts wait than sequences decode, they take half a budget at
  most: a step's time is that of its tokens, and all who decode wait for it. With more of them the
  longer steps, in which fewer decoding tokens run in all, let the queue pass sooner.
- Waiting sequences are admitted in order, never past one that does not fit yet, when there are
  blocks for all their tokens and one more for each running sequence: since a sequence fills at
  most one block in `block_size` steps, nobody is preempted for that long (but for the copies
  that forks may need).
- When blocks run out, the last running sequence in order is preempted: it gives up its blocks,
  keeps its tokens and waits, a step at least. Its keys and values are computed again later, as far
  as the prefix cache lost them.
- Sequences of idle priority stand still, with their blocks, while any other runs or waits. Then
  they are preempted for those that find no place. Steps of theirs alone are small, as whoever
  arrives meanwhile waits for them.

The first sequence in order is never preempted for another, and always fits alone: every step
advances it, so there is no deadlock and no thrashing without progress.

A step may be decided on before the tokens of the one before it are known: `advance` counts them,
`update` reports them. A sequence that turns out to have ended runs once more for nothing;
one that will have all its tokens by then does not.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from itertools import chain, count
from operator import attrgetter
from types import MappingProxyType

from hagane.engine.cache.blocks import BlockCopy, KVCache
from hagane.engine.schedule.admission import check_limits, check_queue, check_request
from hagane.engine.schedule.guesses import Guesses
from hagane.engine.schedule.plan import Chunk, Continuation, IdleWork, Proposal, Sampled, Schedule
from hagane.engine.schedule.sequence import Phase, Sequence
from hagane.engine.speculative.proposer import Proposer
from hagane.pool.messages import EngineStats, FinishReason, GenerateRequest
from hagane.system.errors import InvalidRequestError

_by_order = attrgetter("order")
_by_idle = attrgetter("idle")
# The part of a step's tokens that idle sequences may have.
_IDLE_SHARE = 4


class Scheduler:
    """Waiting and running sequences, and the loop's verbs: add, schedule, advance, update.

    Args:
        kv: the block book-keeping; this scheduler is its only user.
        max_batch_tokens: token budget of one step.
        max_sequences: most sequences running at a time.
        max_waiting: most sequences waiting before `add` refuses.
        context_length: most tokens of a sequence, prompt and generated.
        proposer: guesses tokens that steps verify; None for one token a sequence and step.

    Attributes:
        idle_work: what becomes of idle sequences; whoever owns the scheduler may change it.

    Raises:
        ConfigurationError: the figures cannot work together.
    """

    def __init__(
        self,
        kv: KVCache,
        max_batch_tokens: int,
        max_sequences: int,
        max_waiting: int,
        context_length: int,
        proposer: Proposer | None = None,
    ) -> None:
        check_limits(kv, max_batch_tokens, max_sequences, max_waiting, context_length)
        self.kv = kv
        self.max_batch_tokens = max_batch_tokens
        self.max_sequences = max_sequences
        self.max_waiting = max_waiting
        self.context_length = context_length
        self._guesses = Guesses(proposer)
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._requests: dict[str, list[Sequence]] = {}
        self._tickets = count()
        self._last_wait, self._preemptions, self._steps = 0.0, 0, 0
        self.idle_work, self._paused = IdleWork.YIELDS, False

    @property
    def has_work(self) -> bool:
        """Whether a schedule runs or expires something: always if other than idle ones are live."""
        return bool(self._requests) and not (self._idle and self.idle_work is IdleWork.STOPS)

    @property
    def _idle(self) -> bool:
        """Whether all live sequences, if any, are idle; they are the last in order."""
        return all(line[0].idle for line in (self._running, self._waiting) if line)

    @property
    def digests(self) -> set[str]:
        """Digests of the adapters and grammars in use."""
        return set(chain.from_iterable(s.needs for s in chain(self._running, self._waiting)))

    def add(self, request: GenerateRequest, now: float) -> None:
        """Queue a request. `now` is a `time.monotonic()` moment, here and below.

        Raises:
            InvalidRequestError: it can never run as it stands.
            ContextLengthError: its prompt leaves no room for a token.
            QueueFullError: too many are waiting; carries an estimate of when to try again.
        """
        if request.request_id in self._requests:
            raise InvalidRequestError(
                f"request_id {request.request_id!r} is in use; choose another.", param="request_id"
            )
        check_request(request, self.max_sequences, self.context_length)
        longest = now - self._waiting[0].arrived if self._waiting else 0.0
        check_queue(len(self._waiting), self.max_waiting, longest, self._last_wait)
        sequence = Sequence.of(request, next(self._tickets), now)
        self._requests[request.request_id] = [sequence]
        insort(self._waiting, sequence, key=_by_order)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Drop a request, or one of its continuations; its blocks are free at once.

        Unknown and finished ones are ignored. A continuation cancelled before the fork leaves the
        shared prefill to its siblings.
        """
        for sequence in tuple(self._requests.get(request_id, ())):
            if index is None:
                self._remove(sequence)
            elif index in sequence.pending:
                sequence.pending.remove(index)
            elif index != sequence.index:
                continue
            elif sequence.pending:
                sequence.index = sequence.pending.pop(0)
            else:
                self._remove(sequence)

    def schedule(self, now: float) -> Schedule:
        """Decide the next step; at most the previous one may still lack its `update`."""
        expired = self._expire(now)
        self._paused = not (self._idle or self.idle_work is IdleWork.GOES_ON)
        preemptions = self._preemptions
        copies = self._secure_blocks()
        proposals = self._propose()
        # A sequence preempted just now would fit again at once if others hold equal blocks by now.
        chunks = self._fill_budget(now, proposals, admitting=self._preemptions == preemptions)
        self._steps += bool(chunks)
        return Schedule(chunks=tuple(chunks), copies=tuple(copies), expired=expired)

    def advance(self, schedule: Schedule) -> None:
        """Count a step as done: its tokens as computed, and one more as sampled for each sampler.

        Sequences cancelled since `schedule` are passed over, here and in `update`.
        """
        for chunk in schedule.chunks:
            if chunk.sequence.phase is not Phase.RUNNING:
                continue
            chunk.sequence.computed += chunk.length
            self.kv.register(chunk.sequence)
            self._fork(chunk.sequence, chunk.samplers[1:])
            for sampler in chunk.samplers:
                if sampler.phase is Phase.RUNNING:
                    sampler.in_flight += 1 + len(chunk.proposed)

    def update(
        self,
        schedule: Schedule,
        tokens: list[tuple[int, ...]],
        continuations: Mapping[Sequence, Continuation] = MappingProxyType({}),
    ) -> list[Sampled]:
        """Record what a step drew: for each of `schedule.samplers` the tokens that it accepted.

        Finished sequences are freed. Those preempted since sample their tokens again. After the
        sampled tokens come those of `continuations`, which pass through the model with the next
        step. Raises ValueError if there are not as many entries as samplers.
        """
        if len(tokens) != len(schedule.samplers):
            raise ValueError(f"{len(tokens)} tokens for {len(schedule.samplers)} samplers")
        accepted = iter(tokens)
        return [
            self._append(sampler, tokens, chunk, continuations.get(sampler))
            for chunk in schedule.chunks
            for sampler, tokens in zip(chunk.samplers, accepted, strict=False)
            if sampler.phase is Phase.RUNNING
        ]

    def affected(self, schedule: Schedule) -> list[str]:
        """As `Schedule.affected`."""
        return schedule.affected(self._running)

    def reset(self) -> list[str]:
        """Drop every request and all that is cached; returns the ids of the requests."""
        dropped = list(self._requests)
        for sequence in chain.from_iterable(self._requests.values()):
            sequence.phase, sequence.blocks = Phase.FINISHED, []
            self._guesses.forget(sequence)
        self._requests.clear()
        self._waiting.clear()
        self._running.clear()
        self.kv.reset()
        return dropped

    def stats(self) -> EngineStats:
        """Gauges and counters as of now."""
        return EngineStats(
            running=len(self._running),
            waiting=len(self._waiting),
            blocks_used=self.kv.used,
            blocks_cached=self.kv.cached,
            blocks_total=self.kv.total,
            prefix_tokens_queried=self.kv.prefix_tokens_queried,
            prefix_tokens_hit=self.kv.prefix_tokens_hit,
            preemptions=self._preemptions,
            steps=self._steps,
            lookup=self._guesses.stats("lookup"),
            draft=self._guesses.stats("draft"),
        )

    def check(self) -> None:
        """Raises RuntimeError if a block is lost or used without right."""
        self.kv.check(self._running)
        live = sum(len(sequences) for sequences in self._requests.values())
        if live != (lined := len(self._running) + len(self._waiting)):
            raise RuntimeError(f"scheduler corrupt: {live} live sequences, {lined} in line")

    def _active(self, line: list[Sequence]) -> list[Sequence]:
        """Those of `line`, which is in order, that do not stand still for others."""
        return line[: bisect_left(line, True, key=_by_idle)] if self._paused else line

    def _expire(self, now: float) -> tuple[str, ...]:
        expired = tuple(
            request_id
            for request_id, (first, *_) in self._requests.items()
            if first.deadline is not None and first.deadline <= now
        )
        for request_id in expired:
            self.cancel(request_id)
        return expired

    def _secure_blocks(self) -> list[BlockCopy]:
        """Give the running sequences the blocks of their next tokens, preempting from the end."""
        copies: list[BlockCopy] = []
        position = 0
        while position < len(self._active(self._running)):
            sequence = self._running[position]
            granted = self.kv.extend(sequence) if sequence.room(self.context_length) else ()
            if granted is None:
                self._preempt(self._running[-1])
                continue
            copies += granted
            position += 1
        return copies

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.phase, sequence.in_flight = Phase.WAITING, 0
        self._release(sequence)
        insort(self._waiting, sequence, key=_by_order)
        self._preemptions += 1

    def _release(self, sequence: Sequence) -> None:
        self.kv.release(sequence)
        self._guesses.forget(sequence)

    def _propose(self) -> dict[Sequence, Proposal]:
        """Tokens to verify with the next step, for which there is room; none during a prefill."""
        rooms = {s: s.room(self.context_length) for s in self._active(self._running)}
        decoding = {sequence: room - 1 for sequence, room in rooms.items() if room}
        if any(sequence.uncomputed > 1 for sequence in decoding):
            return {}
        proposals = self._guesses.propose(decoding, len(decoding))
        # The others' next blocks go before guesses.
        return {
            sequence: proposal
            for sequence, proposal in proposals.items()
            if self.kv.free > len(decoding)
            and self.kv.extend(sequence, ahead=len(proposal.tokens)) is not None
        }

    def _fill_budget(
        self, now: float, proposals: Mapping[Sequence, Proposal], admitting: bool
    ) -> list[Chunk]:
        """Decoding sequences first, then prefills, running and newly admitted ones in order."""
        chunks: list[Chunk] = []
        prefills: deque[Sequence] = deque()
        for sequence in self._active(self._running):
            if sequence.uncomputed > 1:
                prefills.append(sequence)
            elif sequence.room(self.context_length):
                chunks.append(Chunk.of(sequence, 1, proposals.get(sequence)))
        budget = self.max_batch_tokens - sum(chunk.length for chunk in chunks)
        if self._idle:
            budget = min(budget, max(self.max_batch_tokens // _IDLE_SHARE - len(chunks), 1))
        elif len(chunks) >= len(prefills) + len(self._active(self._waiting)):
            budget = min(budget, max(self.max_batch_tokens // 2, 1))
        while budget > 0:
            admitted = None
            if (
                admitting
                and self._waiting
                and (not prefills or self._waiting[0].order < prefills[0].order)
            ):
                admitted = self._admit(now)
                admitting = admitted is not None
            if admitted is None and not prefills:
                break
            sequence = admitted or prefills.popleft()
            length = min(sequence.uncomputed, budget)
            chunks.append(Chunk.of(sequence, length))
            budget -= length
        return sorted(chunks, key=_by_order)

    def _admit(self, now: float) -> Sequence | None:
        """Start the first waiting sequence if there is room for it to stay."""
        sequence = self._waiting[0]
        if sequence.idle and self._paused:
            return None
        while not self._place(sequence):
            if len(self._active(self._running)) == len(self._running):
                return None
            self._preempt(self._running[-1])
        del self._waiting[0]
        sequence.phase = Phase.RUNNING
        insort(self._running, sequence, key=_by_order)
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
            sequence.cached_tokens = sequence.computed
            self._last_wait = sequence.queue_seconds
        return sequence

    def _place(self, sequence: Sequence) -> bool:
        """Give it blocks if it can stay; those that stand still take no more meanwhile."""
        if sequence.width + sum(s.width for s in self._running) > self.max_sequences:
            return False
        active = self._active(self._running)
        width = sequence.width + sum(s.width for s in active)
        return self.kv.admit(sequence, spare=width if active else 0)

    def _fork(self, parent: Sequence, children: tuple[Sequence, ...]) -> None:
        """Start the siblings that were not cancelled since they were scheduled."""
        for child in children:
            if child.index not in parent.pending:
                continue
            parent.pending.remove(child.index)
            self.kv.fork(parent, child)
            child.phase = Phase.RUNNING
            self._requests[child.request_id].append(child)
            insort(self._running, child, key=_by_order)

    def _append(
        self,
        sequence: Sequence,
        tokens: tuple[int, ...],
        chunk: Chunk,
        continuation: Continuation | None,
    ) -> Sampled:
        """Add accepted tokens up to the first that ends the sequence; drop what was not accepted.

        Keys and values of rejected proposals are computed again over the same slots.
        """
        sequence.in_flight -= 1 + len(chunk.proposed)
        sequence.computed -= 1 + len(chunk.proposed) - len(tokens)
        self._guesses.count(chunk, len(tokens) - 1)
        if continuation is not None:
            tokens += continuation.forced
        for kept, token in enumerate(tokens, start=1):
            stopped = sequence.stops_on(token)
            sequence.tokens.append(token)
            exhausted = not sequence.room(self.context_length) and not sequence.in_flight
            if stopped or exhausted:
                self._remove(sequence)
                reason: FinishReason = "stop" if stopped else "length"
                return Sampled(sequence, tokens[:kept], reason, stopped)
        if continuation is not None and continuation.ended:
            self._remove(sequence)
            return Sampled(sequence, tokens, "stop")
        return Sampled(sequence, tokens)

    def _remove(self, sequence: Sequence) -> None:
        running = sequence.phase is Phase.RUNNING
        (self._running if running else self._waiting).remove(sequence)
        sequence.phase = Phase.FINISHED
        self._release(sequence)
        siblings = self._requests[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request_id]
