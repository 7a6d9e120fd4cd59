"""Programs of strangers: bounded in time and memory, and none hurts another's call."""

from __future__ import annotations

import os
import threading
import time

import pytest
from hagane.system.sandbox import Sandbox, SandboxError, SandboxLimitError


@pytest.fixture
def sandbox():
    made = Sandbox(processes=2, seconds=0.3, memory=64 << 20)
    yield made
    made.close()


def test_results_come_back_as_json(sandbox):
    assert sandbox.call("operator:add", [1, "é"], [{"a": None}]) == [1, "é", {"a": None}]
    assert sandbox.call("operator:concat", "\ud800", "x") == "\ud800x"
    assert sandbox.call("operator:add", 2**70, 1) == 2**70 + 1


def test_a_failure_is_the_functions_own_and_keeps_the_worker(sandbox):
    worker = sandbox.call("os:getpid")
    with pytest.raises(SandboxError, match="division"):
        sandbox.call("operator:floordiv", 1, 0)
    assert sandbox.call("os:getpid") == worker


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("re:fullmatch", "(a|a)*b", "a" * 64), "processor time"),
        (("operator:mul", "a", 400_000_000), "memory"),
        (("os:abort",), "ended its process"),
    ],
)
def test_what_takes_too_much_loses_its_own_worker_alone(sandbox, call, message):
    other = threading.Thread(target=lambda: seen.append(sandbox.call("operator:add", 1, 1)))
    seen: list[int] = []
    other.start()
    started = time.monotonic()
    with pytest.raises(SandboxLimitError, match=message):
        sandbox.call(*call)
    assert time.monotonic() - started < 10
    other.join()
    assert seen == [2]
    assert sandbox.call("operator:add", 1, 2) == 3


def test_what_is_printed_is_no_answer(sandbox):
    assert sandbox.call("builtins:print", "not an answer") is None


def test_keys_stay_at_home(sandbox, monkeypatch):
    monkeypatch.setenv("HAGANE_ADMIN_KEY", "secret")
    assert sandbox.call("os:getenv", "HAGANE_ADMIN_KEY") is None
    assert sandbox.call("os:getenv", "PATH") == os.environ["PATH"]


def test_a_worker_that_died_while_idle_is_replaced(sandbox):
    os.kill(sandbox.call("os:getpid"), 9)
    time.sleep(0.1)
    assert sandbox.call("operator:add", 1, 2) == 3
