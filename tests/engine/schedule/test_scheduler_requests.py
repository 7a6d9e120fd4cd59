"""Continuations, cancellation and deadlines."""

from __future__ import annotations

import pytest

from tests.support.scheduling import drain, land, make, request, shape, step


class TestContinuations:
    def test_prefill_once_then_all_sample_in_the_same_step(self) -> None:
        scheduler = make()
        scheduler.add(request("a", 6, n=3), 0.0)
        schedule = scheduler.schedule(0.0)
        assert [s.index for s in schedule.samplers] == [0, 1, 2]
        results = land(scheduler, schedule, [10, 11, 12])
        assert [(r.sequence.index, r.sequence.tokens[-1]) for r in results] == [
            (0, 10),
            (1, 11),
            (2, 12),
        ]
        assert scheduler.kv.used == 2
        following, _ = step(scheduler)
        assert [chunk.length for chunk in following.chunks] == [1, 1, 1]
        assert len(following.copies) == 2
        assert len({destination for _, destination in following.copies}) == 2

    def test_a_continuation_may_end_with_its_first_token(self) -> None:
        scheduler = make()
        scheduler.add(request("a", 6, n=2, stop_token_ids=(9,)), 0.0)
        results = land(scheduler, scheduler.schedule(0.0), [9, 8])
        assert [r.finish_reason for r in results] == ["stop", None]
        scheduler.check()
        assert step(scheduler)[0].copies == ()

    def test_cancelling_one_leaves_the_others(self) -> None:
        scheduler = make()
        scheduler.add(request("a", n=3), 0.0)
        step(scheduler)
        scheduler.cancel("a", 1)
        scheduler.cancel("a", 1)
        assert {r.sequence.index for r in drain(scheduler)} == {0, 2}

    @pytest.mark.parametrize("cancelled", [0, 1, 2])
    def test_cancelling_one_before_the_fork_leaves_the_others(self, cancelled: int) -> None:
        scheduler = make(max_batch_tokens=4)
        scheduler.add(request("a", 6, n=3), 0.0)
        step(scheduler)
        scheduler.cancel("a", cancelled)
        assert {r.sequence.index for r in drain(scheduler)} == {0, 1, 2} - {cancelled}

    def test_cancelling_all_one_by_one_ends_the_request(self) -> None:
        scheduler = make()
        scheduler.add(request("a", n=3), 0.0)
        for index in (1, 0, 2):
            scheduler.cancel("a", index)
        assert not scheduler.has_work

    def test_siblings_report_the_request_s_prefix_hit(self) -> None:
        scheduler = make()
        prompt = tuple(range(500, 510))
        scheduler.add(request("a", prompt), 0.0)
        drain(scheduler)
        scheduler.add(request("b", prompt, n=2), 1.0)
        results = drain(scheduler, 3.0)
        assert {r.sequence.cached_tokens for r in results} == {8}
        assert {r.sequence.queue_seconds for r in results} == {2.0}


class TestCancelAndExpire:
    def test_cancel_frees_blocks_at_once_and_is_idempotent(self) -> None:
        scheduler = make()
        scheduler.add(request("a", 9), 0.0)
        step(scheduler)
        assert scheduler.kv.used == 3
        scheduler.cancel("a")
        scheduler.cancel("a")
        scheduler.cancel("never seen")
        scheduler.check()
        assert (scheduler.kv.used, scheduler.has_work) == (0, False)

    def test_cancel_of_a_waiting_request(self) -> None:
        scheduler = make()
        scheduler.add(request("a"), 0.0)
        scheduler.cancel("a")
        assert (scheduler.has_work, scheduler.schedule(0.0).chunks) == (False, ())

    def test_tokens_sampled_for_a_request_cancelled_meanwhile_are_dropped(self) -> None:
        scheduler = make()
        scheduler.add(request("a", n=2), 0.0)
        scheduler.add(request("b"), 0.0)
        schedule = scheduler.schedule(0.0)
        scheduler.cancel("a")
        results = land(scheduler, schedule, [1, 2, 3])
        assert [(r.sequence.request_id, r.tokens) for r in results] == [("b", (3,))]
        scheduler.check()

    def test_sibling_cancelled_while_its_first_token_is_sampled(self) -> None:
        scheduler = make()
        scheduler.add(request("a", n=3), 0.0)
        schedule = scheduler.schedule(0.0)
        scheduler.cancel("a", 1)
        results = land(scheduler, schedule, [1, 2, 3])
        assert [(r.sequence.index, r.tokens) for r in results] == [(0, (1,)), (2, (3,))]

    def test_deadline_ends_waiting_and_running_requests(self) -> None:
        scheduler = make(max_sequences=2)
        scheduler.add(request("running", n=2, deadline=2.0), 0.0)
        scheduler.add(request("waiting", deadline=2.0), 0.0)
        scheduler.add(request("patient", deadline=9.0), 0.0)
        assert step(scheduler, 1.9)[0].expired == ()
        schedule, _ = step(scheduler, 2.0)
        assert schedule.expired == ("running", "waiting")
        assert shape(schedule) == [("patient", 0, 3)]
