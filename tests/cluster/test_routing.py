"""Which replica a request goes to: by what is cached, within the load."""

from __future__ import annotations

from collections import Counter

from hagane.cluster.routing import PrefixPolicy, RoutingHint
from hagane.pool.messages import AdapterRef, GenerateRequest, SamplingParams


def hint(prompt, adapter: str = "", salt: str = "") -> RoutingHint:
    ref = AdapterRef(adapter, "/x", adapter) if adapter else None
    sampling = SamplingParams(max_tokens=1)
    return RoutingHint.of(
        GenerateRequest(
            request_id="r", prompt=tuple(prompt), sampling=sampling, adapter=ref, cache_salt=salt
        )
    )


def test_a_hint_is_a_chain_over_whole_chunks():
    assert hint(range(63)).beginnings == ()
    one, two = hint(range(64)), hint(range(200))
    assert len(one.beginnings) == 1
    assert len(two.beginnings) == 3
    assert two.beginnings[0] == one.beginnings[0]
    changed = hint([*range(100), -1, *range(101, 200)])
    assert changed.beginnings[0] == two.beginnings[0]
    assert not set(changed.beginnings[1:]) & set(two.beginnings)
    for other in (hint(range(64), adapter="a"), hint(range(64), salt="s")):
        assert other.beginnings != one.beginnings
    assert len(hint(range(100_000)).beginnings) == 128


def test_a_prompt_goes_where_its_longest_beginning_is():
    policy = PrefixPolicy(slack=10)
    loads = {"a": 0, "b": 0, "c": 0}
    policy.note(hint(range(128)), "a")
    policy.note(hint(range(256)), "b")
    assert policy.rank(hint(range(300)), loads)[0] == "b"
    assert policy.rank(hint([*range(128), *range(1000, 1100)]), loads)[0] == "b"
    policy.note(hint(range(128)), "a")
    assert policy.rank(hint([*range(128), *range(1000, 1100)]), loads)[0] == "a"
    assert sorted(policy.rank(hint(range(300)), loads)) == ["a", "b", "c"]


def test_routers_that_share_nothing_place_a_new_beginning_alike():
    loads = dict.fromkeys("abcdef", 0)
    first = [PrefixPolicy(10).rank(hint(range(n, n + 64)), loads)[0] for n in range(200)]
    again = [PrefixPolicy(10).rank(hint(range(n, n + 64)), loads)[0] for n in range(200)]
    assert first == again
    assert min(Counter(first).values()) > 10
    # One replica less moves what it had, and nothing else.
    del loads["f"]
    less = [PrefixPolicy(10).rank(hint(range(n, n + 64)), loads)[0] for n in range(200)]
    assert all(now == before for now, before in zip(less, first, strict=True) if before != "f")


def test_an_adapter_stays_where_it_is_loaded():
    policy = PrefixPolicy(slack=10)
    loads = {"a": 0, "b": 0, "c": 0}
    place = policy.rank(hint(range(10), "x"), loads)[0]
    other = next(name for name in loads if name != place)
    policy.note(hint(range(10), "x"), other)
    assert policy.rank(hint(range(20, 30), "x"), loads)[0] == other


def test_no_replica_gets_much_more_than_its_share():
    policy, loads = PrefixPolicy(slack=1.25), dict.fromkeys("abcd", 0)
    popular = hint(range(640))
    for _ in range(400):
        place = policy.rank(popular, loads)[0]
        policy.note(popular, place)
        loads[place] += 1
    assert max(loads.values()) <= 126
    assert min(loads.values()) >= 50


def test_short_prompts_go_where_there_is_least_to_do():
    policy = PrefixPolicy()
    assert policy.rank(hint(range(10)), {"a": 2, "b": 1, "c": 3}) == ["b", "a", "c"]
    chosen = {policy.rank(hint(()), {"a": 0, "b": 0})[0] for _ in range(50)}
    assert chosen == {"a", "b"}


def test_beginnings_are_forgotten_the_oldest_first():
    policy = PrefixPolicy(slack=10, remembered=4)
    loads = dict.fromkeys("ab", 0)
    policy.note(hint(range(256)), "a")
    by_hash = PrefixPolicy(10).rank(hint(range(1000, 1064)), loads)[0]
    other = "a" if by_hash == "b" else "b"
    policy.note(hint(range(1000, 1064)), other)
    assert policy.rank(hint(range(1000, 1064)), loads)[0] == other
    policy.note(hint(range(2000, 2256)), "a")
    assert policy.rank(hint(range(1000, 1064)), loads)[0] == by_hash
