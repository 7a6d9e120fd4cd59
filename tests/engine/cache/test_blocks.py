from __future__ import annotations

import pytest
from hagane.engine.cache.blocks import KVCache
from hagane.engine.schedule.sequence import Sequence
from hagane.pool.messages import SamplingParams
from hagane.system.errors import ConfigurationError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

SIZE = 4


def make(tokens, salt: str = "", prompt_logprobs: int | None = None) -> Sequence:
    return Sequence(
        request_id="r",
        index=0,
        tokens=list(tokens),
        prompt_length=len(tokens),
        sampling=SamplingParams(max_tokens=1, prompt_logprobs=prompt_logprobs),
        priority=0,
        arrival=0,
        arrived=0.0,
        cache_salt=salt,
    )


def run(kv: KVCache, sequence: Sequence) -> Sequence:
    """Admit and compute all known tokens."""
    assert kv.admit(sequence)
    compute(kv, sequence)
    return sequence


def compute(kv: KVCache, sequence: Sequence) -> None:
    sequence.computed = sequence.length
    kv.register(sequence)


def hit(kv: KVCache, tokens, **keywords) -> int:
    """Tokens found in the cache by a sequence that comes and goes."""
    sequence = make(tokens, **keywords)
    assert kv.admit(sequence)
    found = sequence.computed
    kv.release(sequence)
    return found


def test_admission_gives_blocks_for_all_tokens() -> None:
    kv = KVCache(8, SIZE)
    sequence = make(range(9))
    assert kv.admit(sequence)
    assert len(sequence.blocks) == kv.used == 3
    assert (kv.free, kv.cached, kv.total) == (5, 0, 8)
    kv.check([sequence])


def test_freed_full_blocks_are_found_again() -> None:
    kv = KVCache(8, SIZE)
    first = run(kv, make(range(10)))
    head = first.blocks[:2]
    kv.release(first)
    assert (kv.used, kv.cached, kv.free) == (0, 2, 8)
    second = make([*range(8), 99, 98])
    assert kv.admit(second)
    assert second.computed == 8
    assert second.blocks[:2] == head
    assert (kv.prefix_tokens_queried, kv.prefix_tokens_hit) == (20, 8)


def test_running_sequences_share_full_blocks() -> None:
    kv = KVCache(8, SIZE)
    first, second = run(kv, make(range(8))), make(range(9))
    assert kv.admit(second)
    assert second.blocks[:2] == first.blocks
    assert [kv.references(block) for block in second.blocks] == [2, 2, 1]
    kv.check([first, second])


def test_one_token_is_always_left_to_compute() -> None:
    kv = KVCache(8, SIZE)
    kv.release(run(kv, make(range(8))))
    assert hit(kv, range(8)) == 4
    assert hit(kv, range(9)) == 8


def test_only_computed_blocks_are_registered() -> None:
    kv = KVCache(8, SIZE)
    sequence = make(range(8))
    assert kv.admit(sequence)
    sequence.computed = 7
    kv.register(sequence)
    assert hit(kv, range(12)) == 4


def test_same_block_after_another_prefix_is_another_block() -> None:
    kv = KVCache(8, SIZE)
    kv.release(run(kv, make([1, 1, 1, 1, 2, 2, 2, 2])))
    assert hit(kv, [3, 3, 3, 3, 2, 2, 2, 2, 0]) == 0
    assert hit(kv, [2, 2, 2, 2, 2, 2, 2, 2, 0]) == 0


def test_salts_do_not_share() -> None:
    kv = KVCache(8, SIZE)
    kv.release(run(kv, make(range(8), salt="a")))
    assert hit(kv, range(9), salt="b") == 0
    assert hit(kv, range(9)) == 0
    assert hit(kv, range(9), salt="a") == 8


def test_prompt_logprobs_skip_the_lookup_but_feed_the_cache() -> None:
    kv = KVCache(8, SIZE)
    kv.release(run(kv, make(range(8), prompt_logprobs=1)))
    assert hit(kv, range(9), prompt_logprobs=1) == 0
    assert kv.prefix_tokens_queried == 0
    assert hit(kv, range(9)) == 8


def test_prefix_caching_off_shares_nothing() -> None:
    kv = KVCache(8, SIZE, prefix_caching=False)
    kv.release(run(kv, make(range(8))))
    assert (hit(kv, range(9)), kv.cached, kv.prefix_tokens_queried) == (0, 0, 0)


def test_oldest_content_is_evicted_first_and_use_makes_it_young() -> None:
    kv = KVCache(4, SIZE)
    old, young = [1] * 5, [2] * 5
    kv.release(run(kv, make(old)))
    kv.release(run(kv, make(young)))
    assert hit(kv, old) == 4
    kv.release(run(kv, make([3] * 12)))
    assert hit(kv, old) == 4
    assert hit(kv, young) == 0


def test_tail_is_evicted_before_head() -> None:
    kv = KVCache(4, SIZE)
    kv.release(run(kv, make(range(16))))
    kv.release(run(kv, make([99] * 8)))
    assert hit(kv, [*range(12), 0]) == 8
    kv.check()


def test_refused_admission_changes_nothing() -> None:
    kv = KVCache(4, SIZE)
    kv.release(run(kv, make(range(8))))
    holder = run(kv, make([7] * 5))
    newcomer = make([*range(8), 1, 2, 3, 4, 5])
    assert not kv.admit(newcomer)
    assert (newcomer.blocks, newcomer.computed, kv.cached) == ([], 0, 2)
    kv.check([holder])


def test_cached_prefix_is_not_counted_as_room_twice() -> None:
    kv = KVCache(3, SIZE)
    kv.release(run(kv, make(range(8))))
    assert not kv.admit(make(range(9)), spare=1)
    assert kv.admit(make(range(9)), spare=0)


def test_fork_shares_and_writing_copies() -> None:
    kv = KVCache(8, SIZE)
    parent = run(kv, make(range(6)))
    child = parent.sibling(1)
    kv.fork(parent, child)
    full, partial = parent.blocks
    for sequence in (parent, child):
        sequence.tokens.append(50 + sequence.index)
    assert kv.extend(parent) == ((partial, parent.blocks[1]),)
    assert parent.blocks[0] == child.blocks[0] == full
    assert child.blocks[1] == partial != parent.blocks[1]
    assert kv.extend(child) == ()
    kv.check([parent, child])


def test_fork_at_a_block_boundary_copies_nothing() -> None:
    kv = KVCache(8, SIZE)
    parent = run(kv, make(range(8)))
    child = parent.sibling(1)
    kv.fork(parent, child)
    for sequence in (parent, child):
        sequence.tokens.append(9)
        assert kv.extend(sequence) == ()
    assert parent.blocks[2] != child.blocks[2]


def test_extend_without_room_changes_nothing() -> None:
    kv = KVCache(2, SIZE)
    parent = run(kv, make(range(6)))
    child = parent.sibling(1)
    kv.fork(parent, child)
    child.tokens.append(9)
    blocks = list(child.blocks)
    assert kv.extend(child) is None
    assert child.blocks == blocks
    kv.check([parent, child])


def test_equal_blocks_computed_twice_are_both_given_back() -> None:
    kv = KVCache(8, SIZE)
    twins = [make(range(5)), make(range(5))]
    for twin in twins:
        assert kv.admit(twin)
    for twin in twins:
        compute(kv, twin)
        kv.check(twins)
    for twin in twins:
        kv.release(twin)
    kv.check()
    assert (kv.cached, kv.free) == (1, 8)


def test_preempted_sequence_finding_its_own_blocks_is_no_hit() -> None:
    kv = KVCache(8, SIZE)
    sequence = run(kv, make(range(9)))
    sequence.first_scheduled = 1.0
    kv.release(sequence)
    assert kv.admit(sequence)
    assert sequence.computed == 8
    assert (kv.prefix_tokens_queried, kv.prefix_tokens_hit) == (9, 0)


@pytest.mark.parametrize(("blocks", "size", "name"), [(0, 4, "blocks"), (4, 0, "block_size")])
def test_sizes_below_one_are_refused(blocks: int, size: int, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} is 0"):
        KVCache(blocks, size)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda kv, s: s.blocks.pop(), "block 1: reference count differs"),
        (lambda kv, s: kv._empty.append(s.blocks[0]), "block 0: neither used nor free"),
        (lambda kv, s: kv._empty.pop(), "block 7: neither used nor free"),
        (lambda kv, s: kv._by_digest.clear(), "block 0: content leads elsewhere"),
        (lambda kv, s: kv._by_digest.update({b"": 3}), "entries without block"),
        (lambda kv, s: setattr(s, "computed", 2), "may write a cached block"),
    ],
)
def test_check_finds_damage(damage, fault: str) -> None:
    kv = KVCache(8, SIZE)
    kv._empty.sort(reverse=True)
    sequence = run(kv, make(range(6)))
    kv.check([sequence])
    kv._empty.sort()
    damage(kv, sequence)
    with pytest.raises(RuntimeError, match=fault):
        kv.check([sequence])


class CacheMachine(RuleBasedStateMachine):
    """Random use of a tiny cache against an oracle of what every slot really holds."""

    sequences = Bundle("sequences")
    tokens = st.integers(0, 1)

    def __init__(self) -> None:
        super().__init__()
        self.kv = KVCache(7, 2)
        self.live: list[Sequence] = []
        self.content: dict[tuple[int, int], tuple[str, tuple[int, ...]]] = {}

    @rule(
        target=sequences,
        tokens=st.lists(tokens, min_size=1, max_size=9),
        salt=st.sampled_from("ab"),
    )
    def admit(self, tokens: list[int], salt: str) -> Sequence:
        sequence = make(tokens, salt)
        if self.kv.admit(sequence):
            assert sequence.computed < sequence.length
            self.live.append(sequence)
        return sequence

    @rule(target=sequences, parent=sequences)
    def fork(self, parent: Sequence) -> Sequence:
        child = parent.sibling(1)
        if parent.blocks:
            self.kv.fork(parent, child)
            self.live.append(child)
        return child

    @rule(sequence=sequences, token=tokens)
    def append(self, sequence: Sequence, token: int) -> None:
        sequence.tokens.append(token)

    @rule(sequence=sequences, count=st.integers(1, 5))
    def compute(self, sequence: Sequence, count: int) -> None:
        if not sequence.blocks:
            return
        copies = self.kv.extend(sequence)
        if copies is None:
            return
        for source, destination in copies:
            for offset in range(2):
                self.content[destination, offset] = self.content.get((source, offset), ("", ()))
        end = min(sequence.length, sequence.computed + count)
        for position in range(sequence.computed, end):
            block = sequence.blocks[position // 2]
            assert self.kv.references(block) == 1
            self.content[block, position % 2] = self.prefix(sequence, position)
        sequence.computed = end
        self.kv.register(sequence)

    @rule(sequence=consumes(sequences))
    def release(self, sequence: Sequence) -> None:
        self.kv.release(sequence)
        self.live = [other for other in self.live if other is not sequence]

    @staticmethod
    def prefix(sequence: Sequence, position: int) -> tuple[str, tuple[int, ...]]:
        return sequence.cache_salt, tuple(sequence.tokens[: position + 1])

    @invariant()
    def books_are_in_order(self) -> None:
        self.kv.check(self.live)
        assert self.kv.used + self.kv.free == self.kv.total

    @invariant()
    def everyone_reads_its_own_prefix(self) -> None:
        for sequence in self.live:
            for position in range(sequence.computed):
                slot = sequence.blocks[position // 2], position % 2
                assert self.content[slot] == self.prefix(sequence, position)

    def teardown(self) -> None:
        for sequence in self.live:
            self.kv.release(sequence)
        self.kv.check()
        assert self.kv.free == self.kv.total


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
