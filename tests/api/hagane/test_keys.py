"""API keys made while serving, on a real server and after its restart."""

from __future__ import annotations

import time

import httpx
import pytest

from tests.support.server import ADMIN_KEY, hagane, start_server, stop_server


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def start(tiny_model_dir, data):
    """Starts a server over the same data directory each time."""

    def run():
        server = start_server(
            tiny_model_dir, data / "log", "--data-dir", str(data / "data"),
            "--served-model-name", "tiny", HAGANE_ADMIN_KEY=ADMIN_KEY,
        )  # fmt: skip
        server.wait_ready()
        return server

    return run


@pytest.fixture(scope="module")
def server(start):
    running = start()
    yield running
    if running.process.poll() is None:
        stop_server(running)


def admin(server, method: str, path: str, **options) -> httpx.Response:
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.request(method, f"{server.url}/admin/{path}", headers=headers, **options)


def complete(server, key: str | None) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 4, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)


def test_a_life_of_keys(server, start):
    assert complete(server, None).status_code == 200
    limits = {"requests_per_minute": 3}
    made = admin(server, "POST", "keys", json={"name": "ci", "limits": limits}).json()
    key = made["key"]
    assert complete(server, None).status_code == 401
    assert complete(server, f"{key}x").status_code == 401
    assert admin(server, "GET", "keys").json()["data"] == [
        {name: value for name, value in made.items() if name != "key"}
    ]
    answers = [complete(server, key) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    # A key that may chat administers nothing.
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/admin/keys", headers=headers).status_code == 403
    raised = admin(server, "POST", f"keys/{made['id']}", json={"limits": {}, "name": "cd"})
    assert raised.json()["name"] == "cd"
    assert complete(server, key).status_code == 200

    stop_server(server)
    server = start()
    try:
        assert complete(server, None).status_code == 401
        assert complete(server, key).status_code == 200
        (use,) = [
            use for use in admin(server, "GET", "key_usage").json()["data"]
            if use["label"] == made["label"]
        ]  # fmt: skip
        assert (use["name"], use["requests"], use["refused"]) == ("cd", 4, 1)
        assert (use["prompt_tokens"], use["generated_tokens"]) == (12, 16)
        assert admin(server, "DELETE", f"keys/{made['id']}").json()["revoked_at"]
        assert complete(server, key).status_code == 401
        # Revoking the last key does not open the server.
        assert complete(server, None).status_code == 401
        assert admin(server, "DELETE", f"keys/{made['id']}").status_code == 409

        def keys(*arguments):
            return hagane("keys", *arguments, "--url", server.url, HAGANE_ADMIN_KEY=ADMIN_KEY)

        created = keys("create", "night", "--tokens", "1000", "--days", "3").stdout
        assert complete(server, created.split()[-1]).status_code == 200
        listed = keys("list").stdout.splitlines()
        assert "night" in listed[0] and "1000 tokens per minute" in listed[0]
        assert "revoked" in listed[1]
        assert "revoked" in keys("revoke", listed[0].split()[0]).stdout
        assert "cd" in keys("usage").stdout
        assert "takes the new key's name" in keys("create").stderr
    finally:
        stop_server(server)


def test_mistakes_name_the_field(admin_server):
    for body, param in (
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "a", "limits": {"requests_per_minute": 0}}, "limits.requests_per_minute"),
        ({"name": "a", "expires_at": int(time.time()) - 1}, "expires_at"),
        ({"name": "a", "color": "red"}, "color"),
    ):
        answer = admin(admin_server, "POST", "keys", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
    assert admin(admin_server, "GET", "keys/none").status_code == 404
    assert admin(admin_server, "GET", "key_usage?key_id=none").status_code == 404
