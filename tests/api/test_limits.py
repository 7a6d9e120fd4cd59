"""Limits per key: the arithmetic by a clock of the test's own, the contract by a real server."""

from __future__ import annotations

import hashlib
import threading

import httpx
import openai
import pytest
from hagane.api.errors import PermissionDeniedError
from hagane.api.limits import ANONYMOUS, Account, Accounts, Bucket, KeyUsage
from hagane.store.keys import KeyLimits, KeyUse, key_label
from hagane.system.errors import RateLimitError
from hagane.system.settings import Settings
from prometheus_client import CollectorRegistry

from tests.support.server import start_server, stop_server


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def account(clock: Clock, **limits: int) -> Account:
    return Account("label", KeyUsage(CollectorRegistry()), KeyLimits(**limits), clock)


def test_a_bucket_refills_evenly_and_not_beyond_its_capacity():
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(90)
    assert bucket.level == -30
    assert bucket.seconds_until(1) == 31
    clock.now += 31
    assert bucket.level == 1
    clock.now += 1000
    assert bucket.level == 60
    assert bucket.seconds_until(1) == 0


def test_batches_leave_half_of_a_minute_and_one_request_at_a_time():
    clock = Clock()
    limited = account(clock, requests=4, concurrent=3)
    assert [limited.spares(own) for own in (0, 1, 2)] == [True, True, False]
    with limited.request(), limited.request():
        assert not limited.spares(0)
    assert limited.spares(0)
    with limited.request():
        pass
    assert not limited.spares(0)
    clock.now += 15
    assert limited.spares(0)
    assert account(clock, concurrent=1).spares(0)
    assert not account(clock, concurrent=1).spares(1)


def test_requests_a_minute():
    clock = Clock()
    limited = account(clock, requests=2)
    for _ in range(2):
        with limited.request():
            pass
    with pytest.raises(RateLimitError, match="rate_limit_requests") as caught, limited.request():
        pass
    assert caught.value.retry_after == 30
    assert limited.headers() == {
        "x-ratelimit-limit-requests": "2",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    clock.now += 30
    with limited.request():
        pass


def test_a_debt_of_tokens_delays_the_next_request():
    clock = Clock()
    limited = account(clock, tokens=100)
    with limited.request() as running:
        running.charge("prompt", 90)
        running.charge("generated", 60)
    with pytest.raises(RateLimitError, match="rate_limit_tokens"), limited.request():
        pass
    assert limited.headers()["x-ratelimit-remaining-tokens"] == "0"
    assert limited.headers()["x-ratelimit-reset-tokens"] == "1m30s"
    clock.now += 31
    with limited.request():
        pass


def test_requests_at_a_time_whatever_becomes_of_them():
    limited = account(Clock(), concurrent=1)
    with pytest.raises(ZeroDivisionError), limited.request():
        with pytest.raises(RateLimitError, match="max_concurrent_requests"), limited.request():
            pass
        1 / 0  # noqa: B018
    with limited.request():
        pass


def test_going_before_others_is_for_those_who_may():
    settings = Settings(_cli_parse_args=False, api_keys="a,b", priority_keys="b", admin_key="root")
    accounts = Accounts(settings, CollectorRegistry())
    for key, may in (("a", False), ("b", True), ("root", True)):
        found = accounts[key_label(key)]
        found.check_priority(0)
        found.check_priority(5)
        if may:
            found.check_priority(-5)
        else:
            with pytest.raises(PermissionDeniedError, match="priority_keys"):
                found.check_priority(-5)
    open_to_all = Accounts(Settings(_cli_parse_args=False), CollectorRegistry())
    open_to_all[ANONYMOUS].check_priority(-5)


def test_limits_that_change_keep_what_is_left_of_the_others():
    clock = Clock()
    limited = account(clock, requests=2, tokens=100)
    with limited.request() as running:
        running.charge("prompt", 70)
    limited.limit(KeyLimits(requests=60, tokens=100, concurrent=1), urgent=False)
    assert limited.headers()["x-ratelimit-remaining-requests"] == "60"
    assert limited.headers()["x-ratelimit-remaining-tokens"] == "30"
    with limited.request(), pytest.raises(RateLimitError, match="max_concurrent_requests"):
        limited.request().__enter__()
    limited.limit(KeyLimits(), urgent=False)
    assert limited.headers() == {}


def test_use_is_counted_by_day_and_none_of_it_is_lost():
    usage = KeyUsage(CollectorRegistry())
    usage.request("a", admitted=True)
    usage.charge("a", "prompt", 5)
    days = usage.take_days()
    ((label, day),) = days
    assert label == "a" and len(day) == len("2026-11-28")
    assert days[label, day] == KeyUse(requests=1, prompt_tokens=5)
    assert usage.take_days() == {}
    usage.charge("a", "generated", 7)
    usage.put_back(days)
    assert usage.take_days() == {(label, day): KeyUse(1, 0, 5, 7)}


@pytest.fixture(scope="module")
def limited_server(tiny_model_dir, tmp_path_factory):
    log = tmp_path_factory.mktemp("limited") / "log"
    flags = ("--rate-limit-requests", "4", "--rate-limit-tokens", "100000")
    flags += ("--max-concurrent-requests", "1", "--served-model-name", "tiny")
    server = start_server(tiny_model_dir, log, *flags, HAGANE_API_KEYS="first-key,second-key")
    server.wait_ready()
    yield server
    stop_server(server)


def complete(server, key: str, **body) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/completions",
        json={"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True, **body},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )


def test_limits_over_http(limited_server):
    answers = [complete(limited_server, "first-key", temperature=0) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    left = [int(answer.headers["x-ratelimit-remaining-requests"]) for answer in answers]
    assert left == [3, 2, 1, 0]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "100000"
    refused = complete(limited_server, "first-key")
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 15
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.headers["x-request-id"].startswith("req_")
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_exceeded", "rate_limit_exceeded")
    with pytest.raises(openai.RateLimitError), openai.OpenAI(
        base_url=f"{limited_server.url}/v1", api_key="first-key", max_retries=0
    ) as client:  # fmt: skip
        client.completions.create(model="tiny", prompt="a")
    urgent = complete(limited_server, "second-key", priority=-1)
    assert (urgent.status_code, urgent.json()["error"]["code"]) == (403, "permission_denied")
    # The other key has its own allowance; one that is unknown has none at all.
    assert complete(limited_server, "second-key", temperature=5).status_code == 400
    assert complete(limited_server, "third-key").status_code == 401


def test_one_stream_at_a_time_and_its_place_is_given_back(limited_server):
    url = f"{limited_server.url}/v1/completions"
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 500, "ignore_eos": True}
    headers = {"Authorization": "Bearer second-key"}
    with httpx.stream("POST", url, json=body | {"stream": True}, headers=headers) as response:
        lines = response.iter_lines()
        next(lines)
        assert "x-ratelimit-limit-requests" in response.headers
        refused = complete(limited_server, "second-key")
        assert refused.status_code == 429
        assert "max_concurrent_requests" in refused.json()["error"]["message"]
    gone = threading.Event()
    for _ in range(100):
        if complete(limited_server, "second-key").status_code == 200:
            break
        gone.wait(0.05)
    else:
        pytest.fail("the place of a stream whose client went away was never given back")


def test_usage_by_a_label_that_is_not_the_key(limited_server):
    label = hashlib.sha256(b"first-key").hexdigest()[:8]
    text = httpx.get(f"{limited_server.url}/metrics").text
    assert f'hagane_key_tokens_total{{key="{label}",kind="generated"}} 16.0' in text
    assert f'hagane_key_tokens_total{{key="{label}",kind="prompt"}} 12.0' in text
    assert f'hagane_key_requests_total{{key="{label}",outcome="admitted"}} 4.0' in text
    assert f'hagane_key_requests_total{{key="{label}",outcome="refused"}} 2.0' in text
    assert f'hagane_key_requests_running{{key="{label}"}} 0.0' in text
    assert "first-key" not in text
    assert "first-key" not in limited_server.log.read_text()
