"""Thousands of random steps against an oracle that knows what every cache slot really holds.

The oracle plays runner and model: it copies and writes slots as a schedule says, and samples each
token from the content it reads back, so that any slot overwritten, shared or reused wrongly shows
in the text, which must equal that of the same request run alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hagane.engine.cache.blocks import KVCache
from hagane.engine.schedule.plan import Chunk, Sampled, Schedule
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import IDLE_PRIORITY, GenerateRequest, SamplingParams
from hagane.system.errors import QueueFullError
from hypothesis import example, given, settings
from hypothesis import strategies as st

END = 1
CONTEXT = 40
MAX_STEPS = 2_000
"""Far more than the rest of any simulation takes once nothing arrives any more."""

Prefix = tuple[str, tuple[int, ...]]
Key = tuple[str, int]


def sample(prefix: Prefix, index: int) -> int:
    """The model: the next token is a function of salt, all tokens before, and continuation."""
    return random.Random(f"{prefix}{index}").randrange(1, 40)


def expected(request: GenerateRequest, index: int) -> tuple[list[int], str]:
    """The tokens of continuation `index` when run alone, and why it ends."""
    tokens = list(request.prompt)
    while True:
        tokens.append(sample((request.cache_salt, tuple(tokens)), index))
        generated = len(tokens) - len(request.prompt)
        ended = tokens[-1] == END and generated > request.sampling.min_tokens
        if ended or generated == request.sampling.max_tokens or len(tokens) == CONTEXT:
            return tokens[len(request.prompt) :], "stop" if ended else "length"


@dataclass
class Oracle:
    """Executes schedules on a cache of prefixes instead of keys and values.

    `sampled` are the tokens of the step before, which the scheduler may not know yet, `below` the
    content of the blocks that went to another memory.
    """

    kv: KVCache
    below: dict[bytes, list[Prefix]] = field(default_factory=dict)
    restored: int = 0
    sampled: dict[Sequence, int] = field(default_factory=dict)
    slots: dict[tuple[int, int], Prefix] = field(default_factory=dict)
    computed: dict[Sequence, int] = field(default_factory=dict)
    copies: int = 0

    def execute(self, schedule: Schedule) -> list[int]:
        self.computed = {s: end for s, end in self.computed.items() if s.blocks}
        self._exchange()
        self._copy(schedule)
        for chunk in schedule.chunks:
            self._write(chunk)
        self.sampled = {
            sampler: sample(self._read(chunk), sampler.index)
            for chunk in schedule.chunks
            for sampler in chunk.samplers
        }
        return list(self.sampled.values())

    def leave(self, schedule: Schedule) -> None:
        """Execute it, but for its samples: the same tokens are to be computed again."""
        self._exchange()
        self._copy(schedule)
        computed = dict(self.computed)
        for chunk in schedule.chunks:
            self._write(chunk)
        self.computed = computed

    def _prefix(self, sequence: Sequence, length: int) -> Prefix:
        assert sequence.in_flight <= 1
        unknown = [self.sampled[sequence]] if sequence.in_flight else []
        return sequence.cache_salt, tuple([*sequence.tokens, *unknown][:length])

    def _exchange(self) -> None:
        moves, offsets = self.kv.take_moves(), range(self.kv.block_size)
        down = {d: [self.slots[b, o] for o in offsets] for b, d in moves.evicted + moves.filled}
        for block, digest in moves.restored:
            assert self.kv.references(block) == 1
            self.slots.update({(block, o): self.below[digest][o] for o in offsets})
            self.restored += 1
        # Another memory forgets, too, but not what it was about to give back.
        self.below.update(down)
        for digest in list(self.below)[: max(len(self.below) - 100, 0)]:
            del self.below[digest]

    def _copy(self, schedule: Schedule) -> None:
        destinations = [destination for _, destination in schedule.copies]
        assert len(set(destinations)) == len(destinations)
        self.copies += len(destinations)
        for position, (source, destination) in enumerate(schedule.copies):
            assert self.kv.references(destination) == 1
            assert source not in destinations[:position]
            for offset in range(self.kv.block_size):
                self.slots[destination, offset] = self.slots.get((source, offset), ("", ()))

    def _write(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        assert chunk.length > 0
        if sequence in self.computed:
            assert chunk.start == self.computed[sequence]
        else:
            assert chunk.start % self.kv.block_size == 0
            assert chunk.start == 0 or not sequence.needs_prompt_logits
        for position in range(chunk.start, chunk.start + chunk.length):
            slot = self._slot(sequence, position)
            assert self.kv.references(slot[0]) == 1
            self.slots[slot] = self._prefix(sequence, position + 1)
        for sampler in chunk.samplers or (sequence,):
            self.computed[sampler] = chunk.start + chunk.length

    def _read(self, chunk: Chunk) -> Prefix:
        """The tokens that the chunk's last one attends to, which must be the sequence's own."""
        sequence, end = chunk.sequence, chunk.start + chunk.length
        for position in range(end):
            content = self.slots[self._slot(sequence, position)]
            assert content == self._prefix(sequence, position + 1)
        return content

    def _slot(self, sequence: Sequence, position: int) -> tuple[int, int]:
        block, offset = divmod(position, self.kv.block_size)
        return sequence.blocks[block], offset


class Simulation:
    """A scheduler under random load, and the accounts of what became of each request.

    If `ahead`, every step is scheduled and executed before the scheduler hears of the one before.
    With `tiers` there is another memory below the cache.
    """

    def __init__(
        self, seed: int, *, prefix_caching: bool = True, ahead: bool = False, tiers: bool = False
    ) -> None:
        self.ahead = ahead
        below: dict[bytes, list[Prefix]] = {}
        self.flight: tuple[Schedule, list[int]] | None = None
        self.random = random.Random(seed)
        size = self.random.choice([1, 2, 4, 8])
        least = -(-CONTEXT // size)
        blocks = least + self.random.randrange(least)
        self.kv = KVCache(blocks, size, prefix_caching, below if tiers else None)
        self.scheduler = Scheduler(
            self.kv,
            max_batch_tokens=self.random.choice([8, 16, 64]),
            max_sequences=self.random.choice([1, 4, 8]),
            max_waiting=12,
            context_length=CONTEXT,
        )
        self.oracle = Oracle(self.kv, below)
        self.now = 0.0
        self.requests: dict[str, GenerateRequest] = {}
        self.texts: dict[Key, list[int]] = {}
        self.finished: dict[Key, str] = {}
        self.dropped: set[Key] = set()
        self.longest_wait = 0.0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if self.random.random() < 0.35:
                self._arrive()
            if self.requests and self.random.random() < 0.04:
                self._cancel()
            self._step()
        for _ in range(MAX_STEPS):
            if not (self.scheduler.has_work or self.flight):
                break
            self._step()
        self._settle()

    def _step(self) -> None:
        self.now += 0.1
        scheduler = self.scheduler
        first = min(scheduler._running, key=lambda sequence: sequence.order, default=None)
        schedule = scheduler.schedule(self.now)
        scheduler.check()
        for request_id in schedule.expired:
            deadline = self.requests[request_id].deadline
            assert deadline is not None
            assert deadline <= self.now
            self._drop(request_id)
        assert schedule.chunks or self.flight or not scheduler.has_work
        if first is not None and first.request_id not in schedule.expired:
            assert first.blocks or first.idle, "the first in order was preempted"
            orders = [chunk.sequence.order for chunk in schedule.chunks]
            assert not first.room(scheduler.context_length) or min(orders) <= first.order
        assert schedule.tokens <= scheduler.max_batch_tokens
        assert len({chunk.sequence.idle for chunk in schedule.chunks}) <= 1, "idle next to others"
        assert len({id(chunk.sequence) for chunk in schedule.chunks}) == len(schedule.chunks)
        assert len({id(sequence) for sequence in schedule.samplers}) == len(schedule.samplers)
        if not self.ahead and schedule.idle and self.random.random() < 0.1:
            self.oracle.leave(schedule)
            return
        launched = schedule, self.oracle.execute(schedule)
        if self.requests and self.random.random() < 0.02:
            self._cancel(whole=True)
        if self.ahead and self.flight is not None:
            self._finish(*self.flight)
        scheduler.advance(schedule)
        scheduler.check()
        if not self.ahead:
            self._finish(*launched)
        # An empty step is not in flight: the next turn may launch at once.
        self.flight = launched if self.ahead and schedule.chunks else None
        scheduler.check()
        assert scheduler.stats().running <= scheduler.max_sequences

    def _finish(self, schedule: Schedule, tokens: list[int]) -> None:
        for result in self.scheduler.update(schedule, [(token,) for token in tokens]):
            self._record(result)

    def _arrive(self) -> None:
        chance = self.random
        stem = tuple(range(20, 20 + chance.choice([0, 4, 9, 17])))
        tail = tuple(chance.randrange(1, 4) for _ in range(chance.choice([1, 2, 5, 20])))
        request = GenerateRequest(
            request_id=f"r{len(self.requests)}",
            prompt=(stem + tail)[: CONTEXT - 1],
            sampling=SamplingParams(
                max_tokens=chance.choice([1, 3, 10, 100]),
                min_tokens=chance.choice([0, 0, 2]),
                eos_token_ids=(END,),
                prompt_logprobs=chance.choice([None, None, None, 0]),
            ),
            n=min(chance.choice([1, 1, 1, 2, 3]), self.scheduler.max_sequences),
            priority=chance.choice([0, 0, 0, -1, 3, IDLE_PRIORITY]),
            deadline=self.now + chance.choice([0.5, 5.0]) if chance.random() < 0.1 else None,
            cache_salt=chance.choice(["", "", "tenant"]),
        )
        try:
            self.scheduler.add(request, self.now)
        except QueueFullError:
            assert self.scheduler.stats().waiting >= self.scheduler.max_waiting
            return
        self.requests[request.request_id] = request

    def _cancel(self, whole: bool = False) -> None:
        request_id, request = self.random.choice(list(self.requests.items()))
        index = None if whole or self.random.random() < 0.5 else self.random.randrange(request.n)
        self.scheduler.cancel(request_id, index)
        self._drop(request_id, index)

    def _drop(self, request_id: str, index: int | None = None) -> None:
        indices = range(self.requests[request_id].n) if index is None else (index,)
        self.dropped |= {(request_id, i) for i in indices} - self.finished.keys()

    def _record(self, result: Sampled) -> None:
        key = (result.sequence.request_id, result.sequence.index)
        assert key not in self.finished
        assert key not in self.dropped
        self.texts.setdefault(key, []).extend(result.tokens)
        assert result.stopped_on_token == (result.finish_reason == "stop")
        if not result.sequence.idle:
            self.longest_wait = max(self.longest_wait, result.sequence.queue_seconds)
        if result.finish_reason is not None:
            self.finished[key] = result.finish_reason

    def _settle(self) -> None:
        """Nothing lost, nothing leaked, every text as if run alone."""
        assert not self.scheduler.has_work
        assert (self.kv.used, self.kv.free) == (0, self.kv.total)
        self.kv.check()
        for request_id, request in self.requests.items():
            for index in range(request.n):
                key = (request_id, index)
                text, reason = expected(request, index)
                assert (key in self.finished) != (key in self.dropped)
                if key in self.finished:
                    assert self.texts[key] == text
                    assert self.finished[key] == reason
                else:
                    assert self.texts.get(key, []) == text[: len(self.texts.get(key, []))]


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
@pytest.mark.parametrize("seed", range(12))
def test_random_load(seed: int, ahead: bool) -> None:
    simulation = Simulation(seed, ahead=ahead)
    simulation.run(1_000)
    assert len(simulation.finished) > 100
    assert simulation.longest_wait < 60.0


def test_random_load_without_prefix_caching() -> None:
    simulation = Simulation(5, prefix_caching=False)
    simulation.run(1_000)
    assert simulation.scheduler.stats().preemptions > 0
    assert simulation.kv.prefix_tokens_queried == simulation.kv.cached == 0


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_the_load_reaches_every_policy(ahead: bool) -> None:
    """The simulations would prove little if they never preempted, shared, copied or dropped."""
    simulations = [Simulation(seed, ahead=ahead) for seed in range(8)]
    for simulation in simulations:
        simulation.run(300)
    assert sum(s.scheduler.stats().preemptions for s in simulations) > 20
    assert sum(s.kv.prefix_tokens_hit for s in simulations) > 1_000
    assert sum(s.oracle.copies for s in simulations) > 20
    assert sum(len(s.dropped) for s in simulations) > 20


@pytest.mark.parametrize("ahead", [False, True], ids=["in turn", "ahead"])
def test_random_load_above_another_memory(ahead: bool) -> None:
    simulations = [Simulation(seed, ahead=ahead, tiers=True) for seed in range(4)]
    for simulation in simulations:
        simulation.run(400)
    assert sum(simulation.oracle.restored for simulation in simulations) > 100


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), ahead=st.booleans(), tiers=st.booleans())
@example(seed=13217, ahead=False, tiers=False)  # a preempted one would fit again in the same step
@example(seed=13217, ahead=True, tiers=False)
def test_any_short_load(seed: int, ahead: bool, tiers: bool) -> None:
    Simulation(seed, ahead=ahead, tiers=tiers).run(60)
