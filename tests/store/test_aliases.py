"""Aliases: generations, compare-and-swap, roll-back."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
from hagane.store.aliases import AliasGeneration
from hagane.system.errors import ConflictError, NotFoundError


def test_generations_count_up_and_the_last_is_in_force(store):
    first = store.aliases.set(AliasGeneration("support", "one"), expected=0)
    second = store.aliases.set(AliasGeneration("support", "two"), expected=1)
    assert (first.generation, second.generation) == (1, 2)
    assert store.aliases.resolve("support") == "two"
    assert store.aliases.current() == [second]
    assert store.aliases.history("support") == [second, first]
    assert store.aliases.resolve("unknown") is None
    with pytest.raises(NotFoundError):
        store.aliases.history("unknown")


def test_a_stale_generation_is_refused(store):
    store.aliases.set(AliasGeneration("a", "one"))
    store.aliases.set(AliasGeneration("a", "two"))
    with pytest.raises(ConflictError, match="at generation 2, not 1") as caught:
        store.aliases.set(AliasGeneration("a", "three"), expected=1)
    assert caught.value.code == "generation_mismatch"
    with pytest.raises(ConflictError):
        store.aliases.rollback("a", expected=1)


def test_of_many_swaps_from_one_generation_one_wins(store):
    store.aliases.set(AliasGeneration("a", "one"))
    outcomes = []

    def swap(number: int) -> None:
        try:
            store.aliases.set(AliasGeneration("a", f"m{number}"), expected=1)
            outcomes.append(True)
        except ConflictError:
            outcomes.append(False)

    threads = [threading.Thread(target=swap, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False] * 7 + [True]
    assert store.aliases.get("a").generation == 2


def test_rolling_back_is_a_generation_of_its_own(store):
    for target in ("one", "two", "three"):
        store.aliases.set(AliasGeneration("a", target))
    assert store.aliases.rollback("a").target == "two"
    assert store.aliases.rollback("a", generation=1).target == "one"
    assert [g.target for g in store.aliases.history("a")] == ["one", "two", "three", "two", "one"]
    with pytest.raises(NotFoundError):
        store.aliases.rollback("a", generation=99)


def test_a_deleted_alias_resolves_to_nothing_and_keeps_its_history(store):
    store.aliases.set(AliasGeneration("a", "one"))
    store.aliases.delete("a")
    assert store.aliases.resolve("a") is None
    assert store.aliases.current() == []
    with pytest.raises(NotFoundError):
        store.aliases.delete("a")
    again = store.aliases.set(AliasGeneration("a", "two"), expected=0)
    assert again.generation == 3
    with pytest.raises(NotFoundError):
        store.aliases.rollback("a")


def test_the_candidate_gets_its_share(store):
    store.aliases.set(AliasGeneration("a", "old", candidate="new", percentage=25))
    alias = store.aliases.get("a")
    chosen = Counter(alias.model(alias.choose(percentile)) for percentile in range(100))
    assert chosen == {"new": 25, "old": 75}
    store.aliases.set(AliasGeneration("a", "old", candidate="new", percentage=100))
    assert {store.aliases.resolve("a") for _ in range(20)} == {"new"}
