"""Canaries on a real server: promotion, rollback, changes by hand, the webhook."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
import time
from contextlib import contextmanager
from typing import ClassVar

import httpx
import pytest
from hagane.api.canaries import CanaryWatch
from hagane.generation.usage import Usage
from hagane.store.aliases import AliasGeneration
from hagane.store.answers.canaries import Canary
from hagane.store.catalogue import ModelRef
from hagane.store.store import Store
from hagane.system.errors import StoreUnavailableError
from prometheus_client import CollectorRegistry

from tests.support.server import ADMIN_KEY, CHAT_KEY

ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


class Hook(http.server.BaseHTTPRequestHandler):
    """Takes what the server reports; the first call fails."""

    received: ClassVar[list[dict]] = []
    calls: ClassVar[int] = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Hook.calls += 1
        self.send_response(500 if Hook.calls == 1 else 200)
        self.end_headers()
        if Hook.calls > 1:
            Hook.received.append(json.loads(body))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def hook():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


class Alias:
    """One alias of the server under test, and requests to it."""

    def __init__(self, server, name: str) -> None:
        self.server, self.name = server, name

    def call(self, method: str, path: str = "", status: int = 200, **body) -> dict:
        url = f"{self.server.url}/admin/aliases{path}"
        answer = httpx.request(method, url, json=body or None, headers=ADMIN)
        assert answer.status_code == status, answer.text
        return answer.json()

    def set(self, status: int = 200, **changes) -> dict:
        body = {"name": self.name, "target": "tiny", "candidate": "tiny", "percentage": 50}
        return self.call("POST", "", status, **(body | changes))

    def ask(self) -> str:
        body = {"model": self.name, "max_tokens": 2, "temperature": 0, "prompt": "a"}
        headers = {"Authorization": f"Bearer {CHAT_KEY}"}
        answer = httpx.post(f"{self.server.url}/v1/completions", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def judge(self, completion: str, **said) -> dict:
        answer = httpx.post(
            f"{self.server.url}/v1/feedback",
            json={"completion_id": completion, **said},
            headers={"Authorization": f"Bearer {CHAT_KEY}"},
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait(self, *states: str) -> dict:
        deadline = time.monotonic() + 30
        while True:
            found = self.call("GET", f"/{self.name}")
            if found["canary"]["state"] in states:
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.1)


def test_a_faultless_candidate_is_promoted(admin_server, hook):
    alias = Alias(admin_server, "steady")
    alias.set(policy={"min_requests": 3, "webhook": hook})
    for _ in range(20):
        alias.ask()
    found = alias.wait("promoted")
    assert (found["generation"], found["candidate"], found["percentage"]) == (2, None, 0)
    assert [event["level"] for event in found["canary"]["events"]] == ["info", "info"]
    assert "is promoted" in found["canary"]["events"][0]["message"]
    counts = found["canary"]["counts"]
    assert min(counts[arm]["requests"] for arm in ("target", "candidate")) >= 3
    deadline = time.monotonic() + 20
    while not Hook.received:
        assert time.monotonic() < deadline, "the webhook was not called again"
        time.sleep(0.1)
    assert Hook.received[0]["type"] == "alias.promoted"
    assert Hook.received[0]["data"]["alias"] == "steady"
    text = httpx.get(f"{admin_server.url}/metrics").text
    assert 'hagane_arm_requests_total{alias="steady",arm="candidate",model="tiny"' in text


def test_a_disliked_candidate_is_rolled_back_and_a_liked_one_waits_for_certainty(admin_server):
    alias = Alias(admin_server, "disliked")
    alias.set(policy={"min_requests": 2, "min_win_rate": 0.5})
    count = {"target": 0, "candidate": 0}
    for _ in range(60):
        completion = alias.ask()
        arm = alias.judge(completion, comment="looked at")["arm"]
        if count[arm] < 12:
            alias.judge(completion, thumbs="up" if arm == "target" else "down")
            count[arm] += 1
        if min(count.values()) == 12:
            break
    found = alias.wait("rolled_back")
    assert found["candidate"] is None
    assert found["canary"]["counts"]["losses"] >= 7
    assert found["canary"]["events"][0]["level"] == "warn"


def test_preferences_between_the_arms_decide(admin_server):
    alias = Alias(admin_server, "preferred")
    alias.set(policy={"min_requests": 1, "min_win_rate": 0.5, "max_requests": 1_000})
    answers = {"target": [], "candidate": []}
    while min(map(len, answers.values())) < 12:
        completion = alias.ask()
        answers[alias.judge(completion, comment="looked at")["arm"]].append(completion)
    for better, worse in zip(answers["candidate"], answers["target"], strict=False):
        given = alias.judge(better, preferred_over=worse)
        assert (given["arm"], given["preferred_over_arm"]) == ("candidate", "target")
    assert alias.wait("promoted")["canary"]["counts"]["losses"] == 0


def test_a_change_by_hand_ends_the_trial_and_an_undecided_one_is_held(admin_server):
    alias = Alias(admin_server, "changed")
    alias.set(policy={"min_requests": 1_000})
    alias.set(candidate=None, percentage=0)
    assert alias.wait("superseded")["generation"] == 2
    alias.set(policy={"min_requests": 1_000})
    alias.call("POST", "/changed/rollback")
    alias.wait("superseded")
    alias.set(policy={"min_requests": 1, "min_win_rate": 0.5, "max_requests": 1})
    for _ in range(20):
        alias.ask()
    held = alias.wait("held")
    assert (held["candidate"], held["percentage"]) == ("tiny", 50)


def test_what_cannot_decide_is_refused(admin_server):
    alias = Alias(admin_server, "refused")
    for changes, param in (
        ({"policy": {}, "candidate": None, "percentage": 0}, "policy"),
        ({"policy": {}, "percentage": 100}, "policy"),
        ({"policy": {"min_requests": 0}}, "policy.min_requests"),
        ({"policy": {"webhook": "file:///etc/passwd"}}, "policy.webhook"),
        ({"policy": {"max_win_rate": 1}}, "policy.max_win_rate"),
    ):
        assert alias.set(400, **changes)["error"]["param"] == param, changes


@pytest.fixture
def trial(monkeypatch, hook):
    """A function that starts a trial whose rounds are judged in a turn like the one given."""
    store = Store.empty()

    def start(turn) -> tuple[CanaryWatch, Store]:
        monkeypatch.setattr(store.answers.database, "attempt", turn)
        made = store.aliases.set(AliasGeneration("a", "old", "new", 50))
        policy = {"min_requests": 1, "webhook": hook}
        store.answers.canaries.add(
            Canary(alias="a", generation=made.generation, target="old", candidate="new",
                   policy=policy)
        )  # fmt: skip
        return CanaryWatch(store.aliases, store.answers, CollectorRegistry()), store

    yield start
    store.close()


async def ask(watch: CanaryWatch, arm: str) -> None:
    async def answer():
        yield None

    ref = ModelRef("old" if arm == "target" else "new", "r", None, None, 0, alias="a", arm=arm)
    async for _ in watch.watch(ref, Usage(), answer()):
        pass


async def test_a_decision_whose_turn_ends_badly_is_announced(trial):
    @contextmanager
    def lost(_):
        yield True
        raise StoreUnavailableError("the connection broke at its end")

    watch, store = trial(lost)
    Hook.received.clear()
    for arm in ("target", "candidate"):
        await ask(watch, arm)
    with pytest.raises(StoreUnavailableError):
        await watch._round()
    assert store.answers.canaries.latest("a").state == "promoted"
    async with asyncio.timeout(20):
        while not Hook.received:
            await asyncio.sleep(0.05)
    assert Hook.received[0]["data"]["alias"] == "a"
    await watch.stop()


async def test_a_round_that_is_cancelled_counts_no_request_twice(trial):
    arrived, go_on = threading.Event(), threading.Event()

    @contextmanager
    def waiting(_):
        arrived.set()
        go_on.wait()
        yield True

    watch, store = trial(waiting)
    await ask(watch, "target")
    round_ = asyncio.create_task(watch._round())
    await asyncio.to_thread(arrived.wait)
    round_.cancel()
    await asyncio.sleep(0.05)
    ended_early = round_.done()
    go_on.set()
    await asyncio.wait((round_,))
    assert round_.cancelled()
    assert not ended_early
    await watch._round()
    counts = store.answers.canaries.latest("a").counts
    assert counts["target"]["requests"] == 1
