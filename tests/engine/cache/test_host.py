from __future__ import annotations

import pytest
from hagane.engine.cache.host import HostMemory
from hagane.system.errors import ConfigurationError


def test_the_least_recently_used_block_gives_its_slot() -> None:
    host = HostMemory(3 * 8 + 7, 8)
    assert host.capacity == 3
    for name, slot in zip(b"abc", host.borrow(3), strict=True):
        host.fill(bytes([name]), slot)
    host.find([b"a", b"b"])
    assert host.borrow(1)
    assert b"c" not in host and b"a" in host
    # A prompt's first block goes last.
    host.borrow(1)
    assert b"b" not in host and b"a" in host


def test_no_more_slots_than_there_are() -> None:
    host = HostMemory(32, 8)
    slots = host.borrow(9)
    assert sorted(slots) == [0, 1, 2, 3]
    assert host.borrow(1) == []
    host.give_back(slots[:1])
    assert host.borrow(2) == slots[:1]


def test_slots_are_rows_of_one_memory() -> None:
    host = HostMemory(32, 8)
    host.content(2)[:] = b"01234567"
    assert bytes(host.slots[2].tolist()) == b"01234567"


def test_a_block_that_is_there_already_keeps_its_slot() -> None:
    host = HostMemory(32, 8)
    first, second = host.borrow(2)
    host.fill(b"a", first)
    host.fill(b"a", second)
    assert host.find([b"a"]) == [first]
    assert len(host.borrow(4)) == 4


def test_less_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="kv_cache_host_memory"):
        HostMemory(7, 8)
