from __future__ import annotations

from hagane.engine.schedule.sequence import PRIORITY_SECONDS, Sequence
from hagane.pool.messages import GenerateRequest, SamplingParams


def sequence(*, priority: int = 0, now: float = 0.0, arrival: int = 0, **request) -> Sequence:
    request = {"sampling": SamplingParams(max_tokens=4), **request}
    return Sequence.of(
        GenerateRequest(request_id="r", prompt=(5, 6, 7), priority=priority, **request),
        arrival,
        now,
    )


def test_counts_prompt_generated_and_uncomputed_tokens() -> None:
    it = sequence()
    it.tokens += [8, 9]
    it.computed = 4
    assert (it.length, it.prompt_length, it.generated, it.uncomputed) == (5, 3, 2, 1)


def test_of_prefills_for_all_continuations() -> None:
    it = sequence(n=3, deadline=9.0, cache_salt="s")
    assert (it.index, it.pending, it.width) == (0, [1, 2], 3)
    assert (it.deadline, it.cache_salt) == (9.0, "s")


def test_sibling_owns_its_tokens_and_holds_no_blocks() -> None:
    parent = sequence(n=2)
    parent.blocks, parent.computed = [4], 3
    child = parent.sibling(1)
    child.tokens.append(8)
    assert (child.index, child.pending, child.blocks, child.computed) == (1, [], [], 0)
    assert parent.tokens == [5, 6, 7]


def test_smaller_priority_comes_first_then_arrival_then_index() -> None:
    urgent, early, late = (
        sequence(priority=-1, now=1.0, arrival=2),
        sequence(now=1.0, arrival=0),
        sequence(now=1.0, arrival=1),
    )
    assert sorted([late, early.sibling(1), urgent, early], key=lambda s: s.order)[:2] == [
        urgent,
        early,
    ]
    assert early.order < early.sibling(1).order < late.order


def test_a_level_of_priority_is_worth_a_stretch_of_waiting() -> None:
    patient = sequence(priority=1, now=0.0)
    assert sequence(now=PRIORITY_SECONDS - 0.1, arrival=1).order < patient.order
    assert patient.order < sequence(now=PRIORITY_SECONDS + 0.1, arrival=1).order


def test_prompt_logits_are_needed_until_the_first_token() -> None:
    it = sequence(sampling=SamplingParams(max_tokens=4, prompt_logprobs=0))
    assert it.needs_prompt_logits
    it.tokens.append(8)
    assert not it.needs_prompt_logits


def test_queue_seconds_end_at_the_first_admission() -> None:
    it = sequence(now=2.0)
    assert it.queue_seconds == 0.0
    it.first_scheduled = 2.5
    assert it.queue_seconds == 0.5
