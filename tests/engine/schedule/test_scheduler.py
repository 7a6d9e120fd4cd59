"""Budget, order, admission, finishing and preemption."""

from __future__ import annotations

import itertools

import pytest
from hagane.engine.schedule.plan import Sampled
from hagane.engine.schedule.scheduler import Scheduler
from hagane.engine.schedule.sequence import PRIORITY_SECONDS
from hagane.system.errors import (
    ConfigurationError,
    ContextLengthError,
    InvalidRequestError,
    QueueFullError,
)

from tests.support.scheduling import drain, land, make, request, shape, step


class TestBudget:
    def test_prefill_is_cut_to_the_budget_and_samples_at_its_end(self) -> None:
        scheduler = make(max_batch_tokens=8)
        scheduler.add(request("a", 20), 0.0)
        schedules = [step(scheduler)[0] for _ in range(4)]
        assert [shape(s) for s in schedules] == [
            [("a", 0, 8)],
            [("a", 8, 8)],
            [("a", 16, 4)],
            [("a", 20, 1)],
        ]
        assert [s.chunks[0].samples for s in schedules] == [False, False, True, True]

    def test_decodes_come_before_prefills_which_get_half_the_budget(self) -> None:
        scheduler = make(max_batch_tokens=8)
        scheduler.add(request("a", 3), 0.0)
        step(scheduler)
        scheduler.add(request("b", 20, priority=-5), 0.0)
        assert shape(step(scheduler)[0]) == [("a", 3, 1), ("b", 0, 4)]
        assert shape(step(scheduler)[0]) == [("a", 4, 1), ("b", 4, 4)]

    def test_a_queue_longer_than_the_decodes_gets_all_the_budget(self) -> None:
        scheduler = make(max_batch_tokens=8)
        scheduler.add(request("a", 3), 0.0)
        step(scheduler)
        for name in "bc":
            scheduler.add(request(name, 10), 0.0)
        assert shape(step(scheduler)[0]) == [("a", 3, 1), ("b", 0, 7)]

    def test_prefills_share_a_step(self) -> None:
        scheduler = make(max_batch_tokens=8)
        for name in "abc":
            scheduler.add(request(name, 3), 0.0)
        assert shape(step(scheduler)[0]) == [("a", 0, 3), ("b", 0, 3), ("c", 0, 2)]

    def test_one_token_chunks_come_first(self) -> None:
        scheduler = make()
        scheduler.add(request("a", 3), 0.0)
        scheduler.add(request("b", 1), 0.0)
        assert shape(step(scheduler)[0]) == [("b", 0, 1), ("a", 0, 3)]

    def test_urgent_newcomer_prefills_before_a_running_prefill(self) -> None:
        scheduler = make(max_batch_tokens=8)
        scheduler.add(request("big", 28), 0.0)
        step(scheduler)
        scheduler.add(request("urgent", 4, priority=-1), 0.0)
        assert shape(step(scheduler)[0]) == [("urgent", 0, 4), ("big", 8, 4)]


class TestOrder:
    def first_tokens(self, scheduler: Scheduler) -> list[str]:
        names = [result.sequence.request_id for result in drain(scheduler)]
        return list(dict.fromkeys(names))

    def test_first_come_first_served(self) -> None:
        scheduler = make(max_sequences=1)
        for name in "cab":
            scheduler.add(request(name), 0.0)
        assert self.first_tokens(scheduler) == ["c", "a", "b"]

    def test_smaller_priority_first(self) -> None:
        scheduler = make(max_sequences=1)
        for name, priority in (("a", 1), ("b", 0), ("c", -1)):
            scheduler.add(request(name, priority=priority), 0.0)
        assert self.first_tokens(scheduler) == ["c", "b", "a"]

    def test_waiting_outweighs_priority_in_the_end(self) -> None:
        scheduler = make(max_sequences=1)
        scheduler.add(request("patient", priority=2), 0.0)
        scheduler.add(request("early", priority=0), 2 * PRIORITY_SECONDS - 1)
        scheduler.add(request("late", priority=0), 2 * PRIORITY_SECONDS + 1)
        assert self.first_tokens(scheduler) == ["early", "patient", "late"]

    def test_endless_urgent_requests_do_not_starve_a_patient_one(self) -> None:
        """Twice the load that can be served: those that came by 30 s go first, then it is time."""
        scheduler = make(max_sequences=1, max_waiting=200)
        scheduler.add(request("patient", priority=3), 0.0)
        served: list[str] = []
        for second in range(70):
            for now in (second, second + 0.5):
                scheduler.add(request(f"urgent at {now}", max_tokens=2), now)
                served += [r.sequence.request_id for r in step(scheduler, now)[1]]
        assert served.index("urgent at 29.5") < served.index("patient")
        assert "urgent at 31" not in served[: served.index("patient")]

    def test_endless_small_requests_do_not_overtake_a_big_prefill(self) -> None:
        scheduler = make(blocks=8, max_sequences=4)
        for number in range(3):
            scheduler.add(request(f"small{number}", 5, max_tokens=6), 0.0)
        step(scheduler)
        scheduler.add(request("big", 31), 0.1)
        for number in range(3, 100):
            if scheduler.stats().waiting < 4:
                scheduler.add(request(f"small{number}", 5, max_tokens=6), number / 10)
            schedule, _ = step(scheduler, number / 10)
            if any(name == "big" for name, _, _ in shape(schedule)):
                break
        assert number < 15
        assert scheduler.stats().waiting > 0


class TestAdmission:
    def test_running_sequences_are_bounded(self) -> None:
        scheduler = make(max_sequences=2)
        for name in "abc":
            scheduler.add(request(name), 0.0)
        assert len(step(scheduler)[0].chunks) == 2
        assert (scheduler.stats().running, scheduler.stats().waiting) == (2, 1)

    def test_siblings_yet_to_fork_take_their_places(self) -> None:
        scheduler = make(max_sequences=3, max_batch_tokens=4)
        scheduler.add(request("a", 8, n=3), 0.0)
        scheduler.add(request("b", 1), 0.0)
        for _ in range(3):
            assert {name for name, _, _ in shape(step(scheduler)[0])} == {"a"}

    def test_nobody_is_admitted_who_would_soon_push_others_out(self) -> None:
        scheduler = make(blocks=8)
        scheduler.add(request("a", 16, max_tokens=12), 0.0)
        step(scheduler)
        scheduler.add(request("b", 9, max_tokens=3), 0.0)
        step(scheduler)
        assert scheduler.stats().waiting == 1
        drain(scheduler)
        assert scheduler.stats().preemptions == 0

    def test_queue_is_bounded_and_says_when_to_come_back(self) -> None:
        scheduler = make(max_waiting=2)
        scheduler.add(request("a"), 0.0)
        scheduler.add(request("b"), 1.0)
        with pytest.raises(QueueFullError, match="2 requests are waiting") as full:
            scheduler.add(request("c"), 5.0)
        assert full.value.retry_after == 5.0
        step(scheduler, 5.0)
        scheduler.add(request("c"), 5.0)

    def test_queue_estimate_stays_within_a_second_and_a_minute(self) -> None:
        scheduler = make(max_waiting=1)
        scheduler.add(request("a"), 0.0)
        for now, expected in ((0.0, 1.0), (500.0, 60.0)):
            with pytest.raises(QueueFullError) as full:
                scheduler.add(request("b"), now)
            assert full.value.retry_after == expected

    @pytest.mark.parametrize(
        ("bad", "error", "message"),
        [
            (
                request("x", 32),
                ContextLengthError,
                "context length is 32 tokens. The prompt has 32",
            ),
            (request("x", ()), InvalidRequestError, "prompt has no tokens"),
            (request("x", n=5), InvalidRequestError, "n is 5; this server runs 1 to 4"),
            (request("x", n=0), InvalidRequestError, "n is 0"),
            (request("x", max_tokens=0), InvalidRequestError, "max_tokens is 0"),
            (request("taken"), InvalidRequestError, "'taken' is in use"),
        ],
    )
    def test_hopeless_requests_are_refused(self, bad, error, message: str) -> None:
        scheduler = make()
        scheduler.add(request("taken"), 0.0)
        with pytest.raises(error, match=message):
            scheduler.add(bad, 0.0)
        assert scheduler.stats().waiting == 1

    @pytest.mark.parametrize(
        ("limits", "message"),
        [
            ({"blocks": 7}, "holds 28 tokens, less than one sequence of context_length 32"),
            ({"max_batch_tokens": 3}, r"max_batch_tokens is 3, less than max_sequences \(4\)"),
            ({"max_sequences": 0}, "max_sequences is 0"),
            ({"max_waiting": 0}, "max_waiting is 0"),
            ({"context_length": 0}, "context_length is 0"),
        ],
    )
    def test_impossible_limits_are_refused(self, limits, message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            make(**limits)


class TestFinish:
    def finish(self, tokens: list[int], context_length: int = 32, **sampling) -> list[Sampled]:
        scheduler = make(context_length=context_length)
        scheduler.add(request("a", 3, **sampling), 0.0)
        results: list[Sampled] = []
        for token in tokens:
            results += step(scheduler, token=token)[1]
        assert scheduler.has_work == (results[-1].finish_reason is None)
        return results

    def test_max_tokens(self) -> None:
        results = self.finish([7, 7], max_tokens=2)
        assert [(r.finish_reason, r.stopped_on_token) for r in results] == [
            (None, False),
            ("length", False),
        ]

    def test_context_length(self) -> None:
        results = self.finish([7, 7], context_length=5, max_tokens=100)
        assert [r.finish_reason for r in results] == [None, "length"]

    def test_end_of_text(self) -> None:
        last = self.finish([7, 2], eos_token_ids=(1, 2))[-1]
        assert (last.tokens, last.finish_reason, last.stopped_on_token) == ((2,), "stop", True)

    def test_stop_token_on_the_last_token_is_a_stop(self) -> None:
        last = self.finish([7, 2], max_tokens=2, stop_token_ids=(2,))[-1]
        assert (last.finish_reason, last.stopped_on_token) == ("stop", True)

    def test_ignore_eos_ignores_end_of_text_but_not_stop_tokens(self) -> None:
        options = {"eos_token_ids": (1,), "stop_token_ids": (2,), "ignore_eos": True}
        reasons = [r.finish_reason for r in self.finish([1, 1, 2], **options)]
        assert reasons == [None, None, "stop"]

    def test_nothing_stops_before_min_tokens(self) -> None:
        options = {"eos_token_ids": (1,), "stop_token_ids": (2,), "min_tokens": 2}
        reasons = [r.finish_reason for r in self.finish([1, 2, 1], **options)]
        assert reasons == [None, None, "stop"]

    def test_update_wants_a_token_for_each_sampler(self) -> None:
        scheduler = make()
        scheduler.add(request("a"), 0.0)
        with pytest.raises(ValueError, match="2 tokens for 1 samplers"):
            land(scheduler, scheduler.schedule(0.0), [1, 2])


class TestPreemption:
    def test_the_last_in_order_gives_way_and_keeps_its_tokens(self) -> None:
        scheduler = make(blocks=8)
        scheduler.add(request("a", 12, max_tokens=20), 0.0)
        scheduler.add(request("b", 9, max_tokens=20), 0.0)
        results = drain(scheduler)
        assert scheduler.stats().preemptions >= 1
        order = [r.sequence.request_id for r in results if r.finish_reason]
        assert order == ["a", "b"]
        assert {r.sequence.generated for r in results} == {20}

    def test_a_preempted_sequence_is_recomputed_from_what_the_cache_lost(self) -> None:
        scheduler = make(blocks=9)
        scheduler.add(request("a", 12, max_tokens=20), 0.0)
        scheduler.add(request("b", 9, max_tokens=20), 0.0)
        starts: list[int] = []
        while scheduler.has_work:
            starts += [start for name, start, _ in shape(step(scheduler)[0]) if name == "b"]
        resumed = [b for a, b in itertools.pairwise(starts) if b < a]
        assert resumed
        assert all(start % 4 == 0 for start in resumed)

    def test_priority_protects_from_preemption(self) -> None:
        scheduler = make(blocks=8)
        scheduler.add(request("a", 12, max_tokens=20), 0.0)
        scheduler.add(request("b", 9, max_tokens=20, priority=-1), 0.0)
        order = [r.sequence.request_id for r in drain(scheduler) if r.finish_reason]
        assert order == ["b", "a"]

    def test_prefix_hits_are_reported_once(self) -> None:
        scheduler = make(blocks=8)
        scheduler.add(request("a", 12, max_tokens=20), 0.0)
        scheduler.add(request("b", 9, max_tokens=20), 0.0)
        results = drain(scheduler)
        assert {r.sequence.cached_tokens for r in results} == {0}
        assert scheduler.kv.prefix_tokens_hit == 0

    def test_prompt_logits_interrupted_midway_start_over(self) -> None:
        scheduler = make(blocks=8, max_batch_tokens=4)
        scheduler.add(request("a", 4, max_tokens=24, priority=-1), 0.0)
        step(scheduler)
        scheduler.add(request("b", 16, prompt_logprobs=1), 0.0)
        step(scheduler)
        scheduler._preempt(scheduler._running[-1])
        later = [chunk for _ in range(30) for chunk in shape(step(scheduler)[0])]
        assert next(start for name, start, _ in later if name == "b") == 0


def test_statistics_count_steps_and_blocks() -> None:
    scheduler = make()
    scheduler.schedule(0.0)
    scheduler.add(request("a", 9, max_tokens=2), 0.0)
    drain(scheduler)
    stats = scheduler.stats()
    assert (stats.steps, stats.running, stats.waiting) == (2, 0, 0)
    assert (stats.blocks_used, stats.blocks_cached, stats.blocks_total) == (0, 2, 16)
    assert (stats.prefix_tokens_queried, stats.prefix_tokens_hit) == (9, 0)
