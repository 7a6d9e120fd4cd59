"""The log and the load of a real server, for its page."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.support.server import ADMIN_KEY


@pytest.fixture(scope="module")
def ask(admin_server):
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with httpx.Client(base_url=admin_server.url, headers=headers, timeout=30) as client:

        def send(path, **params):
            answer = client.get(path, params=params)
            assert answer.status_code == 200, answer.text
            return answer.json()["data"]

        yield send


def test_the_log_has_lines_of_server_and_engine(ask):
    deadline = time.monotonic() + 20
    while {line["process"] for line in ask("/admin/logs", limit=2000)} != {"server", "engine"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ready = ask("/admin/logs", text="is ready on")
    assert ready[0]["level"] == "info"
    assert ready[0]["logger"] == "hagane.server.app"
    assert ask("/admin/logs", after=ready[-1]["id"], text="is ready on") == []
    assert ask("/admin/logs", since=time.time() + 60) == []
    assert all(
        line["level"] in ("warning", "error") for line in ask("/admin/logs", level="warning")
    )


def test_keys_are_not_in_the_log(ask, admin_server):
    httpx.get(f"{admin_server.url}/v1/models?key=sk-hagane-secret")
    assert "sk-hagane-secret" not in str(ask("/admin/logs", limit=2000))
    assert ADMIN_KEY not in str(ask("/admin/logs", limit=2000))


def test_the_load_is_recorded(ask):
    deadline = time.monotonic() + 20
    while not (samples := ask("/admin/history", period="15m")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert samples[-1]["available_bytes"] > 0
    assert samples[-1]["free_bytes"] > 0
    # A minute may have passed.
    assert len(ask("/admin/history", period="24h")) < len(samples)
