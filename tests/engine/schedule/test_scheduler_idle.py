"""Sequences of idle priority: they stand still for others, keep their blocks, and give them up."""

from __future__ import annotations

import pytest
from hagane.engine.schedule.plan import IdleWork
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.schedule.sequence import PRIORITY_SECONDS
from hagane.pool.messages import IDLE_PRIORITY

from tests.support.scheduling import drain, land, make, request, shape, step


def add_idle(scheduler: Scheduler, name: str, prompt: int = 3, **keywords) -> None:
    scheduler.add(request(name, prompt, priority=IDLE_PRIORITY, **keywords), 0.0)


def names(scheduler: Scheduler, now: float = 0.0) -> set[str]:
    return {name for name, _, _ in shape(step(scheduler, now)[0])}


def test_they_stand_still_with_their_blocks_while_another_runs() -> None:
    scheduler = make(max_batch_tokens=64)
    for name in ("a", "b"):
        add_idle(scheduler, name, 6, max_tokens=8)
    assert names(scheduler) == {"a", "b"}
    used = scheduler.kv.used
    scheduler.add(request("chat", 3, max_tokens=3), 0.0)
    for _ in range(3):
        assert names(scheduler) == {"chat"}
    assert scheduler.kv.used == used
    schedule, _ = step(scheduler)
    assert shape(schedule) == [("a", 6, 1), ("b", 6, 1)]
    assert schedule.idle
    assert scheduler.stats().preemptions == 0


def test_a_prefill_under_way_stands_still_too() -> None:
    scheduler = make(max_batch_tokens=16)
    add_idle(scheduler, "a", 12, n=2)
    assert shape(step(scheduler)[0]) == [("a", 0, 4)]
    scheduler.add(request("chat", 3, max_tokens=2), 0.0)
    assert [names(scheduler) for _ in range(2)] == [{"chat"}] * 2
    assert shape(step(scheduler)[0]) == [("a", 4, 4)]
    assert {r.sequence.index for r in drain(scheduler)} == {0, 1}


def test_their_steps_have_a_quarter_of_the_tokens() -> None:
    scheduler = make(max_batch_tokens=16)
    add_idle(scheduler, "a", 3, max_tokens=20)
    step(scheduler)
    add_idle(scheduler, "b", 20)
    assert shape(step(scheduler)[0]) == [("a", 3, 1), ("b", 0, 3)]


def test_waiting_does_not_make_them_urgent() -> None:
    scheduler = make(max_sequences=1)
    add_idle(scheduler, "a")
    late = 2 * IDLE_PRIORITY * PRIORITY_SECONDS
    scheduler.add(request("chat", max_tokens=1), late)
    assert names(scheduler, late) == {"chat"}


def test_they_are_not_admitted_next_to_others() -> None:
    scheduler = make()
    scheduler.add(request("chat", max_tokens=3), 0.0)
    add_idle(scheduler, "a")
    assert [names(scheduler) for _ in range(4)] == [{"chat"}] * 3 + [{"a"}]


def test_whoever_finds_no_place_takes_theirs() -> None:
    scheduler = make(max_batch_tokens=64)
    for name in "abcd":
        add_idle(scheduler, name)
    step(scheduler)
    scheduler.add(request("chat", n=2, max_tokens=2), 0.0)
    assert names(scheduler) == {"chat"}
    assert scheduler.stats().preemptions == 2
    drain(scheduler)


def test_whoever_finds_no_blocks_takes_theirs() -> None:
    scheduler = make(blocks=8, max_batch_tokens=64)
    for name, length in (("a", 9), ("b", 7)):
        add_idle(scheduler, name, length)
    assert names(scheduler) == {"a", "b"}
    scheduler.add(request("chat", 13), 0.0)
    assert names(scheduler) == {"chat"}
    assert scheduler.stats().preemptions == 1
    assert {r.sequence.request_id for r in drain(scheduler) if r.finish_reason} == {
        "a", "b", "chat",
    }  # fmt: skip


def test_a_growing_one_takes_their_blocks() -> None:
    scheduler = make(blocks=8, max_batch_tokens=64)
    add_idle(scheduler, "a", 16, max_tokens=8)
    for _ in range(4):
        step(scheduler)
    scheduler.add(request("chat", 8, max_tokens=20), 0.0)
    results = drain(scheduler)
    assert [r.sequence.request_id for r in results if r.finish_reason] == ["chat", "a"]
    assert scheduler.stats().preemptions == 1


def test_a_queue_of_theirs_does_not_lengthen_the_prefills_next_to_a_decode() -> None:
    scheduler = make(max_batch_tokens=8)
    scheduler.add(request("chat", 3, max_tokens=9), 0.0)
    step(scheduler)
    for name in "abc":
        add_idle(scheduler, name)
    scheduler.add(request("long", 20), 0.0)
    assert shape(step(scheduler)[0]) == [("chat", 3, 1), ("long", 0, 4)]


@pytest.mark.parametrize("whole", [True, False])
def test_those_that_stand_still_can_be_cancelled(whole: bool) -> None:
    scheduler = make()
    add_idle(scheduler, "a", n=2)
    step(scheduler)
    scheduler.add(request("chat"), 0.0)
    step(scheduler)
    for index in (None,) if whole else (0, 1):
        scheduler.cancel("a", index)
    scheduler.check()
    assert {r.sequence.request_id for r in drain(scheduler)} == {"chat"}


def test_deadlines_end_those_that_stand_still() -> None:
    scheduler = make()
    add_idle(scheduler, "a", deadline=2.0)
    step(scheduler)
    scheduler.add(request("chat"), 0.0)
    assert step(scheduler, 2.0)[0].expired == ("a",)


def test_a_step_that_was_left_is_done_again() -> None:
    scheduler = make()
    add_idle(scheduler, "a", 3)
    left = scheduler.schedule(0.0)
    scheduler.add(request("chat", max_tokens=1), 0.0)
    assert names(scheduler) == {"chat"}
    again = scheduler.schedule(0.0)
    assert shape(again) == shape(left)
    assert [r.tokens for r in land(scheduler, again, [7])] == [(7,)]


def test_no_step_runs_where_another_is_about_to_come() -> None:
    scheduler = make()
    add_idle(scheduler, "a")
    scheduler.idle_work = IdleWork.STOPS
    assert not scheduler.has_work
    scheduler.add(request("chat", max_tokens=1), 0.0)
    assert scheduler.has_work
    assert names(scheduler) == {"chat"}
    scheduler.idle_work = IdleWork.YIELDS
    assert scheduler.has_work


def test_they_go_on_where_others_wait_for_what_they_hold() -> None:
    scheduler = make()
    add_idle(scheduler, "a", 3)
    step(scheduler)
    scheduler.add(request("chat", 3), 0.0)
    scheduler.idle_work = IdleWork.GOES_ON
    assert names(scheduler) == {"a", "chat"}
