"""Requests wait for a set of prerequisites, each of which comes, or fails, by itself."""

from __future__ import annotations

import pytest
from hagane.engine.prerequisites import Failure, Prerequisites, Released, Settled
from hagane.pool.messages import AdapterRef, GenerateRequest, GrammarRef, SamplingParams
from hagane.system.errors import QueueFullError


class Kind:
    """A provider whose prerequisites come when the test says so."""

    def __init__(self, field: str) -> None:
        self.field, self.there, self.settled = field, set(), []
        self.in_use: set[str] = set()

    @property
    def busy(self) -> bool:
        return bool(self.settled)

    def want(self, request: GenerateRequest) -> str | None:
        needed = getattr(request, self.field)
        return None if needed is None or needed.digest in self.there else needed.digest

    def poll(self, in_use):
        self.in_use = set(in_use)
        while self.settled:
            yield self.settled.pop()


def request(name: str, adapter: str | None, grammar: str | None, **fields) -> GenerateRequest:
    return GenerateRequest(
        request_id=name,
        prompt=(1,),
        sampling=SamplingParams(max_tokens=1),
        adapter=None if adapter is None else AdapterRef(adapter, "", adapter),
        grammar=None if grammar is None else GrammarRef(grammar, ""),
        **fields,
    )


@pytest.fixture
def kinds():
    return Kind("adapter"), Kind("grammar")


@pytest.fixture
def waiting(kinds):
    return Prerequisites(*kinds, limit=3)


def names(released: list[Released]) -> list[str]:
    return [one.request.request_id for one in released]


def test_a_request_runs_when_the_last_of_its_prerequisites_is_there(kinds, waiting):
    adapters, grammars = kinds
    assert waiting.ready(request("plain", None, None), 0.0)
    assert not waiting.ready(request("both", "a", "g"), 1.0)
    assert not waiting.ready(request("one", "a", None), 2.0)
    adapters.settled.append(Settled("a"))
    (released,) = waiting.poll(3.0, set())
    assert (released.request.request_id, released.arrived, released.failure) == ("one", 2.0, None)
    grammars.settled.append(Settled("other"))
    assert not list(waiting.poll(4.0, {"x"}))
    # A prerequisite that is ready for a request that waits for more must stay.
    assert grammars.in_use == {"a", "x"}
    grammars.settled.append(Settled("g"))
    assert names(list(waiting.poll(5.0, set()))) == ["both"]
    assert len(waiting) == 0 and not waiting.busy


def test_one_that_fails_takes_those_who_wait_for_it(kinds, waiting):
    adapters, grammars = kinds
    for name, grammar in (("first", "g"), ("second", "g"), ("third", "h")):
        waiting.ready(request(name, "a", grammar), 0.0)
    failure = Failure("invalid_request", "no")
    grammars.settled.append(Settled("g", failure))
    released = list(waiting.poll(1.0, set()))
    assert names(released) == ["first", "second"]
    assert {one.failure for one in released} == {failure}
    adapters.settled.append(Settled("a"))
    assert not list(waiting.poll(2.0, set()))
    grammars.settled.append(Settled("h"))
    assert names(list(waiting.poll(3.0, set()))) == ["third"]


def test_waiting_is_bounded_in_number_and_time(waiting):
    for name, deadline in (("a", None), ("b", 7.0), ("c", 9.0)):
        waiting.ready(request(name, "adapter", None, deadline=deadline), 0.0)
    with pytest.raises(QueueFullError):
        waiting.ready(request("d", "adapter", None), 0.0)
    assert waiting.pause(4.0, longest=60.0) == 3.0
    assert waiting.pause(4.0, longest=2.0) == 2.0
    (late,) = waiting.poll(8.0, set())
    assert late.request.request_id == "b"
    assert late.failure is not None and late.failure.code == "deadline_exceeded"
    waiting.cancel("c")
    assert waiting.pause(8.0, longest=60.0) == 60.0
    assert len(waiting) == 1
